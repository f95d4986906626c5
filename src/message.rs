// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Messages to the user on stderr, and the messages of libbpf.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

/// The last lines of a verifier log, which say why it refused a program.
const LOG_TAIL: usize = 20;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static LIBBPF: Mutex<String> = Mutex::new(String::new());

/// Has libbpf's messages collected, for [`libbpf`] to return.
pub fn init(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    set_print(Some((PrintLevel::Warn, |_, text| {
        LIBBPF.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    })));
}

/// Prints a message. A failure is ignored: the terminal may be gone.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "bmc: {text}");
}

/// Prints a message if `-v` was given.
pub fn detail(text: &str) {
    if VERBOSE.load(Ordering::Relaxed) {
        tell(text);
    }
}

/// Takes the messages that libbpf has printed since the last call: the last lines, or all with
/// `-v`.
pub fn libbpf() -> String {
    let text = std::mem::take(&mut *LIBBPF.lock().unwrap_or_else(PoisonError::into_inner));
    why(&text, VERBOSE.load(Ordering::Relaxed))
}

fn why(text: &str, all: bool) -> String {
    let lines: Vec<_> = text.lines().collect();
    // Lines after the log only say that there was one.
    let end = lines.iter().rposition(|line| line.contains("END PROG LOAD LOG"));
    let log = &lines[..end.filter(|_| !all).unwrap_or(lines.len())];
    let skip = if all { 0 } else { log.len().saturating_sub(LOG_TAIL) };
    log[skip..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_end_of_a_verifier_log() {
        let log: Vec<_> = (0..100).map(|n| format!("{n}: instruction")).collect();
        let text = format!(
            "-- BEGIN PROG LOAD LOG --\n{}\nR1 is wrong\n-- END PROG LOAD LOG --\nfailed\n",
            log.join("\n")
        );
        let short = why(&text, false);
        assert_eq!(short.lines().count(), LOG_TAIL);
        assert!(short.ends_with("99: instruction\nR1 is wrong"), "{short}");
        assert_eq!(why(&text, true), text.trim_end());
        assert_eq!(why("too big\n", false), "too big");
    }
}
