// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What keeps bmc from a place: another instance, or somebody else's XDP program.

use std::fmt;

use anyhow::{Context as _, Result};

use super::Instance;
use super::hook::{Device, Hook, Place};
use crate::host::sys::{self, XdpProgram};

/// What occupies a place of an interface that bmc wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Another instance, by its name.
    Instance(String),
    /// Somebody else's XDP program, which bmc does not replace.
    Program {
        /// Its number and mode.
        program: XdpProgram,
        /// Its name; `None` if this process may not ask for it.
        name: Option<String>,
    },
}

impl Conflict {
    /// Looks for what keeps an instance from a place of an interface. `own` is the instance
    /// that is attached under this name. The caller holds the lock.
    pub fn find(
        device: &Device,
        place: Place,
        name: &str,
        own: Option<&Instance>,
    ) -> Result<Option<Self>> {
        if device.first_name == "lo" || place == Place::Egress {
            return Ok(None);
        }
        for other in Instance::others(name)? {
            let has = |hook: Hook| {
                hook.place == place
                    && hook.device.index == device.index
                    && hook.is_in_place(other.pins.owner(), &other.pins.links())
            };
            if other.hooks()?.into_iter().any(has) {
                return Ok(Some(Self::Instance(other.name)));
            }
        }
        if !place.is_xdp() {
            return Ok(None);
        }
        let ours: Vec<_> = match own {
            Some(own) => own
                .hooks()?
                .iter()
                .filter(|hook| hook.device.index == device.index && hook.place.is_xdp())
                .filter_map(|hook| hook.program_id(own.pins.owner(), &own.pins.links()))
                .collect(),
            None => Vec::new(),
        };
        let xdp = sys::xdp(device.index)
            .with_context(|| format!("cannot ask for the XDP programs of {}", device.first_name))?;
        let foreign = xdp.programs.into_iter().find(|program| !ours.contains(&program.id));
        Ok(foreign.map(|program| Self::Program { program, name: sys::prog_name(program.id) }))
    }

    /// What can be done about it.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::Instance(_) => "bmc detach it first",
            Self::Program { .. } => "it works beside it with --mode tc",
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(name) => write!(f, "already has bmc's instance {name}"),
            Self::Program { program, name } => {
                let (name, id) = (name.as_deref().unwrap_or("of unknown name"), program.id);
                write!(
                    f,
                    "already has the XDP program {name} (id {id}), which bmc does not replace"
                )
            }
        }
    }
}
