// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Parse, dispatch, print the error, exit.

use std::io;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use bmc::cli::Cli;
use bmc::cli::Command;
use bmc::command::attach;
use bmc::command::bench;
use bmc::command::doctor;
use bmc::command::status as output;
use bmc::command::top;
use bmc::host::facts as system;
use bmc::instance;
use bmc::instance::NotAttached;
use bmc::memcached::reuseport as workers;
use bmc::message;
use bmc::view::counters as stats;
use bmc::view::entries;
use clap::CommandFactory as _;

fn main() -> ExitCode {
    let cli = Cli::read();
    message::init(cli.verbose);
    let Err(err) = run(cli) else { return ExitCode::SUCCESS };
    let kind = err.chain().find_map(|err| err.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        // Whoever reads has had enough.
        Some(io::ErrorKind::BrokenPipe) => return ExitCode::SUCCESS,
        Some(io::ErrorKind::PermissionDenied) => {
            message::tell(&format!("{err:#} ({})", system::permission_hint()));
        }
        _ => message::tell(&format!("{err:#}")),
    }
    ExitCode::from(if err.is::<NotAttached>() { 3 } else { 1 })
}

fn run(cli: Cli) -> Result<()> {
    let name = &cli.instance;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match cli.command {
        Command::Attach(args) if args.foreground => attach::foreground(&args, name, &mut out)?,
        Command::Attach(args) => attach::attach(&args, name)?,
        Command::Detach { interfaces } => instance::detach(name, &interfaces)?,
        Command::Flush => instance::flush_named(name)?,
        Command::Status { json } => output::status(name, json, &mut out)?,
        Command::Stats(args) => stats::show(&args, name, &mut out)?,
        Command::Entries { limit, key, json } => {
            entries::show(name, limit, key.as_ref(), json, &mut out)?;
        }
        Command::Top(args) => top::run(&args, name, &mut out)?,
        Command::Bench(args) => bench::run(&args, &mut out)?,
        Command::Doctor { interfaces, json } => doctor::run(&interfaces, name, json, &mut out)?,
        Command::Memcached(args) => match workers::exec(&args)? {},
        Command::Completions { shell } => {
            // Not right to stdout: clap_complete panics if that is closed.
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bmc", &mut text);
            out.write_all(&text)?;
        }
        Command::Man { command: None } => output::man(&mut out)?,
        Command::Man { command: Some(command) } => output::man_of(&command, &mut out)?,
    }
    Ok(out.flush()?)
}
