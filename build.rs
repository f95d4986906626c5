// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Compiles the programs in `bpf/` and turns them into the skeletons of `src/skel.rs`, makes the
//! table of counters of `src/abi.rs`, and the library of `src/memcached/reuseport.rs`.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;

/// Newest first; each of them is tested.
const CLANGS: [&str; 4] = ["clang-19", "clang-16", "clang-14", "clang"];

/// What bmc attaches, what it shares with the tool, what the benchmarks measure it with, and
/// the bad network of the stress test.
const SOURCES: [&str; 6] = ["bmc", "gone", "abi", "bench", "flood", "chaos"];

/// clang's warnings would not be shown, so they are errors. BPF ISA v3 is the
/// newest that all of these compilers know.
const FLAGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-mcpu=v3"];

fn main() {
    if let Err(err) = build() {
        eprintln!("error: {err}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=vmlinux");
    println!("cargo::rerun-if-changed=src/memcached/preload.c");
    println!("cargo::rerun-if-env-changed=BMC_CLANG");
    println!("cargo::rerun-if-env-changed=CC");

    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let clang = find_clang()?;
    // For the test that compares what each compiler's code costs the verifier.
    println!("cargo::rustc-env=BMC_BUILT_WITH={}", clang.display());
    let include = |dir| format!("-I{}", root.join(dir).display());
    for source in SOURCES {
        SkeletonBuilder::new()
            .source(root.join(format!("bpf/{source}.bpf.c")))
            .clang(&clang)
            .clang_args(
                FLAGS.map(String::from).into_iter().chain([include("bpf"), include("vmlinux")]),
            )
            .reference_obj(true)
            .build_and_generate(out.join(format!("{source}.skel.rs")))
            .map_err(|err| format!("cannot build bpf/{source}.bpf.c: {err:#}"))?;
    }
    let counters = fs::read_to_string(root.join("bpf/counters.h"))?;
    let counters = counter_table(&counters).map_err(|err| format!("bpf/counters.h: {err}"))?;
    fs::write(out.join("counters.rs"), counters)?;
    // With the compiler that links Rust's programs too.
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([out.join("preload.so"), root.join("src/memcached/preload.c")])
        .status()
        .map_err(|err| format!("cannot run {}: {err}", compiler.to_string_lossy()))?;
    if !status.success() {
        return Err("cannot build src/memcached/preload.c".into());
    }
    Ok(())
}

/// Turns the list of counters into Rust. The struct itself comes from the skeleton: a counter
/// that is not in it does not compile.
fn counter_table(header: &str) -> Result<String, Box<dyn Error>> {
    let mut groups = Vec::new();
    let mut counters = Vec::new();
    let without_comment = |part: &str| part.split_once("*/").map_or(part, |(_, rest)| rest).into();
    let list: Vec<String> = header.split("/*").map(without_comment).collect();
    let list = list.concat();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (macro_name, behind) = rest.split_once('(').ok_or("not a list of macros")?;
        let (arguments, behind) = behind.split_once("\")").ok_or("help that does not end")?;
        let (words, help) = arguments.split_once('"').ok_or("no help")?;
        if help.contains('"') {
            return Err(format!("help is one string: {help}").into());
        }
        let words: Vec<_> = words.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
        match (macro_name, &words[..]) {
            ("GROUP", [kind, name]) => groups.push((*kind, *name, help)),
            ("COUNTER", [name, unit, kind]) => counters.push((*name, *unit, *kind, help)),
            _ => return Err(format!("not understood: {macro_name}({arguments}\")").into()),
        }
        rest = behind.trim_start();
    }
    let mut text = String::new();
    writeln!(text, "/// Counters that are shown together.")?;
    writeln!(text, "pub const GROUPS: [Group; {}] = [", groups.len())?;
    for (kind, name, help) in &groups {
        writeln!(text, "    Group {{ prefix: \"{kind}_\", name: \"{name}\", help: \"{help}\" }},")?;
    }
    writeln!(text, "];\n\n/// Every counter, in the order of `struct bmc_stats`.")?;
    writeln!(text, "pub const COUNTERS: [Counter; {}] = [", counters.len())?;
    for (name, unit, kind, help) in counters {
        let is_of = |(group, ..): &&(&str, &str, &str)| *group == kind;
        let reason = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('_'));
        match (groups.iter().find(is_of), reason) {
            (Some(_), Some(_)) => {}
            (None, None) if kind == "total" => {}
            _ => return Err(format!("{name} is not of the kind {kind}").into()),
        }
        write!(text, "    Counter {{ name: \"{name}\", unit: \"{unit}\", help: \"{help}\", ")?;
        writeln!(text, "offset: std::mem::offset_of!(types::bmc_stats, {name}) }},")?;
    }
    writeln!(text, "];")?;
    Ok(text)
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|err| format!("{name}: {err}").into())
}

fn find_clang() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(clang) = env::var_os("BMC_CLANG") {
        return Ok(clang.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    CLANGS
        .iter()
        .flat_map(|clang| env::split_paths(&path).map(move |dir| dir.join(clang)))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            "no clang found to compile the BPF programs with: install one \
             (Debian: apt install clang-19) or set BMC_CLANG to its path"
                .into()
        })
}
