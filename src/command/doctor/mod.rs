// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc doctor`: finds what would stop bmc from working or helping here, and what mends it.
//!
//! It first reads facts, in the way in which `bmc attach` reads them. Each check then judges
//! these facts alone, and words its verdict. Nothing is changed: the programs are loaded once,
//! to see whether the kernel takes them, but not attached.
//!
//! Each check is a file: an enum of its verdicts, `judge()` that chooses one from the facts,
//! and `finding()` that puts it into words. To add a check, add a file and a line in the
//! `mod.rs` next to it.

mod finding;
mod host;
mod interface;
mod memcached;
mod report;
mod subject;

use std::io::{self, IsTerminal as _, Write};

use anyhow::{Result, bail};
use serde_json::json;
use terminal_size::{Width, terminal_size_of};

use self::finding::{Finding, Level};
use self::host::facts::Host;
use self::interface::facts::Interfaces;
use self::memcached::facts::Memcacheds;
use self::subject::Subject;
use crate::instance::lock::Lock;

/// Makes all checks and prints their findings.
///
/// # Errors
///
/// If there is a blocker, after everything was printed.
pub fn run(
    interfaces: &[String],
    instance: &str,
    as_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    // Keeps other commands from changing things meanwhile. Not every user can take it.
    let lock = Lock::shared();
    let subject = Subject::new(instance, &lock);

    let host = Host::read(&subject);
    let interfaces = Interfaces::read(interfaces, &subject);
    let memcacheds = Memcacheds::read(&subject);
    drop(lock);

    let everywhere = memcacheds.listen_everywhere();
    let findings = [
        host::check(&host),
        interface::check(&interfaces, everywhere),
        memcached::check(&memcacheds),
    ]
    .concat();
    if as_json {
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
            "interfaces": interfaces.json(),
            "memcacheds": memcacheds.json(),
        });
        writeln!(out, "{object}")?;
    } else {
        let stdout = io::stdout();
        let width = terminal_size_of(&stdout).map(|(Width(width), _)| usize::from(width));
        let has_colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        write!(out, "{}", report::text(&findings, width, has_colour))?;
    }
    out.flush()?;
    match findings.iter().filter(|finding| finding.level == Level::Blocker).count() {
        0 => Ok(()),
        1 => bail!("1 blocker: see above what mends it"),
        count => bail!("{count} blockers: see above what mends them"),
    }
}
