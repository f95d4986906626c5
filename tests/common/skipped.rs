// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How a test says that it is left out.

use std::io::Write as _;

/// Says why a test, or a part of it, does not run here.
pub(crate) fn skipped(test: &str, why: &str) {
    // Not by eprintln!, which is silent when a test passes.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {why}");
}
