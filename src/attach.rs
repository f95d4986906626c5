// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc attach`: load the programs, make or take over the maps, put the
//! programs to their places.

use std::fmt;
use std::fs;
use std::io;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use libbpf_rs::ErrorKind;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapType;
use libbpf_rs::OpenObject;
use libbpf_rs::num_possible_cpus;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;
use nix::errno::Errno;

use crate::cli;
use crate::cli::Cidr;
use crate::cli::Mode;
use crate::hook::Device;
use crate::hook::Hook;
use crate::hook::Place;
use crate::hook::carry_qdisc_over;
use crate::instance;
use crate::instance::Dir;
use crate::instance::GONE;
use crate::instance::Instance;
use crate::instance::Lock;
use crate::instance::NotAttached;
use crate::instance::WATCH;
use crate::kernel;
use crate::kernel::Xdp;
use crate::kernel::XdpProgram;
use crate::layout::LAYOUT;
use crate::layout::Layout;
use crate::layout::map_bytes;
use crate::memcached;
use crate::message;
use crate::netlink;
use crate::skel::BmcSkel;
use crate::skel::BmcSkelBuilder;
use crate::skel::OpenBmcSkel;
use crate::skel::gone::GoneSkel;
use crate::skel::gone::GoneSkelBuilder;
use crate::skel::types::bmc_config;
use crate::skel::types::bmc_prefix4;
use crate::skel::types::bmc_prefix6;
use crate::stats;
use crate::system;

/// Sources that are answered unless `--allow` says otherwise: the private,
/// link-local, loopback and unique-local networks.
const ALLOW: [&str; 8] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "fe80::/10",
    "fc00::/7",
    "::1/128",
];

/// Between two lines of statistics.
const INTERVAL: Duration = Duration::from_secs(1);

/// Attaches as the arguments say.
pub fn attach(args: &cli::Attach, name: &str) -> Result<()> {
    system::check_capabilities()?;
    system::mount_bpffs(args.foreground)?;
    let _lock = Lock::create()?;
    let old = Dir::of(name).exists().then(|| Instance::find(name)).transpose()?;
    if let Some(old) = &old {
        check_old(old, args)?;
    }
    let targets = targets(args)?;
    for target in &targets {
        check_conflicts(target, name, old.as_ref())?;
    }

    let mut storage = MaybeUninit::uninit();
    let mut loading = Loading::open(args, &mut storage)?;
    let kept = match &old {
        Some(old) => loading.reuse(old)?,
        None => None,
    };
    if kept.is_none() {
        check_memory(args.memory)?;
    }
    memcached::check(&args.interfaces, &args.ports())?;
    let config = loading.configure(args, kept.as_ref())?;
    let skel = loading.load()?;

    let dir = Dir::of(name);
    let mut staging = Staging::new(&dir, old.as_ref(), &skel, kept.is_some())?;
    staging.watch(&config);
    // The cache goes on meanwhile only if no entry can become wrong by it: a
    // place that was not watched has not seen the writes that came by there.
    let goes_on = match (&kept, &old) {
        (Some(was), Some(old)) => {
            is_alike(was, &config)
                && watches_all(old, &targets)?
                && old.dir.watches_memcached()
                && !old.is_idle()?
        }
        _ => false,
    };
    if !goes_on {
        staging.idle()?;
    }
    for target in &targets {
        staging.place(target)?;
    }
    if !goes_on {
        // From here on they come by.
        staging.expect(memcached::pending_flushes(&args.interfaces, &args.ports())?)?;
    }
    staging.commit(!goes_on)
}

/// Whether entries filled under one configuration are right under the other.
fn is_alike(a: &bmc_config, b: &bmc_config) -> bool {
    (a.nr_ports, a.ports, a.max_age, a.unknown_ttl)
        == (b.nr_ports, b.ports, b.max_age, b.unknown_ttl)
}

fn watches_all(old: &Instance, targets: &[Target]) -> Result<bool> {
    let hooks = old.hooks()?;
    Ok(targets.iter().filter(|target| !target.is_xdp()).all(|target| {
        hooks.iter().any(|hook| {
            hook.device.index == target.device.index
                && hook.place == target.place
                && hook.is_in_place(old.dir.owner(), &old.dir.links())
        })
    }))
}

fn check_old(old: &Instance, args: &cli::Attach) -> Result<()> {
    if !args.replace {
        let ifaces: Vec<_> = old.interfaces()?.into_iter().map(|iface| iface.name).collect();
        bail!("already attached to {} (use --replace to change that)", ifaces.join(", "));
    }
    if !old.dir.is_here() {
        bail!(
            "instance {} is attached in another network namespace (bmc detach it, or use another \
             --instance)",
            old.name
        );
    }
    Ok(())
}

/// A place that is to get a program.
struct Target {
    device: Device,
    place: Place,
    /// May be left out if the driver cannot.
    optional: bool,
}

impl Target {
    fn is_xdp(&self) -> bool {
        self.place.is_xdp()
    }
}

/// All places, in the order in which they are taken; the loopback first.
fn targets(args: &cli::Attach) -> Result<Vec<Target>> {
    let mut devices: Vec<Device> = Vec::new();
    if !args.no_loopback {
        devices.push(Device::named("lo")?);
    }
    for iface in &args.interfaces {
        if !devices.iter().any(|other| other.first_name == *iface) {
            devices.push(Device::named(iface)?);
        }
    }
    let xdp = match args.mode {
        Mode::Auto | Mode::Native => Some(Place::Native),
        Mode::Generic => Some(Place::Generic),
        Mode::Tc => None,
    };
    let mut targets = Vec::new();
    for place in [Some(Place::Egress), Some(Place::Ingress), xdp].into_iter().flatten() {
        for device in &devices {
            if !(place.is_xdp() && device.first_name == "lo") {
                targets.push(Target {
                    device: device.clone(),
                    place,
                    optional: args.mode == Mode::Auto && place.is_xdp(),
                });
            }
        }
    }
    Ok(targets)
}

/// See [`netlink::Link::drops_replies`].
fn drops_replies(device: &Device) -> Result<Option<bool>> {
    match netlink::link(device.index) {
        Ok(link) => Ok(link.drops_replies()),
        // Gone meanwhile: attaching says so.
        Err(err) if err.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(Some(false)),
        Err(err) => Err(err).with_context(|| format!("cannot look at {}", device.first_name)),
    }
}

fn xdp(device: &Device) -> Result<Xdp> {
    kernel::xdp(device.index)
        .with_context(|| format!("cannot ask for the XDP programs of {}", device.first_name))
}

/// Fails if another instance or a foreign XDP program is where we want to be.
fn check_conflicts(target: &Target, name: &str, old: Option<&Instance>) -> Result<()> {
    let iface = &target.device.first_name;
    match conflict(&target.device, target.place, name, old)? {
        Some(conflict) => bail!("{iface} {conflict} ({})", conflict.way_out()),
        None => Ok(()),
    }
}

/// What takes a place of an interface that bmc is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Another instance, by its name.
    Instance(String),
    /// Somebody else's XDP program, which bmc does not replace.
    Program {
        /// Its number and mode.
        program: XdpProgram,
        /// Its name; none if we may not ask for it.
        name: Option<String>,
    },
}

impl Conflict {
    fn way_out(&self) -> &'static str {
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

/// Whether something keeps an instance from a place of an interface; `old` is
/// what is attached under its name, for which the caller has the lock.
pub fn conflict(
    device: &Device,
    place: Place,
    name: &str,
    old: Option<&Instance>,
) -> Result<Option<Conflict>> {
    if device.first_name == "lo" || place == Place::Egress {
        return Ok(None);
    }
    for other in instance::others(name)? {
        let has = |hook: Hook| {
            hook.place == place
                && hook.device.index == device.index
                && hook.is_in_place(other.dir.owner(), &other.dir.links())
        };
        if other.hooks()?.into_iter().any(has) {
            return Ok(Some(Conflict::Instance(other.name)));
        }
    }
    if !place.is_xdp() {
        return Ok(None);
    }
    let ours: Vec<_> = match old {
        Some(old) => old
            .hooks()?
            .iter()
            .filter(|hook| hook.device.index == device.index && hook.place.is_xdp())
            .filter_map(|hook| hook.program_id(old.dir.owner(), &old.dir.links()))
            .collect(),
        None => Vec::new(),
    };
    let foreign = xdp(device)?.programs.into_iter().find(|program| !ours.contains(&program.id));
    Ok(foreign.map(|program| Conflict::Program { program, name: kernel::prog_name(program.id) }))
}

/// Rather fails than have the kernel kill somebody for memory.
fn check_memory(memory: u64) -> Result<()> {
    let available = system::memory_available()?;
    if memory > system::memory_to_lock(available) {
        bail!(
            "--memory {}M is more than can be had: {}M are available",
            memory >> 20,
            available >> 20
        );
    }
    Ok(())
}

/// The programs and maps, not in the kernel yet.
struct Loading<'obj> {
    skel: OpenBmcSkel<'obj>,
    layout: Layout,
}

impl<'obj> Loading<'obj> {
    fn open(args: &cli::Attach, storage: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let mut skel = BmcSkelBuilder::default()
            .open(storage)
            .map_err(|err| libbpf_failed(err, "cannot open the BPF programs"))?;
        let cpus = num_possible_cpus().context("cannot count the CPUs")? as u64;
        // Whatever does not grow with --memory.
        let any = Layout { buckets: 1, slabs: 1, senders: 1, leases: 1, expiries: 1, flow_sets: 1 };
        let fixed = skel
            .open_object()
            .maps()
            .filter(|map| any.entries(&map.name().to_string_lossy()).is_none())
            .map(|map| {
                let copies = (map.map_type() == MapType::PercpuArray).then_some(cpus);
                map_bytes(map.value_size(), map.max_entries(), copies)
            })
            .sum();
        let layout = Layout::new(args.memory, fixed)?;
        for mut map in skel.open_object_mut().maps_mut() {
            if let Some(entries) = layout.entries(&map.name().to_string_lossy()) {
                map.set_max_entries(entries).context("cannot size the maps")?;
            }
        }
        Ok(Self { skel, layout })
    }

    /// Takes over the maps of an instance, and returns its configuration, if
    /// they are just what would be made anew.
    fn reuse(&mut self, old: &Instance) -> Result<Option<bmc_config>> {
        let Ok(config) = old.config() else {
            message::tell("the cache is another version's: starting with an empty one");
            return Ok(None);
        };
        let mut handles = Vec::new();
        for map in self.skel.open_object().maps() {
            let name = map.name().to_string_lossy().into_owned();
            let Some(pin) = pin_name(&name).filter(|pin| *pin != CONFIG) else { continue };
            let handle = old.dir.map(pin).ok().filter(|handle| {
                handle.map_type() == map.map_type()
                    && handle.key_size() == map.key_size()
                    && handle.value_size() == map.value_size()
                    && handle.max_entries() == map.max_entries()
            });
            let Some(handle) = handle else {
                message::tell("the cache has another size or layout: starting with an empty one");
                return Ok(None);
            };
            handles.push((name, handle));
        }
        for mut map in self.skel.open_object_mut().maps_mut() {
            if let Some((_, handle)) = handles.iter().find(|(name, _)| map.name() == name.as_str())
            {
                map.reuse_fd(handle.as_fd()).context("cannot take the maps over")?;
            }
        }
        Ok(Some(config))
    }

    /// Sets all options. Entries are found only by the hash that filed them.
    fn configure(&mut self, args: &cli::Attach, kept: Option<&bmc_config>) -> Result<bmc_config> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos());
        let tick = nanos(system::tick()?)?;
        let mut cfg = bmc_config {
            memory: args.memory,
            max_age: nanos(args.max_age)?,
            unknown_ttl: nanos(args.unknown_ttl)?,
            tick,
            wall: system::wall_clock()?,
            tai: system::atomic_clock()?,
            layout: LAYOUT,
            buckets: self.layout.buckets,
            slabs: self.layout.slabs,
            senders: self.layout.senders,
            leases: self.layout.leases,
            expiries: self.layout.expiries,
            flow_sets: self.layout.flow_sets,
            netns: system::netns()?,
            sk_uid: system::socket_user_offset().unwrap_or_default(),
            generic: u32::from(args.mode == Mode::Generic),
            ..Default::default()
        };
        if let Some(kept) = kept {
            (cfg.seed, cfg.nh) = (kept.seed, kept.nh);
        } else {
            let mut bytes = vec![0; size_of_val(&cfg.seed) + size_of_val(&cfg.nh)];
            system::random(&mut bytes)?;
            let (seed, nh) = bytes.split_at(size_of_val(&cfg.seed));
            fill(&mut cfg.seed, seed, u64::from_ne_bytes);
            fill(&mut cfg.nh, nh, u32::from_ne_bytes);
        }
        for (to, port) in cfg.ports.iter_mut().zip(args.ports()) {
            *to = port.to_be();
            cfg.nr_ports += 1;
        }
        let parsed = ALLOW.map(str::parse);
        let allow = if args.allow.is_empty() {
            parsed.into_iter().collect::<Result<_, _>>().map_err(|err: String| anyhow!(err))?
        } else {
            args.allow.clone()
        };
        set_allow(&mut cfg, &allow);
        let rodata = self.skel.maps.rodata_data.as_deref_mut();
        rodata.context("the BPF programs have no configuration")?.cfg = cfg;
        Ok(cfg)
    }

    fn load(self) -> Result<BmcSkel<'obj>> {
        self.skel.load().map_err(|err| libbpf_failed(err, "cannot load the BPF programs"))
    }
}

/// Fills an array from bytes, an element's worth at a time.
fn fill<T, const N: usize>(to: &mut [T], from: &[u8], element: impl Fn([u8; N]) -> T) {
    for (to, from) in to.iter_mut().zip(from.chunks_exact(N)) {
        *to = element(std::array::from_fn(|i| from[i]));
    }
}

fn set_allow(cfg: &mut bmc_config, allow: &[Cidr]) {
    let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = allow.iter().partition(|cidr| cidr.addr.is_ipv4());
    for (to, cidr) in cfg.allow4.iter_mut().zip(v4) {
        let [mut net, mut mask] = [[0]; 2];
        let (addr, bits) = cidr.bytes();
        fill(&mut net, &addr, u32::from_ne_bytes);
        fill(&mut mask, &bits, u32::from_ne_bytes);
        *to = bmc_prefix4 { net: net[0], mask: mask[0] };
        cfg.nr_allow4 += 1;
    }
    for (to, cidr) in cfg.allow6.iter_mut().zip(v6) {
        let (addr, bits) = cidr.bytes();
        *to = bmc_prefix6::default();
        fill(&mut to.net, &addr, u64::from_ne_bytes);
        fill(&mut to.mask, &bits, u64::from_ne_bytes);
        cfg.nr_allow6 += 1;
    }
}

/// A message for what libbpf could not do, with what it has to say.
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

const CONFIG: &str = "config";

/// What a map is pinned as. None for maps of libbpf's own making.
fn pin_name(map: &str) -> Option<&str> {
    if map.ends_with(".rodata") {
        return Some(CONFIG);
    }
    (!map.contains('.')).then(|| map.strip_prefix("bmc_").unwrap_or(map))
}

/// Loads what has the kernel tell when memcached stops to listen.
fn load_gone<'obj>(
    skel: &BmcSkel<'_>,
    cfg: &bmc_config,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Result<GoneSkel<'obj>> {
    let mut gone = GoneSkelBuilder::default().open(storage)?;
    let rodata = gone.maps.rodata_data.as_deref_mut();
    let rodata = &mut rodata.context("bmc_gone has no configuration")?.cfg;
    // It reads nothing else of it.
    (rodata.nr_ports, rodata.ports, rodata.netns) = (cfg.nr_ports, cfg.ports, cfg.netns);
    for mut map in gone.open_object_mut().maps_mut() {
        // Its .rodata is its own, and named after the object.
        if let Some(ours) = skel.object().maps().find(|ours| ours.name() == map.name()) {
            map.reuse_fd(ours.as_fd())?;
        }
    }
    gone.load().context("cannot load bmc_gone")
}

/// Loads what [`attach`] loads, in the least memory, and lets go of it again:
/// nothing is attached or pinned. Returns whether the kernel will tell when
/// memcached stops to listen.
///
/// # Errors
///
/// If the kernel refuses the programs that bmc cannot do without.
pub fn try_load() -> Result<bool> {
    let args = cli::Attach::with(&["--memory", "16M"])?;
    let mut storage = MaybeUninit::uninit();
    let mut loading = Loading::open(&args, &mut storage)?;
    let config = loading.configure(&args, None)?;
    let skel = loading.load()?;
    let mut storage = MaybeUninit::uninit();
    let told = load_gone(&skel, &config, &mut storage).is_ok();
    message::libbpf(); // what it said of a refusal, which nobody wants here
    Ok(told)
}

/// An instance that is being made. Undone when dropped, unless committed.
struct Staging<'a> {
    own: &'a Dir,
    dir: Dir,
    old: Option<&'a Instance>,
    skel: &'a BmcSkel<'a>,
    keeps_maps: bool,
    /// The old instance idles for our sake.
    idled: bool,
    undo: Vec<Undo>,
    is_committed: bool,
}

/// How to put one place of the old instance back.
enum Undo {
    Exchange(Hook),
    Reattach(Hook),
}

impl<'a> Staging<'a> {
    fn new(
        own: &'a Dir,
        old: Option<&'a Instance>,
        skel: &'a BmcSkel<'a>,
        keeps_maps: bool,
    ) -> Result<Self> {
        let dir = own.building();
        let staging = Self {
            own,
            dir,
            old,
            skel,
            keeps_maps,
            idled: false,
            undo: Vec::new(),
            is_committed: false,
        };
        staging.pin().context("cannot pin the maps and programs")?;
        Ok(staging)
    }

    fn pin(&self) -> Result<()> {
        self.dir.create()?;
        let object = self.skel.object();
        for map in object.maps() {
            if let Some(name) = map.name().to_str().and_then(pin_name) {
                kernel::pin(map.as_fd(), &self.dir.join(name))?;
            }
        }
        for (name, prog) in self.programs() {
            kernel::pin(prog, &self.dir.join(name))?;
        }
        self.dir.note("netns", &system::network_namespace()?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let since = self.old.filter(|_| self.keeps_maps).and_then(|old| old.dir.noted("since"));
        self.dir.note("since", &since.unwrap_or_else(|| now.into()))?;
        Ok(())
    }

    /// Has the kernel tell when memcached stops to listen, if it can.
    fn watch(&self, cfg: &bmc_config) {
        let Err(err) = self.attach_gone(cfg) else { return };
        let said = message::libbpf();
        message::detail(&format!("{err:#}\n{said}"));
        message::tell(
            "this kernel does not tell when memcached is gone (-v says why): run bmc flush \
             whenever memcached was restarted, or old values are served for up to --max-age",
        );
    }

    fn attach_gone(&self, cfg: &bmc_config) -> Result<()> {
        let mut storage = MaybeUninit::uninit();
        let gone = load_gone(self.skel, cfg, &mut storage)?;
        let link = gone.progs.bmc_gone.attach_trace().context("cannot attach bmc_gone")?;
        kernel::pin(gone.progs.bmc_gone.as_fd(), &self.dir.join(GONE))?;
        kernel::pin(link.as_fd(), &self.dir.join(WATCH))?;
        Ok(())
    }

    fn programs(&self) -> [(&'static str, BorrowedFd<'a>); 5] {
        let progs = &self.skel.progs;
        [
            (Place::Native.program(), progs.bmc_rx.as_fd()),
            (Place::Ingress.program(), progs.bmc_rx_tc.as_fd()),
            (Place::Egress.program(), progs.bmc_tx.as_fd()),
            ("now", progs.bmc_now.as_fd()),
            ("flush", progs.bmc_flush.as_fd()),
        ]
    }

    fn program(&self, place: Place) -> BorrowedFd<'a> {
        match place {
            Place::Egress => self.skel.progs.bmc_tx.as_fd(),
            Place::Ingress => self.skel.progs.bmc_rx_tc.as_fd(),
            Place::Native | Place::Generic => self.skel.progs.bmc_rx.as_fd(),
        }
    }

    /// Has both the old cache and the new one idle.
    fn idle(&mut self) -> Result<()> {
        if let Some(old) = self.old {
            self.idled = true;
            old.dir.idle()?;
        }
        instance::set_idle(&self.dir.map("global")?)
    }

    /// What was ordered of memcached before: delayed `flush_all`s.
    fn expect(&self, mut flushes: Vec<u64>) -> Result<()> {
        let most = instance::FLUSHES_MAX;
        if let Some(more) = flushes.len().checked_sub(most + 1) {
            flushes.sort_unstable();
            let wait = flushes[more].saturating_sub(system::uptime()?) + 3;
            bail!(
                "{} memcacheds have a delayed flush_all before them, and bmc keeps {most} in mind \
                 (try again in {wait} s)",
                flushes.len()
            );
        }
        instance::set_due(&self.dir.map("global")?, &flushes)
    }

    fn place(&mut self, target: &Target) -> Result<()> {
        let Target { device, place, optional } = target;
        let iface = &device.first_name;
        let prog = self.program(*place);
        let drops = if *place == Place::Native { drops_replies(device)? } else { Some(false) };
        if *optional && drops != Some(false) {
            message::detail(&format!("{iface}: its peer may drop what XDP sends: using tc"));
            return Ok(());
        }
        ensure!(
            drops != Some(true),
            "cannot attach to {iface}: its peer drops what XDP sends (use --mode tc)"
        );
        if let Some(old) = self.old {
            let links = old.dir.links();
            carry_qdisc_over(device, &links, &self.dir.links())?;
            for hook in old.hooks()? {
                let rivals = hook.place == *place || hook.place.is_xdp() && place.is_xdp();
                if hook.device.index != device.index
                    || !rivals
                    || !hook.is_in_place(old.dir.owner(), &links)
                {
                    continue;
                }
                if hook.place == *place {
                    message::detail(&format!("{iface}: exchanging the program {place}"));
                    return self
                        .exchange(hook, old)
                        .with_context(|| format!("cannot exchange the program on {iface}"));
                }
                // Native and generic exclude each other.
                let (link, _) = hook.link(&links)?;
                kernel::link_detach(link.as_fd())
                    .with_context(|| format!("cannot change the mode of {iface}"))?;
                self.undo.push(Undo::Reattach(hook));
            }
        }
        message::detail(&format!("{iface}: attaching the program {place}"));
        let links = self.dir.links();
        match Hook::attach(device, *place, prog, self.dir.owner(), &links) {
            Err(err) if *optional && !is_refusal(&err) => {
                message::detail(&format!("{iface} has no native XDP ({err}): using tc"));
                Ok(())
            }
            Err(err) => Err(attach_failed(err, iface, *place)),
            Ok(_) => Ok(()),
        }
    }

    fn exchange(&mut self, hook: Hook, old: &Instance) -> Result<()> {
        let prog = self.program(hook.place);
        let links = old.dir.links();
        hook.carry_over(&links, &self.dir.links(), prog)?;
        hook.exchange(&links, prog, self.dir.owner())?;
        self.undo.push(Undo::Exchange(hook));
        Ok(())
    }

    /// Makes it the instance of its name.
    fn commit(mut self, flush: bool) -> Result<()> {
        if self.old.is_some() { self.dir.exchange(self.own) } else { self.dir.rename_to(self.own) }
            .context("cannot rename the instance's directory")?;
        self.is_committed = true;
        if flush {
            instance::flush(self.own)?;
        }
        if self.old.is_some() {
            self.dir.remove(Some(self.own)).context("cannot remove what was replaced")?;
        }
        Ok(())
    }

    /// Puts the old instance back to where it was.
    fn restore(&self, old: &Instance) -> Result<()> {
        let links = old.dir.links();
        for undo in self.undo.iter().rev() {
            match undo {
                Undo::Exchange(hook) => {
                    let prog = old.dir.program(hook.place.program())?;
                    hook.exchange(&links, prog.as_fd(), old.dir.owner())?;
                }
                Undo::Reattach(hook) => {
                    let prog = old.dir.program(hook.place.program())?;
                    fs::remove_file(links.join(hook.name()))?;
                    let owner = old.dir.owner();
                    Hook::attach(&hook.device, hook.place, prog.as_fd(), owner, &links)?;
                }
            }
        }
        if self.idled {
            instance::flush(&old.dir)?;
        }
        Ok(())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        // The rest is removed even if this fails; the old instance then idles.
        if let Some(Err(err)) = self.old.map(|old| self.restore(old)) {
            message::tell(&format!("cannot restore what was attached: {err:#}"));
        }
        let kept = self.old.map(|old| &old.dir);
        if let Err(err) = self.dir.remove(kept) {
            message::tell(&format!("cannot remove what was begun: {err}"));
        }
    }
}

/// Whether an XDP program was refused for who we are or what is there, not for
/// what the driver can do.
fn is_refusal(err: &io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EPERM | Errno::EACCES | Errno::EBUSY | Errno::EEXIST))
}

fn attach_failed(err: io::Error, iface: &str, place: Place) -> anyhow::Error {
    let errno = err.raw_os_error().map(Errno::from_raw);
    let hint = match (errno, place) {
        (Some(Errno::EOPNOTSUPP), Place::Native) => {
            ": its driver has no native XDP (--mode auto uses tc then)"
        }
        (Some(Errno::EBUSY | Errno::EEXIST), place) if place.is_xdp() => {
            ": another XDP program was put there meanwhile"
        }
        (_, Place::Native) if !is_refusal(&err) => {
            ": its driver refuses native XDP, perhaps for the MTU (--mode auto uses tc then)"
        }
        _ => "",
    };
    anyhow::Error::new(err).context(format!("cannot attach to {iface}{hint}"))
}

/// Attaches, prints statistics until a signal comes, and detaches.
pub fn foreground(args: &cli::Attach, name: &str, out: &mut impl Write) -> Result<()> {
    let (ended, end) = mpsc::channel();
    // Before anything is attached: a signal must not leave that behind.
    ctrlc::set_handler(move || _ = ended.send(())).context("cannot wait for signals")?;
    attach(args, name)?;
    let guard = Attached(name);
    let followed = stats::follow(name, || end.recv_timeout(INTERVAL).is_err(), out);
    if followed.as_ref().is_err_and(anyhow::Error::is::<NotAttached>) {
        std::mem::forget(guard); // somebody else was faster
        return followed;
    }
    guard.detach().and(followed)
}

/// An attached instance, by its name; detached when dropped, so also in a panic.
pub struct Attached<'a>(pub &'a str);

impl Attached<'_> {
    /// Detaches it, and tells whether that failed.
    pub fn detach(self) -> Result<()> {
        let name = self.0;
        std::mem::forget(self);
        instance::detach(name, &[])
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(err) = instance::detach(self.0, &[]) {
            message::tell(&format!("{err:#}"));
        }
    }
}
