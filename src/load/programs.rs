// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The BPF programs and maps: opened, sized, configured and loaded.

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, Skel as _, SkelBuilder as _};
use libbpf_rs::{ErrorKind, MapCore as _, MapType, OpenMapMut, OpenObject, num_possible_cpus};

use super::config;
use super::layout::{Layout, map_bytes};
use super::options::Options;
use crate::abi::types::bmc_config;
use crate::message;
use crate::skel::gone::{GoneSkel, GoneSkelBuilder};
use crate::skel::{BmcSkel, BmcSkelBuilder, OpenBmcSkel};

/// The programs and maps before they are loaded into the kernel.
pub struct Loading<'obj> {
    skel: OpenBmcSkel<'obj>,
    layout: Layout,
}

impl<'obj> Loading<'obj> {
    /// Opens the object and sizes the maps so that together they lock `memory` bytes.
    pub fn open(memory: u64, storage: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let mut skel = BmcSkelBuilder::default()
            .open(storage)
            .map_err(|err| libbpf_failed(err, "cannot open the BPF programs"))?;
        let cpus = num_possible_cpus().context("cannot count the CPUs")? as u64;
        let fixed = skel
            .open_object()
            .maps()
            .filter(|map| !Layout::sizes(&map.name().to_string_lossy()))
            .map(|map| {
                let copies = (map.map_type() == MapType::PercpuArray).then_some(cpus);
                map_bytes(map.value_size(), map.max_entries(), copies)
            })
            .sum();
        let layout = Layout::new(memory, fixed)?;
        for mut map in skel.open_object_mut().maps_mut() {
            if let Some(entries) = layout.entries(&map.name().to_string_lossy()) {
                map.set_max_entries(entries).context("cannot size the maps")?;
            }
        }
        Ok(Self { skel, layout })
    }

    /// The maps, to compare them with existing ones.
    pub fn object(&self) -> &OpenObject {
        self.skel.open_object()
    }

    /// The maps, to replace them by existing ones.
    pub fn maps_mut(&mut self) -> impl Iterator<Item = OpenMapMut<'_>> {
        self.skel.open_object_mut().maps_mut()
    }

    /// Sets all options. `kept` is the configuration of the maps that are taken over.
    pub fn configure(
        &mut self,
        options: &Options,
        kept: Option<&bmc_config>,
    ) -> Result<bmc_config> {
        let config = config::encode(options, &self.layout, kept)?;
        let rodata = self.skel.maps.rodata_data.as_deref_mut();
        rodata.context("the BPF programs have no configuration")?.cfg = config;
        Ok(config)
    }

    /// Loads everything into the kernel.
    pub fn load(self) -> Result<BmcSkel<'obj>> {
        self.skel.load().map_err(|err| libbpf_failed(err, "cannot load the BPF programs"))
    }
}

/// Loads the program that notices when memcached stops listening. It shares the maps of
/// the others.
pub fn load_gone<'obj>(
    skel: &BmcSkel<'_>,
    config: &bmc_config,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Result<GoneSkel<'obj>> {
    let mut gone = GoneSkelBuilder::default().open(storage)?;
    let rodata = gone.maps.rodata_data.as_deref_mut();
    let rodata = &mut rodata.context("bmc_gone has no configuration")?.cfg;
    // These are all that it reads.
    (rodata.nr_ports, rodata.ports, rodata.netns) = (config.nr_ports, config.ports, config.netns);
    for mut map in gone.open_object_mut().maps_mut() {
        // Its .rodata has the name of its own object, and so stays its own.
        if let Some(ours) = skel.object().maps().find(|ours| ours.name() == map.name()) {
            map.reuse_fd(ours.as_fd())?;
        }
    }
    gone.load().context("cannot load bmc_gone")
}

/// Loads everything in the least memory and lets go of it again; nothing is attached or
/// pinned. Returns whether the kernel can also notice when memcached stops listening.
///
/// # Errors
///
/// If the kernel refuses programs that bmc cannot do without.
pub fn try_load() -> Result<bool> {
    let options = Options { memory: *super::layout::MEMORY.start(), ..Options::default() };
    let mut storage = MaybeUninit::uninit();
    let mut loading = Loading::open(options.memory, &mut storage)?;
    let config = loading.configure(&options, None)?;
    let skel = loading.load()?;
    let mut storage = MaybeUninit::uninit();
    let notices_the_end = load_gone(&skel, &config, &mut storage).is_ok();
    message::libbpf(); // drop what libbpf said about a refusal
    Ok(notices_the_end)
}

/// An error for what libbpf could not do, with libbpf's own messages.
fn libbpf_failed(err: libbpf_rs::Error, what: &str) -> anyhow::Error {
    let kind = err.kind();
    let said = message::libbpf();
    let err = anyhow::Error::new(err);
    match kind {
        ErrorKind::PermissionDenied if !said.contains("PROG LOAD LOG") => err.context(format!(
            "{what}: not permitted (in a container, or is the kernel locked down?)"
        )),
        ErrorKind::OutOfMemory => err.context(format!("{what}: not enough memory")),
        _ if said.is_empty() => err.context(what.to_string()),
        _ => err.context(format!("{what}:\n{said}\nbmc: the kernel refused that (-v for all)")),
    }
}
