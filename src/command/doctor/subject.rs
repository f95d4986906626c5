// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The instance that doctor is asked about.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::host::facts;
use crate::instance::lock::Lock;
use crate::instance::{AttachedInterface, Instance};

/// The instance that doctor is asked about.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    /// The start of a command line about it.
    pub(crate) bmc: String,
    /// The instance itself, if it is attached in this network namespace.
    pub(crate) own: Option<Instance>,
    /// The interfaces that it is attached to.
    pub(crate) attached: Vec<AttachedInterface>,
    /// Whether it is attached in another network namespace.
    pub(crate) is_elsewhere: bool,
    /// Whether this process may not look at instances.
    pub(crate) is_hidden: bool,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(name: &'a str, lock: &Result<Option<Lock>>) -> Self {
        let found = matches!(lock, Ok(Some(_))).then(|| Instance::find(name).ok()).flatten();
        let is_elsewhere = found.as_ref().is_some_and(|found| !found.pins.is_here());
        let own = found.filter(|_| !is_elsewhere);
        let attached = own.as_ref().and_then(|own| own.interfaces().ok()).unwrap_or_default();
        Self { name, bmc: bmc(name), own, attached, is_elsewhere, is_hidden: lock.is_err() }
    }

    /// The command that attaches the instance to these interfaces, and to those that it has
    /// already, with a comment.
    pub(crate) fn attach(&self, interfaces: &[String], comment: Option<&str>) -> String {
        let own = self.attached.iter().map(|interface| &interface.name[..]);
        let own = own.filter(|name| facts::index_of(name).is_ok());
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

/// The start of a command line about an instance.
pub(crate) fn bmc(instance: &str) -> String {
    if instance == "default" { "bmc".into() } else { format!("bmc --instance {instance}") }
}
