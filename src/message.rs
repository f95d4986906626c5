// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Messages for people, on stderr, and what libbpf has to say.

use std::io;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use libbpf_rs::PrintLevel;
use libbpf_rs::set_print;

/// Lines at the end of a verifier's log that say why.
const LOG_TAIL: usize = 20;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static LIBBPF: Mutex<String> = Mutex::new(String::new());

/// Keeps libbpf's messages until they are asked for.
pub fn init(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    set_print(Some((PrintLevel::Warn, |_, text| {
        LIBBPF.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    })));
}

/// Tells something, if anybody can still be told: a terminal may be gone.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "bmc: {text}");
}

/// Tells something with `-v` only.
pub fn detail(text: &str) {
    if VERBOSE.load(Ordering::Relaxed) {
        tell(text);
    }
}

/// What libbpf has said since this was asked last: its end, or with `-v` all.
pub fn libbpf() -> String {
    let text = std::mem::take(&mut *LIBBPF.lock().unwrap_or_else(PoisonError::into_inner));
    why(&text, VERBOSE.load(Ordering::Relaxed))
}

fn why(text: &str, all: bool) -> String {
    let lines: Vec<_> = text.lines().collect();
    // What follows the log only says that there was one.
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
