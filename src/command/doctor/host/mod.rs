// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Checks of the kernel, and of what this process may do with it.

mod bpffs;
pub(crate) mod facts;
mod gone;
mod jit;
mod kernel;
mod lockdown;
mod memory;
mod privileges;
mod programs;

use self::facts::Host;
use super::finding::Finding;

/// The checks, in the order in which their findings are printed.
const CHECKS: [fn(&Host) -> Vec<Finding>; 8] = [
    kernel::check,
    privileges::check,
    bpffs::check,
    jit::check,
    lockdown::check,
    memory::check,
    programs::check,
    gone::check,
];

/// Makes all checks of the host.
pub(crate) fn check(host: &Host) -> Vec<Finding> {
    CHECKS.iter().flat_map(|check| check(host)).map(|finding| finding.about("host")).collect()
}

#[cfg(test)]
mod tests {
    use super::facts::Programs;
    use super::*;
    use crate::command::doctor::finding::Level;
    use crate::host::facts::Bpffs;

    /// What is said of a host that differs from a good one by this.
    fn said(change: impl Fn(&mut Host)) -> Vec<(Level, String, Option<String>)> {
        let mut host = Host::good();
        change(&mut host);
        let findings = check(&host).into_iter().filter(|finding| finding.level != Level::Ok);
        findings.map(|f| (f.level, f.what, f.remedy)).collect()
    }

    #[track_caller]
    fn says(level: Level, what: &str, remedy: &str, change: impl Fn(&mut Host)) {
        let said = said(change);
        assert_eq!(said.len(), 1, "{said:?}");
        let (is, says, mends) = &said[0];
        assert_eq!(*is, level, "{said:?}");
        assert!(says.contains(what), "{said:?}");
        assert!(mends.as_ref().is_some_and(|mends| mends.contains(remedy)), "{said:?}");
    }

    #[test]
    fn nothing_is_wrong_with_a_good_host() {
        assert_eq!(said(|_| ()), []);
        assert_eq!(said(|h| h.release = Some("6.1.0".into())), []);
        assert_eq!(said(|h| h.lockdown = None), []);
        assert_eq!(said(|h| h.lockdown = Some("none [integrity] confidentiality".into())), []);
        assert_eq!(said(|h| h.jit = Some("2".into())), []);
        assert_eq!(said(|h| h.jit = None), [], "they load");
        assert_eq!(said(|h| h.memory = Some(274 << 20)), []);
    }

    #[test]
    fn finds_what_is_wrong_with_each_part_of_a_host() {
        use Level::{Blocker, Note, Warning};

        for release in ["6.0.19", "5.10.0-33-amd64", "4.19"] {
            let change = |h: &mut Host| h.release = Some(release.into());
            says(Warning, "older than Linux 6.1", "6.1 or newer", change);
            let change = |h: &mut Host| (change(h), h.programs = Programs::NotTried).1;
            says(Blocker, "older than Linux 6.1", "6.1 or newer", change);
        }
        says(Note, "cannot see which kernel", "uname -r", |h| h.release = None);
        says(Blocker, "CAP_BPF, CAP_PERFMON missing", "sudo", |h| {
            h.missing_capabilities = vec!["CAP_BPF", "CAP_PERFMON"];
        });
        says(Note, "not mounted", "mount -t bpf bpf /sys/fs/bpf", |h| {
            h.bpffs = Some(Bpffs::Missing);
        });
        says(Blocker, "CAP_SYS_ADMIN to mount it is missing", "mount -t bpf bpf", |h| {
            (h.bpffs, h.may_mount) = (Some(Bpffs::Missing), false);
        });
        says(Blocker, "but not the directory", "install -d -m 700 -o ", |h| {
            h.no_access = Some("EACCES".into());
        });
        says(Blocker, "has no bpf file system here", "nsenter --net", |h| {
            h.bpffs = Some(Bpffs::Private);
        });
        says(Blocker, "something else", "umount /sys/fs/bpf", |h| h.bpffs = Some(Bpffs::Other));
        says(Blocker, "no place for bpffs", "mount -t sysfs", |h| h.bpffs = None);
        says(Blocker, "not compiled", "sysctl -w net.core.bpf_jit_enable=1", |h| {
            h.jit = Some("0".into());
        });
        says(Note, "cannot see whether BPF", "sysctl net.core.bpf_jit_enable", |h| {
            (h.jit, h.programs) = (None, Programs::NotTried);
        });
        says(Blocker, "locked down", "lockdown=confidentiality", |h| {
            h.lockdown = Some("none integrity [confidentiality]".into());
        });
        says(Blocker, "too little memory for the 256M", "--memory 126M", |h| {
            h.memory = Some(270 << 20);
        });
        assert_eq!(said(|h| (h.memory, h.is_attached) = (Some(270 << 20), true)), []);
        says(Blocker, "refuses bmc's programs", "bmc -v attach", |h| {
            h.programs = Programs::Refused("cannot load:\nno".into());
        });
        says(Warning, "when memcached stops", "bmc flush", |h| h.has_btf = false);
        says(Warning, "when memcached stops", "bmc flush", |h| {
            h.programs = Programs::Loaded { notices_the_end: false };
        });
    }
}
