// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A process that ends with the test.

use std::process::Child;

/// Killed on drop.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Neither matters for a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
