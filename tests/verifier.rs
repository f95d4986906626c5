// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the programs cost the verifier, against `tests/verifier.txt`.
//!
//! That file has a line for each compiler, kernel and program. A count that has
//! grown by more than a tenth fails: some loop is walked once more for each path
//! that leads to it. `scripts/verifier.sh` runs this for each clang that is
//! installed; `scripts/verifier.sh --update` writes the file anew.

mod fixture;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use fixture::Bmc;
use fixture::Config;
use nix::sys::utsname::uname;

/// The file, and the variable that makes this test write it.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verifier.txt");
const UPDATE: &str = "BMC_UPDATE_VERIFIER";
/// What the kernel allows.
const LIMIT: u32 = 1_000_000;

/// "clang-19 6.18": counts differ from one to the other.
fn place() -> String {
    let clang = Path::new(env!("BMC_BUILT_WITH")).file_name().unwrap();
    let release = uname().unwrap().release().to_string_lossy().into_owned();
    let kernel: Vec<_> = release.split('.').take(2).collect();
    format!("{} {}", clang.to_string_lossy(), kernel.join("."))
}

#[test]
fn the_verifier_has_no_more_to_do_than_before() {
    let Some(bmc) = Bmc::load(&Config { listener: true, ..Config::default() }) else {
        return;
    };
    let counts = bmc.verified();
    let place = place();
    for (program, count) in &counts {
        println!("{place} {program} {count}");
        assert!(*count < LIMIT);
    }
    let baseline = fs::read_to_string(BASELINE).unwrap_or_default();
    if std::env::var_os(UPDATE).is_some() {
        let other = |line: &&str| !line.starts_with(&format!("{place} "));
        let mut lines: Vec<_> = baseline.lines().filter(other).map(String::from).collect();
        for (program, count) in &counts {
            let mut line = String::new();
            write!(line, "{place} {program} {count}").unwrap();
            lines.push(line);
        }
        lines.sort();
        fs::write(BASELINE, lines.join("\n") + "\n").unwrap();
        return;
    }
    for (program, count) in &counts {
        let prefix = format!("{place} {program} ");
        let Some(line) = baseline.lines().find(|line| line.starts_with(&prefix)) else {
            println!("no line for {prefix}in tests/verifier.txt: nothing to compare with");
            continue;
        };
        let before: u32 = line[prefix.len()..].parse().unwrap();
        assert!(*count <= before + before / 10, "{program}: {count} instructions, {before} before");
    }
}
