// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Findings as text for a terminal.

use super::finding::{Finding, Level};

/// A line for each finding, and below it one for its remedy. Lines are wrapped at the width of
/// the terminal.
pub(crate) fn text(findings: &[Finding], width: Option<usize>, has_colour: bool) -> String {
    const LEVEL: usize = 9;

    let longest = findings.iter().map(|finding| finding.about.chars().count()).max();
    let indent = LEVEL + longest.unwrap_or_default() + 2;
    // On a terminal that is too narrow for columns, the text is below the object.
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

/// Wraps text between words. The first line starts at `column`, to which the others are indented.
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

    fn findings() -> [Finding; 2] {
        [
            Finding::ok("the kernel is new", "6.18").about("host"),
            Finding::new(Level::Warning, "LRO is on", "rx-lro", "ethtool -K eth0 lro off")
                .about("eth0"),
        ]
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
