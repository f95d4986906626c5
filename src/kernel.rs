// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The system calls that libbpf-rs does not wrap: links with flags, pins of any
//! object, queries and memory shared with BPF programs; and a child that ends with
//! us. The only unsafe code.
//!
//! Errors are [`io::Error`], because callers decide by errno and libbpf-rs hides
//! it.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ffi::CString;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::raw::c_int;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys as sys;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::skel::types;

/// Has a program that is about to be run end with the thread that runs it,
/// however that ends. A program that changes its user undoes it.
pub fn end_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: it makes one system call in the child and touches no memory.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) }
}

/// Turns libbpf's "negative errno" into an error.
fn check(ret: c_int) -> io::Result<c_int> {
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(ret) }
}

/// As [`check`], for calls that return a new file descriptor.
fn check_fd(ret: c_int) -> io::Result<OwnedFd> {
    // SAFETY: a successful call hands us the descriptor; nobody else has it.
    check(ret).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// `size_of::<T>()`, in the type of the `sz` fields.
fn sz<T>() -> sys::size_t {
    size_of::<T>() as sys::size_t
}

/// A descriptor for calls that want one and do nothing with it.
// SAFETY: nobody closes this process's stderr.
pub const STDERR: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(2) };

/// Where a program can be linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// XDP, run by the driver.
    XdpNative,
    /// XDP, run by the stack.
    XdpGeneric,
    /// tcx ingress, before all others.
    TcxIngress,
    /// tcx egress.
    TcxEgress,
}

impl LinkType {
    fn attach_type(self) -> sys::bpf_attach_type {
        match self {
            Self::XdpNative | Self::XdpGeneric => sys::BPF_XDP,
            Self::TcxIngress => sys::BPF_TCX_INGRESS,
            Self::TcxEgress => sys::BPF_TCX_EGRESS,
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::XdpNative => sys::XDP_FLAGS_DRV_MODE,
            Self::XdpGeneric => sys::XDP_FLAGS_SKB_MODE,
            Self::TcxIngress => sys::BPF_F_BEFORE,
            Self::TcxEgress => 0,
        }
    }
}

/// Attaches a program to an interface for as long as the link lives.
pub fn link_create(prog: BorrowedFd<'_>, ifindex: i32, ty: LinkType) -> io::Result<OwnedFd> {
    let opts = sys::bpf_link_create_opts {
        sz: sz::<sys::bpf_link_create_opts>(),
        flags: ty.flags(),
        ..Default::default()
    };
    // SAFETY: `opts` is initialized and outlives the call.
    check_fd(unsafe {
        sys::bpf_link_create(prog.as_raw_fd(), ifindex, ty.attach_type(), &raw const opts)
    })
}

/// Replaces the program of a link.
pub fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointer but the null that stands for "no options".
    check(unsafe { sys::bpf_link_update(link.as_raw_fd(), prog.as_raw_fd(), std::ptr::null()) })
        .map(drop)
}

/// Detaches a link although others may hold it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { sys::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkInfo {
    /// Its id.
    pub id: u32,
    /// The program that it runs.
    pub prog_id: u32,
    /// The interface, in whatever network namespace; 0 when it is gone.
    pub ifindex: u32,
}

/// Asks about an XDP or tcx link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = sys::bpf_link_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is a valid buffer of `len` bytes.
    check(unsafe { sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &raw mut info, &raw mut len) })?;
    let ifindex = match info.type_ {
        // SAFETY: the kernel fills the member of the union that the type tells.
        sys::BPF_LINK_TYPE_XDP => unsafe { info.__bindgen_anon_1.xdp.ifindex },
        // SAFETY: as above.
        sys::BPF_LINK_TYPE_TCX => unsafe { info.__bindgen_anon_1.tcx.ifindex },
        _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
    };
    Ok(LinkInfo { id: info.id, prog_id: info.prog_id, ifindex })
}

/// What the kernel says about a program.
#[derive(Clone, Debug)]
pub struct ProgInfo {
    /// Its id.
    pub id: u32,
    /// Its name, at most 15 characters.
    pub name: String,
    /// How often it ran while run-time statistics were on.
    pub runs: u64,
    /// How long that took.
    pub run_time: Duration,
}

impl ProgInfo {
    /// Nanoseconds of a run, on average; None if never measured.
    pub fn cost(&self) -> Option<u64> {
        (self.run_time.as_nanos() as u64).checked_div(self.runs)
    }
}

/// Asks about a program.
pub fn prog_info(prog: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    let mut info = sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is a valid buffer of `len` bytes, and its zeroed pointers
    // ask for no further data.
    check(unsafe { sys::bpf_prog_get_info_by_fd(prog.as_raw_fd(), &raw mut info, &raw mut len) })?;
    // SAFETY: the kernel ends the name with a NUL.
    let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
    Ok(ProgInfo {
        id: info.id,
        name: name.to_string_lossy().into_owned(),
        runs: info.run_cnt,
        run_time: Duration::from_nanos(info.run_time_ns),
    })
}

/// Opens a program by its id.
pub fn prog_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check_fd(unsafe { sys::bpf_prog_get_fd_by_id(id) })
}

/// The name of a program; None if it is gone, or not for us to ask.
pub fn prog_name(id: u32) -> Option<String> {
    Some(prog_info(prog_by_id(id).ok()?.as_fd()).ok()?.name)
}

/// Runs a program of type syscall and returns what it returns.
pub fn prog_run(prog: BorrowedFd<'_>) -> io::Result<u32> {
    let mut opts =
        sys::bpf_test_run_opts { sz: sz::<sys::bpf_test_run_opts>(), ..Default::default() };
    // SAFETY: `opts` is initialized, and its null pointers stand for no data.
    check(unsafe { sys::bpf_prog_test_run_opts(prog.as_raw_fd(), &raw mut opts) })?;
    Ok(opts.retval)
}

/// Gives an object a name on bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` ends with a NUL and outlives the call.
    check(unsafe { sys::bpf_obj_pin(fd.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Opens a pinned object.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: as in `pin`.
    check_fd(unsafe { sys::bpf_obj_get(path.as_ptr()) })
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Its id.
    pub id: u32,
    /// The mode that it runs in, as `ip link set` calls it.
    pub mode: &'static str,
}

/// What the kernel says about XDP on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xdp {
    /// The programs there, at most one a mode.
    pub programs: Vec<XdpProgram>,
    /// What the driver can: the bits of `enum netdev_xdp_act`. 0 before Linux
    /// 6.3, which does not tell.
    pub features: u64,
}

impl Xdp {
    /// The bit of `features` for native XDP that passes, drops and sends back.
    pub const BASIC: u64 = 1 << 0;
}

/// Asks about XDP on an interface.
pub fn xdp(ifindex: i32) -> io::Result<Xdp> {
    let mut opts =
        sys::bpf_xdp_query_opts { sz: sz::<sys::bpf_xdp_query_opts>(), ..Default::default() };
    // SAFETY: `opts` is initialized and outlives the call.
    check(unsafe { sys::bpf_xdp_query(ifindex, 0, &raw mut opts) })?;
    let programs = [
        (opts.drv_prog_id, "xdpdrv"),
        (opts.skb_prog_id, "xdpgeneric"),
        (opts.hw_prog_id, "xdpoffload"),
    ];
    let programs = programs.into_iter().filter(|(id, _)| *id != 0);
    let programs = programs.map(|(id, mode)| XdpProgram { id, mode }).collect();
    Ok(Xdp { programs, features: opts.feature_flags })
}

/// A program on one side of an interface, as tcx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcx {
    /// The program's id.
    pub program: u32,
    /// The id of the link that holds it there, if one does.
    pub link: Option<u32>,
}

/// What runs as tcx on one side of an interface, in its order.
pub fn tcx(ifindex: i32, side: LinkType) -> io::Result<Vec<Tcx>> {
    const MANY: usize = 64; // the kernel's BPF_MPROG_MAX

    let mut progs = [0_u32; MANY];
    let mut links = [0_u32; MANY];
    let mut opts = sys::bpf_prog_query_opts {
        sz: sz::<sys::bpf_prog_query_opts>(),
        prog_ids: progs.as_mut_ptr(),
        link_ids: links.as_mut_ptr(),
        ..Default::default()
    };
    opts.__bindgen_anon_1.count = MANY as u32;
    // SAFETY: both arrays have as many elements as `count` says and outlive the
    // call.
    check(unsafe { sys::bpf_prog_query_opts(ifindex, side.attach_type(), &raw mut opts) })?;
    let tcx = progs.into_iter().zip(links).take_while(|(program, _)| *program != 0);
    Ok(tcx.map(|(program, link)| Tcx { program, link: (link != 0).then_some(link) }).collect())
}

/// Gives an interface a clsact qdisc; false if it has one.
pub fn clsact_create(ifindex: i32) -> io::Result<bool> {
    let mut hook = sys::bpf_tc_hook {
        sz: sz::<sys::bpf_tc_hook>(),
        ifindex,
        attach_point: sys::BPF_TC_INGRESS,
        ..Default::default()
    };
    // SAFETY: `hook` is initialized and outlives the call.
    match check(unsafe { sys::bpf_tc_hook_create(&raw mut hook) }) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        ret => ret.map(|_| true),
    }
}

/// A type of the skeleton that is fine with any bytes: integers and arrays of
/// them.
///
/// # Safety
///
/// Every bit pattern must be a valid value.
pub unsafe trait Plain: Copy {}

// SAFETY: only integers.
unsafe impl Plain for types::rodata {}
// SAFETY: only integers.
unsafe impl Plain for types::bmc_bucket {}
// SAFETY: only integers.
unsafe impl Plain for types::bmc_global {}
// SAFETY: only integers.
unsafe impl Plain for types::bmc_pool {}
// SAFETY: only integers.
unsafe impl Plain for types::bmc_slot {}
// SAFETY: only integers.
unsafe impl Plain for types::bmc_server {}

/// The value whose bytes these are, unless their number is another.
pub fn plain_from<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as T has, any of which will do.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Stores a word into the first value of an array with `BPF_F_MMAPABLE`, whole,
/// while BPF programs may use the words around it.
pub fn store(map: &impl MapCore, offset: usize, word: u64) -> io::Result<()> {
    let shared = Shared::map(map, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    if !offset.is_multiple_of(8) || offset / 8 >= shared.words {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: within the mapping (checked above), which is writable.
    unsafe { shared.start.add(offset / 8).as_ref() }.store(word, Ordering::SeqCst);
    Ok(())
}

/// A mapped map, which BPF programs may change at any time; only for reading.
pub struct Shared {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Shared {
    /// Maps the values of an array with `BPF_F_MMAPABLE`.
    pub fn new(map: &impl MapCore) -> io::Result<Self> {
        Self::map(map, ProtFlags::PROT_READ)
    }

    /// Maps only what surrounds `bytes` bytes at a byte offset, and says at which
    /// offset they are therein. The kernel takes its time to map a large array whole.
    pub fn around(map: &impl MapCore, offset: usize, bytes: usize) -> io::Result<(Self, usize)> {
        const PAGES: usize = 1 << 16; // a whole number of them on any machine

        let from = offset / PAGES * PAGES;
        let to = (offset + bytes).next_multiple_of(PAGES).min(Self::bytes(map));
        Ok((Self::map_range(map, ProtFlags::PROT_READ, from..to)?, offset - from))
    }

    fn map(map: &impl MapCore, access: ProtFlags) -> io::Result<Self> {
        Self::map_range(map, access, 0..Self::bytes(map))
    }

    fn bytes(map: &impl MapCore) -> usize {
        map.value_size().next_multiple_of(8) as usize * map.max_entries() as usize
    }

    fn map_range(map: &impl MapCore, access: ProtFlags, range: Range<usize>) -> io::Result<Self> {
        let len = NonZeroUsize::new(range.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let from = i64::try_from(range.start).map_err(io::Error::other)?;
        // SAFETY: a new mapping, which overlaps nothing.
        let start = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, map.as_fd(), from) }?;
        Ok(Self { start: start.cast(), words: range.len() / 8 })
    }

    /// Copies the value at a byte offset, a word at a time, each of them whole.
    /// None if it does not lie within, or not at a word's start.
    pub fn read<T: Plain>(&self, offset: usize) -> Option<T> {
        let mut words = [0; 32];
        let words = words.get_mut(..size_of::<T>().div_ceil(8))?;
        self.copy(offset, words)?;
        // SAFETY: at least as many initialized bytes as T has, any will do.
        Some(unsafe { words.as_ptr().cast::<T>().read_unaligned() })
    }

    /// Copies words as [`Shared::read`] does.
    pub fn copy(&self, offset: usize, to: &mut [u64]) -> Option<()> {
        let first = offset / 8;
        if !offset.is_multiple_of(8) || first.checked_add(to.len())? > self.words {
            return None;
        }
        for (i, word) in to.iter_mut().enumerate() {
            // SAFETY: within the mapping (checked above), which is aligned to a
            // page and lives as long as self; it is only ever read.
            *word = unsafe { self.start.add(first + i).as_ref() }.load(Ordering::Acquire);
        }
        Some(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the whole of what `new` mapped; no reference outlives self.
        let _ = unsafe { munmap(self.start.cast(), self.words * 8) };
    }
}
