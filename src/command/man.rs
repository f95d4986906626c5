// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc man`: prints the manual page, of all commands or of one.

use std::io::Write;

use anyhow::{Context as _, Result};
use clap_mangen::Man;

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
    let mut text = Vec::new();
    page.render_extra_section(&mut text)?;
    write!(out, "{}", String::from_utf8(text)?.replace(".SH EXTRA", ".SH \"EXIT STATUS\""))?;
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
