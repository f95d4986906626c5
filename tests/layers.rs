// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Which part of the tool may use which: the arrows of `src/`, and no circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each part, and the parts that it may use. `tests` at the end of a file may use more.
const MAY_USE: [(&str, &[&str]); 11] = [
    ("format", &[]),
    ("message", &[]),
    ("skel", &[]),
    ("abi", &["skel"]),
    ("host", &["abi"]),
    ("memcached", &["host", "message"]),
    ("load", &["abi", "host", "message", "skel"]),
    ("instance", &["abi", "host", "load", "message", "skel"]),
    ("view", &["abi", "format", "host", "instance"]),
    (
        "command",
        &["abi", "format", "host", "instance", "load", "memcached", "message", "skel", "view"],
    ),
    ("cli", &["abi", "command", "load", "memcached"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every module by its path, as in `instance::hook`, with its text up to its tests.
fn modules() -> BTreeMap<String, String> {
    fn collect(directory: &Path, modules: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                collect(&path, modules);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let name = path.strip_prefix(source()).expect("it is below").with_extension("");
            let name = name.to_str().expect("ASCII").replace('/', "::");
            let name = name.strip_suffix("::mod").unwrap_or(&name).to_string();
            let text = fs::read_to_string(&path).expect("text");
            let text = text.split("#[cfg(test)]").next().expect("a first part").to_string();
            modules.insert(name, text);
        }
    }
    let mut modules = BTreeMap::new();
    collect(&source(), &mut modules);
    modules
}

/// The paths that a `use` tree stands for: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    if let Some((before, rest)) = tree.split_once('{') {
        let inner = rest.rsplit_once('}').expect("a closing brace").0;
        let mut depth = 0;
        let mut start = 0;
        for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    if !inner[start..at].trim().is_empty() {
                        expand(&format!("{prefix}{}", before.trim()), &inner[start..at], paths);
                    }
                    start = at + 1;
                }
                _ => {}
            }
        }
    } else {
        let path = tree.split(" as ").next().expect("a first part").trim();
        paths.push(format!("{prefix}{path}"));
    }
}

/// The modules that a module uses. `mod` declarations are no use.
fn used(name: &str, text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().expect("a first part"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut paths = Vec::new();
    for statement in code.split("use ").skip(1) {
        let tree = statement.split(';').next().expect("a first part");
        if ["crate::", "super::", "self::"].iter().any(|start| tree.starts_with(start)) {
            expand("", tree, &mut paths);
        }
    }
    // Paths that are written out where they are used.
    for rest in code.split("crate::").skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        paths.push(format!("crate::{}", &rest[..end.unwrap_or(rest.len())]));
    }
    let mut used = BTreeSet::new();
    for path in paths {
        let mut at: Vec<&str> = name.split("::").collect();
        let mut found: Option<Vec<&str>> = None;
        for (nth, part) in path.split("::").enumerate() {
            match part {
                "crate" if nth == 0 => at.clear(),
                "self" => {}
                "super" => _ = at.pop(),
                part => {
                    at.push(part);
                    if modules.contains_key(&at.join("::")) {
                        found = Some(at.clone());
                    } else {
                        at.pop();
                        // What is left names something in the module.
                        found = found.or_else(|| Some(at.clone()));
                        break;
                    }
                }
            }
        }
        let found = found.unwrap_or(at).join("::");
        if found != name && modules.contains_key(&found) {
            used.insert(found);
        }
    }
    used
}

#[test]
fn each_part_uses_only_parts_below_it() {
    let modules = modules();
    let may_use: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let part = |module: &str| module.split("::").next().expect("a first part").to_string();
    let parts: BTreeSet<_> = modules
        .keys()
        .map(|module| part(module))
        .filter(|p| !["main", "lib"].contains(&&**p))
        .collect();
    let known: BTreeSet<_> = may_use.keys().map(ToString::to_string).collect();
    assert_eq!(parts, known, "MAY_USE names every part of src/ and no other");
    for (name, text) in &modules {
        let own = part(name);
        let Some(allowed) = may_use.get(own.as_str()) else { continue };
        for other in used(name, text, &modules) {
            let other_part = part(&other);
            assert!(
                other_part == own || allowed.contains(&other_part.as_str()),
                "{name} uses {other}, but {own} may use only {allowed:?}"
            );
        }
    }
}

#[test]
fn no_file_uses_itself_by_way_of_others() {
    fn visit<'a>(
        name: &'a str,
        uses: &'a BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) {
        if let Some(start) = path.iter().position(|other| *other == name) {
            panic!("a circle: {} -> {name}", path[start..].join(" -> "));
        }
        if done.contains(name) {
            return;
        }
        path.push(name);
        for other in &uses[name] {
            visit(other, uses, path, done);
        }
        path.pop();
        done.insert(name);
    }
    let modules = modules();
    let uses: BTreeMap<_, _> =
        modules.iter().map(|(name, text)| (name.clone(), used(name, text, &modules))).collect();
    let arrows: usize = uses.values().map(BTreeSet::len).sum();
    assert!(arrows > 200, "only {arrows} uses found");
    let mut done = BTreeSet::new();
    for name in uses.keys() {
        visit(name, &uses, &mut Vec::new(), &mut done);
    }
}

#[test]
fn unsafe_code_and_the_command_line_are_each_in_one_place() {
    for (name, text) in modules() {
        assert!(!text.contains("unsafe {") || name == "host::sys", "{name} has unsafe code");
        let is_cli = name == "main" || name.split("::").next() == Some("cli");
        let prints_it = ["command::man", "command::completions"].contains(&name.as_str());
        assert!(!text.contains("clap") || is_cli || prints_it, "{name} knows of clap");
    }
}
