// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc completions`: prints the completions for a shell.

use std::io::Write;

use anyhow::Result;
use clap_complete::Shell;

/// Prints the completions of a command line.
pub fn run(mut cli: clap::Command, shell: Shell, out: &mut impl Write) -> Result<()> {
    // clap_complete panics if stdout is closed, so it does not write there itself.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli, "bmc", &mut text);
    Ok(out.write_all(&text)?)
}
