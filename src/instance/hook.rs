// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! One program in one place of one interface, and the pin that records it.
//!
//! A hook is a BPF link, kept alive by its pin. Where the kernel has no link for the place (tc
//! before Linux 6.6, which has no tcx) it is a filter of the clsact qdisc, which stays until it
//! is removed. The pin then holds the program and is made before the filter. An empty directory
//! records that bmc made the qdisc.

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libbpf_rs::{TC_EGRESS, TC_H_CLSACT, TC_H_MIN_EGRESS, TC_H_MIN_INGRESS, TC_INGRESS, TcHook};
use nix::errno::Errno;

use crate::host::sys::{self, LinkInfo, LinkType};
use crate::host::{facts, netlink};

/// The priority of bmc's filters: before all others, because a filter that ends the chain would
/// hide writes.
const PRIORITY: u32 = 1;

/// The two sides of a clsact qdisc.
pub const INGRESS: u32 = (TC_H_CLSACT & 0xffff_0000) | TC_H_MIN_INGRESS;
/// See [`INGRESS`].
pub const EGRESS: u32 = (TC_H_CLSACT & 0xffff_0000) | TC_H_MIN_EGRESS;

/// libbpf-rs wants a program even for queries, which do not use it.
const NO_PROGRAM: BorrowedFd<'static> = sys::STDERR;

/// A place for a program. Places are taken in this order: replies first, so that nothing is
/// served before it is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Packets that leave the interface, in tc.
    Egress,
    /// Packets that come in, in tc.
    Ingress,
    /// Packets that come in, in the driver (native XDP).
    Native,
    /// Packets that come in, in the network stack (generic XDP).
    Generic,
}

impl Place {
    /// The name of the pin of the program for this place.
    pub fn program(self) -> &'static str {
        match self {
            Self::Egress => "tx",
            Self::Ingress => "rx_tc",
            Self::Native | Self::Generic => "rx",
        }
    }

    /// Whether it is a place for XDP.
    pub fn is_xdp(self) -> bool {
        matches!(self, Self::Native | Self::Generic)
    }

    fn link_type(self) -> LinkType {
        match self {
            Self::Egress => LinkType::TcxEgress,
            Self::Ingress => LinkType::TcxIngress,
            Self::Native => LinkType::XdpNative,
            Self::Generic => LinkType::XdpGeneric,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "tc egress",
            Self::Ingress => "tc ingress",
            Self::Native => "native XDP",
            Self::Generic => "generic XDP",
        })
    }
}

/// What keeps a program in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A BPF link.
    Link,
    /// A filter of the clsact qdisc.
    Filter,
}

/// The ends of the names of pins.
const SUFFIXES: [(&str, Place, Carrier); 6] = [
    ("out", Place::Egress, Carrier::Link),
    ("in", Place::Ingress, Carrier::Link),
    ("native", Place::Native, Carrier::Link),
    ("generic", Place::Generic, Carrier::Link),
    ("filter-out", Place::Egress, Carrier::Filter),
    ("filter-in", Place::Ingress, Carrier::Filter),
];

/// The same for the record of a qdisc that bmc made.
const QDISC: &str = "qdisc";

/// The name of the record that bmc made the qdisc of an interface.
pub fn qdisc_name(device: &Device) -> String {
    format!("{}_{QDISC}", device.record())
}

/// An interface as pins record it. Its index survives renaming, and is never reused in a network
/// namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name when bmc was attached.
    pub first_name: String,
    /// Its index when bmc was attached.
    first_index: i32,
    /// Its present index. It may differ after a move to another network namespace.
    pub index: i32,
}

impl Device {
    /// The interface with this name and this index.
    pub fn new(first_name: String, index: i32) -> Self {
        Self { first_name, first_index: index, index }
    }

    /// The interface that has this name at present.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        Ok(Self::new(name.into(), facts::interface(name)?))
    }

    /// Its present name; if it is gone, its name when bmc was attached.
    pub fn name(&self) -> String {
        facts::name_of(self.index).unwrap_or_else(|_| self.first_name.clone())
    }

    fn from_record(text: &str) -> Option<Self> {
        let (name, index) = text.rsplit_once('_')?;
        Some(Self::new(unescape(name), index.parse().ok()?))
    }

    /// Its name and index as the names of pins have them.
    pub fn record(&self) -> String {
        format!("{}_{}", escape(&self.first_name), self.first_index)
    }
}

/// Encodes the name of an interface for bpffs, which allows no dots.
pub fn escape(iface: &str) -> String {
    iface.replace('%', "%25").replace('.', "%2E")
}

/// Undoes [`escape`].
pub fn unescape(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

/// A hook as its pin records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The interface.
    pub device: Device,
    /// Where on the interface.
    pub place: Place,
    /// What keeps the program there.
    pub carrier: Carrier,
}

impl Hook {
    /// The hook of a pin in a directory, with the present index of its interface.
    pub fn pinned(name: &str, dir: &Path) -> Option<Self> {
        let mut hook = Self::from_name(name)?;
        if hook.carrier == Carrier::Link {
            let index = hook.link(dir).map_or(0, |(_, info)| info.ifindex);
            if let Ok(index @ 1..) = i32::try_from(index) {
                hook.device.index = index;
            }
        }
        Some(hook)
    }

    /// Parses the name of a pin.
    fn from_name(name: &str) -> Option<Self> {
        let (device, suffix) = name.rsplit_once('_')?;
        let (_, place, carrier) = SUFFIXES.iter().find(|(s, ..)| *s == suffix)?;
        Some(Self { device: Device::from_record(device)?, place: *place, carrier: *carrier })
    }

    /// Whether it watches the writes of local clients.
    pub fn is_on_loopback(&self) -> bool {
        self.device.first_name == "lo"
    }

    /// The name of its pin.
    pub fn name(&self) -> String {
        let is_mine = |s: &&(&str, Place, Carrier)| (s.1, s.2) == (self.place, self.carrier);
        let suffix = SUFFIXES.iter().find(is_mine).map_or("", |s| s.0);
        format!("{}_{suffix}", self.device.record())
    }

    /// Puts a program in its place and pins it in a directory.
    pub fn attach(
        device: &Device,
        place: Place,
        prog: BorrowedFd<'_>,
        owner: Owner,
        dir: &Path,
    ) -> io::Result<Self> {
        let mut hook = Self { device: device.clone(), place, carrier: Carrier::Link };
        let is_tc = !place.is_xdp();
        // Lets tests use filters on kernels that have tcx.
        let no_tcx = is_tc && env::var_os("BMC_TC").is_some_and(|tc| tc == "clsact");
        let link = if no_tcx {
            Err(Errno::EINVAL.into())
        } else {
            sys::link_create(prog, device.index, place.link_type())
        };
        match link {
            Ok(link) => sys::pin(link.as_fd(), &dir.join(hook.name()))?,
            Err(err) if is_tc && err.raw_os_error() == Some(Errno::EINVAL as i32) => {
                hook.carrier = Carrier::Filter;
                hook.attach_filter(prog, owner, dir)?;
            }
            Err(err) => return Err(err),
        }
        Ok(hook)
    }

    fn attach_filter(&self, prog: BorrowedFd<'_>, owner: Owner, dir: &Path) -> io::Result<()> {
        // Recorded first, so that it is not left behind if bmc is killed in between.
        let qdisc = dir.join(qdisc_name(&self.device));
        let was_ours = qdisc.exists();
        facts::make_directory(&qdisc)?;
        if !sys::clsact_create(self.device.index)? && !was_ours {
            fs::remove_dir(&qdisc)?;
        }
        sys::pin(prog, &dir.join(self.name()))?;
        self.filter(prog, owner).attach().map_err(to_io)?;
        Ok(())
    }

    /// Replaces the program without a gap.
    pub fn exchange(&self, old: &Path, prog: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
        match self.carrier {
            Carrier::Link => {
                let link = sys::pinned(&old.join(self.name()))?;
                sys::link_update(link.as_fd(), prog)
            }
            Carrier::Filter => {
                let mut filter = self.filter(prog, owner);
                filter.replace(true).attach().map(drop).map_err(to_io)
            }
        }
    }

    /// Pins an attached hook in another directory as well.
    pub fn carry_over(&self, old: &Path, new: &Path, prog: BorrowedFd<'_>) -> io::Result<()> {
        let path = new.join(self.name());
        match self.carrier {
            Carrier::Link => {
                let link = sys::pinned(&old.join(self.name()))?;
                sys::pin(link.as_fd(), &path)
            }
            Carrier::Filter => sys::pin(prog, &path),
        }
    }

    /// Opens the link and asks the kernel about it.
    pub fn link(&self, dir: &Path) -> io::Result<(OwnedFd, LinkInfo)> {
        let link = sys::pinned(&dir.join(self.name()))?;
        let info = sys::link_info(link.as_fd())?;
        Ok((link, info))
    }

    /// Whether its program is in its place in this network namespace. Fails without the
    /// permission to ask (`CAP_NET_ADMIN`).
    pub fn try_is_in_place(&self, owner: Owner, dir: &Path) -> io::Result<bool> {
        let index = self.device.index;
        Ok(match (self.carrier, self.place) {
            (Carrier::Filter, _) => self.filter_program(owner).is_some(),
            (Carrier::Link, Place::Native | Place::Generic) => {
                let programs = unless_refused(sys::xdp(index))?.programs;
                let runs = |id| programs.iter().any(|program| program.id == id);
                self.link(dir).is_ok_and(|(_, info)| runs(info.prog_id))
            }
            (Carrier::Link, _) => {
                let tcx = unless_refused(sys::tcx(index, self.place.link_type()))?;
                let has = |id| tcx.iter().any(|tcx| tcx.link == Some(id));
                self.link(dir).is_ok_and(|(_, info)| has(info.id))
            }
        })
    }

    /// The same for a caller that has the permission, because it attaches.
    pub fn is_in_place(&self, owner: Owner, dir: &Path) -> bool {
        self.try_is_in_place(owner, dir).unwrap_or(false)
    }

    /// The id of the program that runs here; `None` if the interface is gone.
    pub fn program_id(&self, owner: Owner, dir: &Path) -> Option<u32> {
        match self.carrier {
            Carrier::Link => {
                let (_, info) = self.link(dir).ok()?;
                (info.ifindex != 0).then_some(info.prog_id)
            }
            Carrier::Filter => self.filter_program(owner),
        }
    }

    /// Removes the pin, and the hook too unless it stays. The link is detached explicitly: the
    /// kernel releases a link that lost its pin only later, and the next attach would find the
    /// place taken.
    pub fn remove(&self, dir: &Path, owner: Owner, stays: bool) -> io::Result<()> {
        match self.carrier {
            Carrier::Filter if !stays => self.remove_filter(owner)?,
            Carrier::Link if !stays => {
                if let Ok((link, _)) = self.link(dir) {
                    // Fails if the interface is gone, and the link with it.
                    let _ = sys::link_detach(link.as_fd());
                }
            }
            _ => {}
        }
        fs::remove_file(dir.join(self.name()))
    }

    fn remove_filter(&self, owner: Owner) -> io::Result<()> {
        if self.filter_program(owner).is_none() {
            return Ok(()); // it went with the interface
        }
        TcHook::detach(&mut self.filter(NO_PROGRAM, owner)).map_err(to_io)
    }

    fn filter_program(&self, owner: Owner) -> Option<u32> {
        self.filter(NO_PROGRAM, owner).query().ok()
    }

    fn filter(&self, prog: BorrowedFd<'_>, owner: Owner) -> TcHook {
        let side = if self.place == Place::Egress { TC_EGRESS } else { TC_INGRESS };
        let mut filter = TcHook::new(prog);
        filter.ifindex(self.device.index).attach_point(side).handle(owner.0).priority(PRIORITY);
        filter
    }
}

/// Which instance a filter belongs to: its handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// The owner of an instance's filters.
    pub fn new(instance: &str) -> Self {
        // FNV-1a; a handle must not be 0.
        let hash = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        Self(instance.bytes().fold(0x811c_9dc5, hash) | 1)
    }
}

/// The interfaces whose qdisc bmc made, by the records in a directory.
pub fn qdiscs(dir: &Path) -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let device = name.to_str().and_then(|n| n.strip_suffix(QDISC)?.strip_suffix('_'));
        devices.extend(device.and_then(Device::from_record));
    }
    Ok(devices)
}

/// Records in another directory as well that bmc made a qdisc.
pub fn carry_qdisc_over(device: &Device, old: &Path, new: &Path) -> io::Result<()> {
    qdiscs(old)?
        .iter()
        .filter(|other| other.index == device.index)
        .try_for_each(|other| facts::make_directory(&new.join(qdisc_name(other))))
}

/// Removes the record of a qdisc that bmc made, and the qdisc too unless it stays or has filters
/// of others.
pub fn remove_qdisc(device: &Device, dir: &Path, stays: bool) -> io::Result<()> {
    let ifindex = device.index;
    if !stays && facts::name_of(ifindex).is_ok() {
        let is_free = |side| netlink::filters(ifindex, side).map(|filters| filters.is_empty());
        if is_free(INGRESS)? && is_free(EGRESS)? {
            let mut qdisc = TcHook::new(NO_PROGRAM);
            qdisc.ifindex(ifindex).attach_point(TC_INGRESS | TC_EGRESS);
            ignore_missing(qdisc.destroy().map_err(to_io))?;
        }
    }
    fs::remove_dir(dir.join(qdisc_name(device)))
}

fn ignore_missing(ret: io::Result<()>) -> io::Result<()> {
    match ret {
        Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(()),
        ret => ret,
    }
}

/// Takes errors for "nothing", since the interface may be gone, but not a lack of permission.
fn unless_refused<T: Default>(answer: io::Result<T>) -> io::Result<T> {
    match answer {
        Err(err) if err.kind() == ErrorKind::PermissionDenied => Err(err),
        answer => Ok(answer.unwrap_or_default()),
    }
}

fn to_io(err: libbpf_rs::Error) -> io::Error {
    let kind = match err.kind() {
        libbpf_rs::ErrorKind::NotFound => ErrorKind::NotFound,
        libbpf_rs::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        libbpf_rs::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_interface_names_and_back() {
        for (iface, name) in [
            ("eth0", "eth0"),
            ("eth0.100", "eth0%2E100"),
            ("a%2Eb", "a%252Eb"),
            ("a%25.b", "a%2525%2Eb"),
            ("under_score", "under_score"),
        ] {
            assert_eq!(escape(iface), name);
            assert_eq!(unescape(name), iface);
        }
    }

    #[test]
    fn reads_the_names_it_gives() {
        for (_, place, carrier) in SUFFIXES {
            for iface in ["eth0", "a_native", "eth0.100"] {
                let device = Device::new(iface.into(), 7);
                let hook = Hook { device, place, carrier };
                assert!(!hook.name().contains('.'));
                assert_eq!(Hook::from_name(&hook.name()), Some(hook));
            }
        }
        assert_eq!(Hook::from_name("eth0_7_qdisc"), None);
        assert_eq!(Hook::from_name("eth0_in"), None);
        assert_eq!(Hook::from_name("eth0"), None);
    }

    #[test]
    fn takes_places_so_that_replies_are_watched_first() {
        assert!(Place::Egress < Place::Ingress);
        assert!(Place::Ingress < Place::Native);
        assert!(Place::Ingress < Place::Generic);
    }
}
