// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc man`: prints the manual page, of all commands or of one.

use std::io::Write;

use anyhow::{Context as _, Result};
use clap_mangen::Man;

use crate::abi::{COUNTERS, Counter, GROUPS, Group};

/// Prints the page of a command line, or of one of its commands.
pub fn run(cli: clap::Command, command: Option<&str>, out: &mut impl Write) -> Result<()> {
    match command {
        None => all(&cli, out),
        Some(name) => one(cli, name, out),
    }
}

fn all(cli: &clap::Command, out: &mut impl Write) -> Result<()> {
    let page = Man::new(cli.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for command in cli.get_subcommands() {
        let mut text = Vec::new();
        let page = Man::new(command.clone());
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        writeln!(out, ".SS \"bmc {}\"", command.get_name())?;
        for line in String::from_utf8(text)?.lines().filter(|line| !line.starts_with(".SH")) {
            writeln!(out, "{line}")?;
        }
    }
    counters(out)?;
    let mut text = Vec::new();
    page.render_extra_section(&mut text)?;
    write!(out, "{}", String::from_utf8(text)?.replace(".SH EXTRA", ".SH \"EXIT STATUS\""))?;
    Ok(())
}

/// Explains the counters that `bmc stats` prints.
fn counters(out: &mut impl Write) -> Result<()> {
    let roff = |text: &str| text.replace('-', "\\-");
    writeln!(out, ".SH COUNTERS\nOf bmc stats, with the unit of each.")?;
    for Counter { name, unit, help, .. } in COUNTERS.iter().filter(|c| c.reason().is_none()) {
        writeln!(out, ".TP\n\\fB{name}\\fR (\\fI{unit}\\fR)\n{}.", roff(help))?;
    }
    for Group { prefix, name, help } in &GROUPS {
        writeln!(out, ".TP\n\\fB{name}\\fR\n{}, by reason:\n.RS", roff(help))?;
        for Counter { name, unit, help, .. } in &COUNTERS {
            if let Some(reason) = name.strip_prefix(prefix) {
                writeln!(out, ".TP\n\\fB{reason}\\fR (\\fI{unit}\\fR)\n{}", roff(help))?;
            }
        }
        writeln!(out, ".RE")?;
    }
    Ok(())
}

fn one(mut cli: clap::Command, name: &str, out: &mut impl Write) -> Result<()> {
    // Building names the page "bmc-attach" and adds the global options.
    cli.build();
    let command = cli.find_subcommand(name);
    let command = command.with_context(|| format!("no such command: {name} (see bmc --help)"))?;
    Man::new(command.clone()).render(out)?;
    Ok(())
}
