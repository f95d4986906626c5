// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What is known of the kernel, and of what this process may do with it.

use std::fs;

use crate::command::doctor::subject::Subject;
use crate::host::facts::{self, Bpffs};
use crate::instance::pins::check_access;
use crate::load::options::Options;
use crate::load::programs::try_load;

/// What is known of the machine; `None` for what could not be read.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// The start of a command line about the instance.
    pub(crate) bmc: String,
    pub(crate) is_attached: bool,
    pub(crate) release: Option<String>,
    pub(crate) missing_capabilities: Vec<&'static str>,
    pub(crate) bpffs: Option<Bpffs>,
    pub(crate) may_mount: bool,
    /// Why this process cannot use bmc's directory on bpffs.
    pub(crate) no_access: Option<String>,
    pub(crate) jit: Option<String>,
    pub(crate) has_btf: bool,
    pub(crate) lockdown: Option<String>,
    /// Bytes that are available, and bytes that `bmc attach` locks by default.
    pub(crate) memory: Option<u64>,
    pub(crate) memory_wanted: u64,
    pub(crate) programs: Programs,
}

/// Whether the kernel takes the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Programs {
    NotTried,
    Loaded {
        notices_the_end: bool,
    },
    /// With this reason.
    Refused(String),
}

impl Host {
    pub(crate) fn read(subject: &Subject<'_>) -> Self {
        let missing_capabilities = facts::missing_capabilities().unwrap_or_default();
        let programs = if missing_capabilities.is_empty() {
            match try_load() {
                Ok(notices_the_end) => Programs::Loaded { notices_the_end },
                Err(err) => Programs::Refused(format!("{err:#}")),
            }
        } else {
            Programs::NotTried
        };
        Self {
            bmc: subject.bmc.clone(),
            is_attached: subject.own.is_some(),
            release: facts::release().ok(),
            missing_capabilities,
            bpffs: facts::bpffs().ok(),
            may_mount: facts::may_mount(),
            no_access: check_access().err().map(|err| err.to_string()),
            jit: facts::setting(facts::JIT).ok(),
            has_btf: fs::metadata(facts::BTF).is_ok_and(|file| file.len() > 0),
            lockdown: facts::setting(facts::LOCKDOWN).ok(),
            memory: facts::memory_available().ok(),
            memory_wanted: Options::default().memory,
            programs,
        }
    }
}

#[cfg(test)]
impl Host {
    /// A host with which nothing is wrong.
    pub(crate) fn good() -> Host {
        Host {
            bmc: "bmc".into(),
            is_attached: false,
            release: Some("6.12.9-amd64".into()),
            missing_capabilities: Vec::new(),
            bpffs: Some(Bpffs::Mounted),
            may_mount: true,
            no_access: None,
            jit: Some("1".into()),
            has_btf: true,
            lockdown: Some("[none] integrity confidentiality".into()),
            memory: Some(1 << 30),
            memory_wanted: 256 << 20,
            programs: Programs::Loaded { notices_the_end: true },
        }
    }
}
