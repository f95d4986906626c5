// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! One program at one place of one interface, and the pin that records it.
//!
//! A hook is a BPF link where the kernel has one for the place, and then its pin
//! is what keeps it. Without tcx (before Linux 6.6) it is a filter of the
//! clsact qdisc, which stays until it is removed; the pin then holds the program
//! and is there before the filter. An empty directory records that the qdisc is
//! ours.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use libbpf_rs::TC_EGRESS;
use libbpf_rs::TC_H_CLSACT;
use libbpf_rs::TC_H_MIN_EGRESS;
use libbpf_rs::TC_H_MIN_INGRESS;
use libbpf_rs::TC_INGRESS;
use libbpf_rs::TcHook;
use nix::errno::Errno;

use crate::kernel;
use crate::kernel::LinkInfo;
use crate::kernel::LinkType;
use crate::netlink;
use crate::system;

/// Before all other filters: one that ends the chain would hide writes from us.
const PRIORITY: u32 = 1;

/// The two sides of a clsact qdisc.
pub const INGRESS: u32 = (TC_H_CLSACT & 0xffff_0000) | TC_H_MIN_INGRESS;
/// See [`INGRESS`].
pub const EGRESS: u32 = (TC_H_CLSACT & 0xffff_0000) | TC_H_MIN_EGRESS;

/// libbpf-rs wants one, the questions that need none are not told it.
const NO_PROGRAM: BorrowedFd<'static> = kernel::STDERR;

/// A place for a program, in the order in which they are taken: replies first,
/// so that nothing is served that is not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What leaves the interface.
    Egress,
    /// What comes in.
    Ingress,
    /// What comes in, in the driver.
    Native,
    /// What comes in, as XDP of the stack.
    Generic,
}

impl Place {
    /// The program for this place, as it is pinned.
    pub fn program(self) -> &'static str {
        match self {
            Self::Egress => "tx",
            Self::Ingress => "rx_tc",
            Self::Native | Self::Generic => "rx",
        }
    }

    /// Whether it is one of the two for XDP.
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

/// What holds the program at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A BPF link.
    Link,
    /// A filter of the clsact qdisc.
    Filter,
}

/// How a pin's name ends.
const SUFFIXES: [(&str, Place, Carrier); 6] = [
    ("out", Place::Egress, Carrier::Link),
    ("in", Place::Ingress, Carrier::Link),
    ("native", Place::Native, Carrier::Link),
    ("generic", Place::Generic, Carrier::Link),
    ("filter-out", Place::Egress, Carrier::Filter),
    ("filter-in", Place::Ingress, Carrier::Filter),
];

/// Instead of one of the above, for a qdisc of ours.
const QDISC: &str = "qdisc";

/// The name of the record that an interface's qdisc is ours.
pub fn qdisc_name(iface: &str) -> String {
    format!("{}_{QDISC}", escape(iface))
}

/// An interface's name, fit for bpffs, which allows no dots.
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
    pub iface: String,
    /// Where on the interface.
    pub place: Place,
    /// By which means.
    pub carrier: Carrier,
}

impl Hook {
    /// Reads a pin's name.
    pub fn from_name(name: &str) -> Option<Self> {
        let (iface, suffix) = name.rsplit_once('_')?;
        let (_, place, carrier) = SUFFIXES.iter().find(|(s, ..)| *s == suffix)?;
        Some(Self { iface: unescape(iface), place: *place, carrier: *carrier })
    }

    /// The pin's name.
    pub fn name(&self) -> String {
        let is_mine = |s: &&(&str, Place, Carrier)| (s.1, s.2) == (self.place, self.carrier);
        let suffix = SUFFIXES.iter().find(is_mine).map_or("", |s| s.0);
        format!("{}_{suffix}", escape(&self.iface))
    }

    /// Puts a program to its place and pins that in a directory.
    pub fn attach(
        iface: &str,
        ifindex: i32,
        place: Place,
        prog: BorrowedFd<'_>,
        owner: Owner,
        dir: &Path,
    ) -> io::Result<Self> {
        let mut hook = Self { iface: iface.into(), place, carrier: Carrier::Link };
        let is_tc = !place.is_xdp();
        // For tests on kernels that have tcx.
        let no_tcx = is_tc && env::var_os("BMC_TC").is_some_and(|tc| tc == "clsact");
        let link = if no_tcx {
            Err(Errno::EINVAL.into())
        } else {
            kernel::link_create(prog, ifindex, place.link_type())
        };
        match link {
            Ok(link) => kernel::pin(link.as_fd(), &dir.join(hook.name()))?,
            Err(err) if is_tc && err.raw_os_error() == Some(Errno::EINVAL as i32) => {
                hook.carrier = Carrier::Filter;
                hook.attach_filter(ifindex, prog, owner, dir)?;
            }
            Err(err) => return Err(err),
        }
        Ok(hook)
    }

    fn attach_filter(
        &self,
        ifindex: i32,
        prog: BorrowedFd<'_>,
        owner: Owner,
        dir: &Path,
    ) -> io::Result<()> {
        // Recorded first: whoever is killed in between must not leave it.
        let qdisc = dir.join(qdisc_name(&self.iface));
        let was_ours = qdisc.exists();
        system::make_directory(&qdisc)?;
        if !kernel::clsact_create(ifindex)? && !was_ours {
            fs::remove_dir(&qdisc)?;
        }
        kernel::pin(prog, &dir.join(self.name()))?;
        self.filter(ifindex, prog, owner).attach().map_err(to_io)?;
        Ok(())
    }

    /// Exchanges the program, without a gap.
    pub fn exchange(&self, old: &Path, prog: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
        match self.carrier {
            Carrier::Link => {
                let link = kernel::pinned(&old.join(self.name()))?;
                kernel::link_update(link.as_fd(), prog)
            }
            Carrier::Filter => {
                let mut filter = self.filter(self.ifindex()?, prog, owner);
                filter.replace(true).attach().map(drop).map_err(to_io)
            }
        }
    }

    /// Records an attached hook in another directory too.
    pub fn carry_over(&self, old: &Path, new: &Path, prog: BorrowedFd<'_>) -> io::Result<()> {
        let path = new.join(self.name());
        match self.carrier {
            Carrier::Link => {
                let link = kernel::pinned(&old.join(self.name()))?;
                kernel::pin(link.as_fd(), &path)
            }
            Carrier::Filter => kernel::pin(prog, &path),
        }
    }

    /// Opens the link and asks the kernel about it.
    pub fn link(&self, dir: &Path) -> io::Result<(OwnedFd, LinkInfo)> {
        let link = kernel::pinned(&dir.join(self.name()))?;
        let info = kernel::link_info(link.as_fd())?;
        Ok((link, info))
    }

    /// Whether its program runs, and on the interface with this index, in this
    /// network namespace.
    pub fn is_on(&self, ifindex: i32, owner: Owner, dir: &Path) -> bool {
        match (self.carrier, self.place) {
            (Carrier::Filter, _) => self.filter_program(ifindex, owner).is_some(),
            (Carrier::Link, Place::Native | Place::Generic) => {
                let programs = kernel::xdp(ifindex).unwrap_or_default().programs;
                self.link(dir).is_ok_and(|(_, info)| programs.contains(&info.prog_id))
            }
            (Carrier::Link, _) => {
                let tcx = kernel::tcx(ifindex, self.place.link_type()).unwrap_or_default();
                let has = |id| tcx.iter().any(|tcx| tcx.link == Some(id));
                self.link(dir).is_ok_and(|(_, info)| has(info.id))
            }
        }
    }

    /// The id of the program that runs here; None if the interface is gone.
    pub fn program_id(&self, owner: Owner, dir: &Path) -> Option<u32> {
        match self.carrier {
            Carrier::Link => {
                let (_, info) = self.link(dir).ok()?;
                (info.ifindex != 0).then_some(info.prog_id)
            }
            Carrier::Filter => self.filter_program(self.ifindex().ok()?, owner),
        }
    }

    /// Removes the pin, and the hook with it unless that one stays. At once: the
    /// kernel takes its time with a link that only lost its pin, and the next
    /// attach would find the place taken.
    pub fn remove(&self, dir: &Path, owner: Owner, stays: bool) -> io::Result<()> {
        match self.carrier {
            Carrier::Filter if !stays => self.remove_filter(owner)?,
            Carrier::Link if !stays => {
                if let Ok((link, _)) = self.link(dir) {
                    // Fails if the interface is gone, and then nothing is left.
                    let _ = kernel::link_detach(link.as_fd());
                }
            }
            _ => {}
        }
        fs::remove_file(dir.join(self.name()))
    }

    fn remove_filter(&self, owner: Owner) -> io::Result<()> {
        let Ok(ifindex) = self.ifindex() else {
            return Ok(()); // the filter went with the interface
        };
        if self.filter_program(ifindex, owner).is_none() {
            return Ok(());
        }
        TcHook::detach(&mut self.filter(ifindex, NO_PROGRAM, owner)).map_err(to_io)
    }

    fn filter_program(&self, ifindex: i32, owner: Owner) -> Option<u32> {
        self.filter(ifindex, NO_PROGRAM, owner).query().ok()
    }

    fn filter(&self, ifindex: i32, prog: BorrowedFd<'_>, owner: Owner) -> TcHook {
        let side = if self.place == Place::Egress { TC_EGRESS } else { TC_INGRESS };
        *TcHook::new(prog).ifindex(ifindex).attach_point(side).handle(owner.0).priority(PRIORITY)
    }

    /// The interface's index, if it is still there.
    pub fn ifindex(&self) -> io::Result<i32> {
        system::index_of(&self.iface)
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

/// The interfaces whose qdisc a directory records as ours.
pub fn qdiscs(dir: &Path) -> io::Result<Vec<String>> {
    let mut ifaces = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let iface = name.to_str().and_then(|n| n.strip_suffix(QDISC)?.strip_suffix('_'));
        ifaces.extend(iface.map(unescape));
    }
    Ok(ifaces)
}

/// Records a qdisc of ours in another directory too.
pub fn carry_qdisc_over(iface: &str, old: &Path, new: &Path) -> io::Result<()> {
    let name = qdisc_name(iface);
    if old.join(&name).exists() { system::make_directory(&new.join(name)) } else { Ok(()) }
}

/// Removes the record of a qdisc of ours, and the qdisc, unless it stays or
/// somebody else has put filters there.
pub fn remove_qdisc(iface: &str, dir: &Path, stays: bool) -> io::Result<()> {
    if let (false, Ok(ifindex)) = (stays, system::index_of(iface)) {
        let is_free = |side| netlink::filters(ifindex, side).map(|filters| filters.is_empty());
        if is_free(INGRESS)? && is_free(EGRESS)? {
            let mut qdisc = TcHook::new(NO_PROGRAM);
            qdisc.ifindex(ifindex).attach_point(TC_INGRESS | TC_EGRESS);
            ignore_missing(qdisc.destroy().map_err(to_io))?;
        }
    }
    fs::remove_dir(dir.join(qdisc_name(iface)))
}

fn ignore_missing(ret: io::Result<()>) -> io::Result<()> {
    match ret {
        Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(()),
        ret => ret,
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
                let hook = Hook { iface: iface.into(), place, carrier };
                assert!(!hook.name().contains('.'));
                assert_eq!(Hook::from_name(&hook.name()), Some(hook));
            }
        }
        assert_eq!(Hook::from_name("eth0_qdisc"), None);
        assert_eq!(Hook::from_name("eth0"), None);
    }

    #[test]
    fn takes_places_so_that_replies_are_watched_first() {
        assert!(Place::Egress < Place::Ingress);
        assert!(Place::Ingress < Place::Native);
        assert!(Place::Ingress < Place::Generic);
    }
}
