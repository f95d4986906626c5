// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc doctor`: what would stop bmc from working or helping here, and what
//! mends it.
//!
//! Each part first reads facts, where `bmc attach` reads them too, and then judges
//! them by a function of these facts alone. Nothing is changed: the programs are
//! loaded once to see whether the kernel takes them, but not attached.

mod host;
mod interface;
mod memcached;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::io::IsTerminal as _;
use std::io::Write;

use anyhow::Result;
use anyhow::bail;
use serde_json::Value;
use serde_json::json;
use terminal_size::Width;
use terminal_size::terminal_size_of;

use crate::instance::Instance;
use crate::instance::Interface;
use crate::instance::Lock;
use crate::system;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// bmc works, but is of less use than it could be, or of none.
    Warning,
    /// `bmc attach` fails, or what it serves could be wrong.
    Blocker,
}

impl Level {
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Note => "\x1b[36m",
            Self::Warning => "\x1b[33m",
            Self::Blocker => "\x1b[1;31m",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Blocker => "blocker",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// The object: "host", an interface, a memcached.
    about: String,
    /// What is said of it.
    what: String,
    /// The value that was read, and from where.
    evidence: String,
    /// What mends it: a command, as far as there is one. None for [`Level::Ok`].
    remedy: Option<String>,
}

impl Finding {
    fn json(&self) -> Value {
        json!({
            "level": self.level.to_string(),
            "about": self.about,
            "what": self.what,
            "evidence": self.evidence,
            "remedy": self.remedy,
        })
    }
}

/// Findings about one object.
struct Findings {
    about: String,
    all: Vec<Finding>,
}

impl Findings {
    fn about(about: impl Into<String>) -> Self {
        Self { about: about.into(), all: Vec::new() }
    }

    fn ok(&mut self, what: impl Into<String>, evidence: impl Into<String>) {
        self.push(Level::Ok, what, evidence, None);
    }

    fn add(
        &mut self,
        level: Level,
        what: impl Into<String>,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(level, what, evidence, Some(remedy.into()));
    }

    fn push(
        &mut self,
        level: Level,
        what: impl Into<String>,
        evidence: impl Into<String>,
        remedy: Option<String>,
    ) {
        let (what, evidence) = (what.into(), evidence.into());
        self.all.push(Finding { level, about: self.about.clone(), what, evidence, remedy });
    }
}

/// The instance that is asked about.
struct Patient<'a> {
    name: &'a str,
    /// How a command about it starts.
    bmc: String,
    /// It, if it is attached in this network namespace.
    own: Option<Instance>,
    /// What it is attached to then.
    attached: Vec<Interface>,
    /// Whether it is attached in another one.
    is_elsewhere: bool,
    /// Whether instances could not be looked at.
    is_hidden: bool,
}

impl<'a> Patient<'a> {
    fn new(name: &'a str, lock: &Result<Option<Lock>>) -> Self {
        let found = matches!(lock, Ok(Some(_))).then(|| Instance::find(name).ok()).flatten();
        let is_elsewhere = found.as_ref().is_some_and(|found| !found.dir.is_here());
        let own = found.filter(|_| !is_elsewhere);
        let attached = own.as_ref().and_then(|own| own.interfaces().ok()).unwrap_or_default();
        Self { name, bmc: bmc(name), own, attached, is_elsewhere, is_hidden: lock.is_err() }
    }

    /// The command that attaches it to these interfaces and to its own, with what there
    /// is to say of it.
    fn attach(&self, interfaces: &[String], comment: Option<&str>) -> String {
        let own = self.attached.iter().map(|interface| &interface.name[..]);
        let own = own.filter(|name| system::index_of(name).is_ok());
        let names: BTreeSet<_> = own.chain(interfaces.iter().map(String::as_str)).collect();
        let names = Vec::from_iter(names).join(" ");
        let mut command = format!("{} attach {names}", self.bmc);
        let mut comments = Vec::from_iter(comment);
        if self.own.is_some() {
            command += " --replace";
            comments.push("with the options that it was attached with");
        }
        format!("{command}   # {}", comments.join("; "))
    }
}

/// How a command about an instance starts.
fn bmc(instance: &str) -> String {
    if instance == "default" { "bmc".into() } else { format!("bmc --instance {instance}") }
}

/// Looks at everything and says what it found.
///
/// # Errors
///
/// If something blocks, after all of it was said.
pub fn run(
    interfaces: &[String],
    instance: &str,
    as_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    // Held, so that no verb is at work meanwhile. Not for everybody to have.
    let lock = Lock::shared();
    let patient = Patient::new(instance, &lock);

    let host = host::Host::read(&patient);
    let interfaces = interface::Interfaces::read(interfaces, &patient);
    let memcacheds = memcached::Memcacheds::read(&patient);
    drop(lock);

    let everywhere = memcacheds.listen_everywhere();
    let findings = [host.judge(), interfaces.judge(everywhere), memcacheds.judge()].concat();
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
        write!(out, "{}", text(&findings, width, has_colour))?;
    }
    out.flush()?;
    match findings.iter().filter(|finding| finding.level == Level::Blocker).count() {
        0 => Ok(()),
        1 => bail!("1 blocker: see above what mends it"),
        count => bail!("{count} blockers: see above what mends them"),
    }
}

/// A line for each finding, and one for its remedy below; lines that a terminal
/// has no room for are broken.
fn text(findings: &[Finding], width: Option<usize>, has_colour: bool) -> String {
    const LEVEL: usize = 9;

    let longest = findings.iter().map(|finding| finding.about.chars().count()).max();
    let indent = LEVEL + longest.unwrap_or_default() + 2;
    // What is too narrow for columns has the text below.
    let width = width.unwrap_or(usize::MAX);
    let column = if indent > width / 2 { 4 } else { indent };
    let mut text = String::new();
    for finding in findings {
        let Finding { level, about, what, evidence, remedy } = finding;
        let head = if has_colour {
            format!("{}{:<LEVEL$}\x1b[0m{about}", level.colour(), level.to_string())
        } else {
            format!("{:<LEVEL$}{about}", level.to_string())
        };
        let used = LEVEL + about.chars().count();
        text += &head;
        if column < indent {
            text.push('\n');
            text += &" ".repeat(column);
        } else {
            text += &" ".repeat(indent - used);
        }
        text += &wrapped(&format!("{what} ({evidence})"), width, column);
        if let Some(remedy) = remedy {
            text += &" ".repeat(column);
            text += &wrapped(&format!("-> {remedy}"), width, column + 3);
        }
    }
    let counts = [Level::Blocker, Level::Warning, Level::Note].map(|level| {
        let count = findings.iter().filter(|finding| finding.level == level).count();
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {level}{plural}")
    });
    text + &counts.join(", ") + "\n"
}

/// Breaks a text between words. Its first line has started at the column that
/// the others are indented to.
fn wrapped(text: &str, width: usize, column: usize) -> String {
    let mut lines = String::new();
    let mut at = column;
    for word in text.split(' ') {
        let len = word.chars().count();
        if at > column && at + 1 + len > width {
            lines += &format!("\n{}", " ".repeat(column));
            at = column;
        } else if at > column {
            lines.push(' ');
            at += 1;
        }
        lines += word;
        at += len;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let mut host = Findings::about("host");
        host.ok("the kernel is new", "6.18");
        let mut eth0 = Findings::about("eth0");
        eth0.add(Level::Warning, "LRO is on", "rx-lro", "ethtool -K eth0 lro off");
        [host.all, eth0.all].concat()
    }

    #[test]
    fn prints_a_line_for_each_finding_and_its_remedy_below() {
        assert_eq!(
            text(&findings(), None, false),
            "ok       host  the kernel is new (6.18)\n\
             warning  eth0  LRO is on (rx-lro)\n\
             \x20              -> ethtool -K eth0 lro off\n\
             0 blockers, 1 warning, 0 notes\n"
        );
    }

    #[test]
    fn fits_the_terminal() {
        assert_eq!(
            text(&findings(), Some(32), false),
            "ok       host  the kernel is new\n\
             \x20              (6.18)\n\
             warning  eth0  LRO is on\n\
             \x20              (rx-lro)\n\
             \x20              -> ethtool -K\n\
             \x20                 eth0 lro off\n\
             0 blockers, 1 warning, 0 notes\n"
        );
        let narrow = text(&findings(), Some(24), false);
        assert!(
            narrow.starts_with("ok       host\n    the kernel is new\n    (6.18)\n"),
            "{narrow}"
        );
    }

    #[test]
    fn colours_nothing_but_the_level() {
        let text = text(&findings(), None, true);
        assert!(text.contains("\x1b[33mwarning  \x1b[0meth0  LRO"), "{text:?}");
        assert_eq!(text.matches('\x1b').count(), 4);
    }
}
