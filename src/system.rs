// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What the machine offers: privileges, memory, interfaces, a mounted bpffs.

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::MemberAttr;
use libbpf_rs::btf::types::Struct;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::net::if_::if_indextoname;
use nix::net::if_::if_nameindex;
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::BPF_FS_MAGIC;
use nix::sys::statfs::SYSFS_MAGIC;
use nix::sys::statfs::statfs;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use nix::time::clock_getres;
use nix::time::clock_gettime;

/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// How long a jiffy is: the resolution of the clocks that go by them.
pub fn tick() -> Result<Duration> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot ask for the tick")?;
    Ok(tick.into())
}

/// Whole seconds of the monotonic clock, by which the programs go.
pub fn uptime() -> Result<u64> {
    Ok(u64::try_from(now(ClockId::CLOCK_MONOTONIC)?.tv_sec())?)
}

/// The time of day, in seconds since 1970, when the monotonic clock was zero.
pub fn wall_clock() -> Result<u64> {
    ahead(ClockId::CLOCK_REALTIME, ClockId::CLOCK_MONOTONIC)
}

/// By how many seconds the International Atomic Time, as the kernel has it, is ahead
/// of the time of day: 0 until somebody tells the kernel.
pub fn atomic_clock() -> Result<u64> {
    ahead(ClockId::CLOCK_TAI, ClockId::CLOCK_REALTIME)
}

fn now(clock: ClockId) -> Result<TimeSpec> {
    clock_gettime(clock).context("cannot ask for the time")
}

/// By how many seconds, to the nearest one, a clock is ahead of another.
fn ahead(clock: ClockId, other: ClockId) -> Result<u64> {
    let ahead = now(clock)? - now(other)? + TimeSpec::new(0, 500_000_000);
    Ok(u64::try_from(ahead.tv_sec())?)
}

/// The number of the network namespace that this process is in.
pub fn netns() -> Result<u32> {
    let namespace =
        fs::metadata("/proc/self/ns/net").context("cannot look at the network namespace")?;
    Ok(u32::try_from(namespace.ino())?)
}

const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// The capabilities of this process, a bit each.
fn capabilities() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read my own status")?;
    let have = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .context("cannot read my own capabilities")?;
    // CAP_SYS_ADMIN stands for those that were split off from it.
    Ok(if have & SYS_ADMIN == 0 { have } else { have | PERFMON | BPF })
}

/// What this process lacks of the capabilities to load and attach BPF programs;
/// empty if nothing.
pub fn missing_capabilities() -> Result<Vec<&'static str>> {
    let have = capabilities()?;
    let needed = [(BPF, "CAP_BPF"), (NET_ADMIN, "CAP_NET_ADMIN"), (PERFMON, "CAP_PERFMON")];
    Ok(needed.iter().filter(|(bit, _)| have & bit == 0).map(|(_, name)| *name).collect())
}

/// Whether this process may mount bpffs.
pub fn may_mount() -> bool {
    capabilities().is_ok_and(|have| have & SYS_ADMIN != 0)
}

/// Fails unless this process may load and attach BPF programs.
pub fn check_capabilities() -> Result<()> {
    let missing = missing_capabilities()?;
    if !missing.is_empty() {
        bail!("no permission: {} missing (run as root)", missing.join(", "));
    }
    Ok(())
}

/// What to do about something that the kernel does not permit.
pub fn permission_hint() -> String {
    match missing_capabilities() {
        Ok(missing) if !missing.is_empty() => {
            format!("{} missing: run as root", missing.join(", "))
        }
        _ => format!("the capabilities are there; is {BPFFS}/bmc this user's?"),
    }
}

/// The kernel's release, as in "6.1.0-42-amd64".
pub fn release() -> Result<String> {
    setting("/proc/sys/kernel/osrelease")
}

/// The first two numbers of a release, as in `[6, 1]`.
pub fn version(release: &str) -> Option<[u32; 2]> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
}

/// Where the kernel tells its types, which finding the end of memcached takes.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where the kernel tells whether it compiles BPF programs. Only root may look,
/// and only in the initial network namespace.
pub const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Where the kernel tells what it keeps from root.
pub const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Reads a file of the kernel that has one line.
pub fn setting(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().into())
}

/// Bytes that can be had without pushing anybody out, and that this process's
/// cgroups allow: maps are on the account of whoever makes them. No limit of
/// locked memory counts, from Linux 5.11 on.
pub fn memory_available() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .context("no MemAvailable in /proc/meminfo")?;
    Ok(cgroup_limit().map_or(kib << 10, |limit| limit.min(kib << 10)))
}

/// The least that a cgroup (version 2) of this process allows; None for no limit.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new(group).ancestors().filter_map(|group| {
        let file = Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    limits.min()
}

/// How much of the memory that is available a cache may lock: rather less than
/// have the kernel kill somebody.
pub fn memory_to_lock(available: u64) -> u64 {
    available / 16 * 15
}

/// The index of an interface in this network namespace.
pub fn index_of(name: &str) -> io::Result<i32> {
    i32::try_from(if_nametoindex(name)?).map_err(io::Error::other)
}

/// The name that an interface has now.
pub fn name_of(index: i32) -> io::Result<String> {
    let index = u32::try_from(index).map_err(io::Error::other)?;
    let name = if_indextoname(index)?.to_string_lossy().into_owned();
    // nix 0.31 takes a failure for the empty name.
    if name.is_empty() { Err(Errno::ENODEV.into()) } else { Ok(name) }
}

/// The same as [`index_of`] for one that should be there.
pub fn interface(name: &str) -> Result<i32> {
    if let Ok(index) = index_of(name) {
        return Ok(index);
    }
    let names: Vec<_> = if_nameindex()
        .context("cannot list the network interfaces")?
        .iter()
        .map(|i| i.name().to_string_lossy().into_owned())
        .filter(|name| name != "lo")
        .collect();
    if names.is_empty() {
        bail!("no such interface: {name} (there is none but lo)");
    }
    bail!("no such interface: {name} (there are: {})", names.join(", "));
}

/// What tells this thread's network namespace from others.
pub fn network_namespace() -> Result<PathBuf> {
    fs::read_link("/proc/thread-self/ns/net").context("cannot tell the network namespace")
}

/// Whether a network namespace is in use or has a name.
pub fn network_namespace_exists(namespace: &Path) -> bool {
    let list = |dir| fs::read_dir(dir).into_iter().flatten().flatten();
    let is_used = |process: fs::DirEntry| {
        fs::read_link(process.path().join("ns/net")).is_ok_and(|net| net == namespace)
    };
    let is_named = |name: fs::DirEntry| {
        let inode = name.metadata().map(|data| format!("net:[{}]", data.ino()));
        inode.is_ok_and(|inode| Path::new(&inode) == namespace)
    };
    list("/proc").any(is_used) || list("/run/netns").any(is_named)
}

/// Where the kernel keeps the user of a socket: bytes into its `struct sock`. None
/// if it does not tell, having no BTF.
pub fn socket_user_offset() -> Option<u32> {
    let btf = Btf::from_vmlinux().ok()?;
    let sock = btf.type_by_name::<Struct<'_>>("sock")?;
    let user = sock.iter().find(|member| member.name.is_some_and(|name| name == "sk_uid"))?;
    match user.attr {
        MemberAttr::Normal { offset } => Some(offset / u8::BITS),
        MemberAttr::BitField { .. } => None,
    }
}

/// Fills a buffer with random bytes.
pub fn random(buffer: &mut [u8]) -> Result<()> {
    let mut file = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    file.read_exact(buffer).context("cannot read /dev/urandom")
}

/// What there is where bpffs belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// bpffs.
    Mounted,
    /// Nothing, and a mount would be seen by everybody.
    Missing,
    /// Nothing, and a mount would go with this mount namespace.
    Private,
    /// Something else.
    Other,
}

/// Looks at where bpffs belongs.
pub fn bpffs() -> Result<Bpffs> {
    let kind = statfs(BPFFS).with_context(|| format!("cannot look at {BPFFS}"))?.filesystem_type();
    Ok(match kind {
        BPF_FS_MAGIC => Bpffs::Mounted,
        SYSFS_MAGIC if is_initial_mount_namespace() => Bpffs::Missing,
        SYSFS_MAGIC => Bpffs::Private,
        _ => Bpffs::Other,
    })
}

/// Mounts bpffs if it is not. `private` says that a mount for this process's
/// mount namespace alone will do.
pub fn mount_bpffs(private: bool) -> Result<()> {
    match bpffs()? {
        Bpffs::Mounted => return Ok(()),
        Bpffs::Other => {
            bail!("{BPFFS} is neither a bpf file system nor sysfs: something else is mounted there")
        }
        Bpffs::Private if !private => bail!(
            "{BPFFS} has no bpf file system here, and one mounted in this mount namespace would \
             go with it: as `ip netns exec` makes one, use `nsenter --net=/run/netns/NAME bmc \
             ...` instead, or --foreground"
        ),
        Bpffs::Private | Bpffs::Missing => {}
    }
    if !may_mount() {
        bail!(
            "{BPFFS} has no bpf file system, and CAP_SYS_ADMIN to mount it is missing (as root: \
             mount -t bpf bpf {BPFFS})"
        );
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount the bpf file system on {BPFFS}"))
}

/// Whether this mount namespace is init's; where init must not be looked at,
/// the parent's.
fn is_initial_mount_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let initial = namespace("1").or_else(|| namespace(&parent_id().to_string()));
    initial.is_none_or(|initial| namespace("self") == Some(initial))
}

/// Whether the kernel measures how long programs run.
pub fn measures_run_time() -> bool {
    setting("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on == "1")
}

/// Creates a directory for root alone; fine if it is there.
pub fn make_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() == ErrorKind::AlreadyExists => Ok(()),
        ret => ret,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_a_release() {
        assert_eq!(version("6.1.0-42-amd64"), Some([6, 1]));
        assert_eq!(version("6.18-rc1"), Some([6, 18]));
        assert_eq!(version("unknown"), None);
    }
}
