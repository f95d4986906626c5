// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Is there a bpffs for the pins, and may this process use it?

use super::facts::Host;
use crate::command::doctor::finding::{Finding, Level};
use crate::host::facts::{BPFFS, Bpffs};

pub(super) fn check(host: &Host) -> Vec<Finding> {
    judge(host).iter().map(|verdict| verdict.finding(&host.bmc)).collect()
}

enum Verdict<'a> {
    Mounted,
    /// Capabilities would do, but the directory of the pins is another user's.
    NoAccess(&'a str),
    WillBeMounted,
    MayNotMount,
    /// A mount made here would not outlive this mount namespace.
    Private,
    SomethingElse,
    NoPlace,
}

fn judge(host: &Host) -> Vec<Verdict<'_>> {
    let verdict = match host.bpffs {
        Some(Bpffs::Mounted) => Verdict::Mounted,
        Some(Bpffs::Missing) if host.may_mount => Verdict::WillBeMounted,
        Some(Bpffs::Missing) => Verdict::MayNotMount,
        Some(Bpffs::Private) => Verdict::Private,
        Some(Bpffs::Other) => Verdict::SomethingElse,
        None => Verdict::NoPlace,
    };
    let is_mounted = matches!(verdict, Verdict::Mounted);
    // Without capabilities there is no access either, which needs no second finding.
    let may_load = host.missing_capabilities.is_empty();
    let no_access = host.no_access.as_deref().filter(|_| is_mounted && may_load);
    [verdict].into_iter().chain(no_access.map(Verdict::NoAccess)).collect()
}

impl Verdict<'_> {
    fn finding(&self, bmc: &str) -> Finding {
        match self {
            Self::Mounted => Finding::ok("bpffs is mounted", format!("statfs {BPFFS}")),
            Self::NoAccess(why) => {
                let user = nix::unistd::geteuid();
                Finding::new(
                    Level::Blocker,
                    "the capabilities are there, but not the directory for bmc's pins",
                    format!("access {BPFFS}/bmc: {why}"),
                    format!(
                        "chmod 711 {BPFFS}; install -d -m 700 -o {user} {BPFFS}/bmc   # as root"
                    ),
                )
            }
            Self::WillBeMounted => Finding::new(
                Level::Note,
                "bpffs is not mounted; bmc attach will do it",
                format!("statfs {BPFFS}: sysfs"),
                format!("mount -t bpf bpf {BPFFS}"),
            ),
            Self::MayNotMount => Finding::new(
                Level::Blocker,
                "bpffs is not mounted, and CAP_SYS_ADMIN to mount it is missing",
                format!("statfs {BPFFS}: sysfs; /proc/self/status: CapEff"),
                format!("mount -t bpf bpf {BPFFS}   # as root"),
            ),
            Self::Private => Finding::new(
                Level::Blocker,
                "has no bpf file system here, and one mounted would disappear with this mount namespace",
                format!("statfs {BPFFS}: sysfs; /proc/self/ns/mnt is not that of process 1"),
                format!("nsenter --net=/run/netns/NAME {bmc} doctor   # not ip netns exec"),
            ),
            Self::SomethingElse => Finding::new(
                Level::Blocker,
                "something else is mounted where bpffs belongs",
                format!("statfs {BPFFS}: neither bpf nor sysfs"),
                format!("umount {BPFFS}"),
            ),
            Self::NoPlace => Finding::new(
                Level::Blocker,
                "there is no place for bpffs",
                format!("statfs {BPFFS} fails"),
                "mount -t sysfs sysfs /sys",
            ),
        }
    }
}
