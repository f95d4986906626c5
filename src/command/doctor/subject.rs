// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The instance that doctor is asked about.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::host::facts;
use crate::instance::lock::Lock;
use crate::instance::{AttachedInterface, Instance};

/// The instance that is asked about.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    /// How a command about it starts.
    pub(crate) bmc: String,
    /// It, if it is attached in this network namespace.
    pub(crate) own: Option<Instance>,
    /// What it is attached to then.
    pub(crate) attached: Vec<AttachedInterface>,
    /// Whether it is attached in another one.
    pub(crate) is_elsewhere: bool,
    /// Whether instances could not be looked at.
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

    /// The command that attaches it to these interfaces and to its own, with what there
    /// is to say of it.
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

/// How a command about an instance starts.
pub(crate) fn bmc(instance: &str) -> String {
    if instance == "default" { "bmc".into() } else { format!("bmc --instance {instance}") }
}
