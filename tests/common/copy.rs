// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A copy of bmc that anybody may run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

/// Removed on drop.
#[derive(Debug)]
pub(crate) struct Copy(pub(crate) PathBuf);

impl Copy {
    /// Makes it, in a directory of its own that has the test's name.
    ///
    /// # Panics
    /// When it cannot be made.
    pub(crate) fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("bmc-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let copy = Self(dir.join("bmc"));
        // Not by this process: what another thread starts meanwhile has the copy open
        // for writing for a moment, and nobody can run it.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_bmc")).arg(&copy.0).status();
        assert!(copied.is_ok_and(|copied| copied.success()), "a copy of bmc");
        for path in [&dir, &copy.0] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("our own");
        }
        copy
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().expect("it is in a directory"));
    }
}
