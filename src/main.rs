// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Parse, dispatch, print the error, exit.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use bmc::cli::{Cli, Command};
use bmc::command::{
    attach, bench, completions, detach, doctor, entries, flush, man, memcached, stats, status, top,
};
use bmc::host::facts;
use bmc::instance::NotAttached;
use bmc::message;
use clap::CommandFactory as _;

fn main() -> ExitCode {
    let cli = Cli::read();
    message::init(cli.verbose);
    let Err(err) = run(cli) else { return ExitCode::SUCCESS };
    let kind = err.chain().find_map(|err| err.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        // The reader has had enough, as in bmc entries | head.
        Some(io::ErrorKind::BrokenPipe) => return ExitCode::SUCCESS,
        Some(io::ErrorKind::PermissionDenied) => {
            message::tell(&format!("{err:#} ({})", facts::permission_hint()));
        }
        _ => message::tell(&format!("{err:#}")),
    }
    ExitCode::from(if err.is::<NotAttached>() { 3 } else { 1 })
}

fn run(cli: Cli) -> Result<()> {
    let name = &cli.instance;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match cli.command {
        Command::Attach(args) => attach::run(&args.options(), name, &mut out)?,
        Command::Detach { interfaces } => detach::run(name, &interfaces)?,
        Command::Flush => flush::run(name)?,
        Command::Status { json } => status::run(name, json, &mut out)?,
        Command::Stats(args) => stats::run(&args.options(), name, &mut out)?,
        Command::Entries(args) => entries::run(&args.options(), name, &mut out)?,
        Command::Top(args) => top::run(&args.options(), name, &mut out)?,
        Command::Bench(args) => bench::run(&args.options(), &mut out)?,
        Command::Doctor { interfaces, json } => doctor::run(&interfaces, name, json, &mut out)?,
        Command::Memcached(args) => match memcached::run(&args.options())? {},
        Command::Completions { shell } => completions::run(Cli::command(), shell, &mut out)?,
        Command::Man { command } => man::run(Cli::command(), command.as_deref(), &mut out)?,
    }
    Ok(out.flush()?)
}
