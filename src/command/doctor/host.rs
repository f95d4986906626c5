// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The kernel, and what this process may do with it.

use std::fs;

use super::Finding;
use super::Findings;
use super::Level;
use super::Patient;
use crate::cli;
use crate::command::attach;
use crate::host::facts as system;
use crate::host::facts::Bpffs;
use crate::instance;

/// The oldest kernel that bmc is for, and the first with tcx.
const OLDEST: [u32; 2] = [6, 1];
const TCX: [u32; 2] = [6, 6];

/// What is known of the machine; None for what could not be seen.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// How a command about the instance starts.
    bmc: String,
    is_attached: bool,
    release: Option<String>,
    missing_capabilities: Vec<&'static str>,
    bpffs: Option<Bpffs>,
    may_mount: bool,
    /// What keeps this process from bmc's directory there.
    no_access: Option<String>,
    jit: Option<String>,
    has_btf: bool,
    lockdown: Option<String>,
    /// Bytes that are available, and that `bmc attach` locks without `--memory`.
    memory: Option<u64>,
    memory_wanted: u64,
    programs: Programs,
}

/// What became of loading them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Programs {
    NotTried,
    Loaded {
        tells_the_end: bool,
    },
    /// Why.
    Refused(String),
}

impl Host {
    pub(super) fn read(patient: &Patient<'_>) -> Self {
        let missing_capabilities = system::missing_capabilities().unwrap_or_default();
        let programs = if missing_capabilities.is_empty() {
            match attach::try_load() {
                Ok(tells_the_end) => Programs::Loaded { tells_the_end },
                Err(err) => Programs::Refused(format!("{err:#}")),
            }
        } else {
            Programs::NotTried
        };
        Self {
            bmc: patient.bmc.clone(),
            is_attached: patient.own.is_some(),
            release: system::release().ok(),
            missing_capabilities,
            bpffs: system::bpffs().ok(),
            may_mount: system::may_mount(),
            no_access: instance::check_access().err().map(|err| err.to_string()),
            jit: system::setting(system::JIT).ok(),
            has_btf: fs::metadata(system::BTF).is_ok_and(|file| file.len() > 0),
            lockdown: system::setting(system::LOCKDOWN).ok(),
            memory: system::memory_available().ok(),
            memory_wanted: cli::Attach::with(&[]).map_or(0, |args| args.memory),
            programs,
        }
    }

    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut findings = Findings::about("host");
        self.judge_kernel(&mut findings);
        self.judge_privileges(&mut findings);
        self.judge_bpffs(&mut findings);
        self.judge_jit(&mut findings);
        self.judge_lockdown(&mut findings);
        self.judge_memory(&mut findings);
        self.judge_programs(&mut findings);
        self.judge_btf(&mut findings);
        findings.all
    }

    fn judge_kernel(&self, findings: &mut Findings) {
        let Some(release) = &self.release else {
            findings.add(
                Level::Note,
                "cannot see which kernel this is",
                "no /proc/sys/kernel/osrelease",
                "uname -r   # 6.1 or newer will do",
            );
            return;
        };
        let evidence = format!("/proc/sys/kernel/osrelease: {release}");
        match system::version(release) {
            Some(version) if version < OLDEST => findings.add(
                match self.programs {
                    Programs::Loaded { .. } => Level::Warning,
                    _ => Level::Blocker,
                },
                "the kernel is older than Linux 6.1: bmc is not tested on it",
                evidence,
                "boot Linux 6.1 or newer   # Debian 12 has it",
            ),
            Some(version) if version < TCX => {
                findings.ok("the kernel is new enough; without tcx, bmc uses clsact", evidence);
            }
            _ => findings.ok("the kernel is new enough, and has tcx", evidence),
        }
    }

    fn judge_privileges(&self, findings: &mut Findings) {
        let missing = &self.missing_capabilities;
        if missing.is_empty() {
            findings.ok("may load and attach BPF programs", "/proc/self/status: CapEff");
        } else {
            findings.add(
                Level::Blocker,
                format!("may not load or attach BPF programs: {} missing", missing.join(", ")),
                "/proc/self/status: CapEff",
                format!("sudo {} doctor   # sees more, and so does attach", self.bmc),
            );
        }
    }

    fn judge_bpffs(&self, findings: &mut Findings) {
        let at = system::BPFFS;
        match self.bpffs {
            Some(Bpffs::Mounted) => {
                findings.ok("bpffs is mounted", format!("statfs {at}"));
                self.judge_access(findings);
            }
            Some(Bpffs::Missing) if !self.may_mount => findings.add(
                Level::Blocker,
                "bpffs is not mounted, and CAP_SYS_ADMIN to mount it is missing",
                format!("statfs {at}: sysfs; /proc/self/status: CapEff"),
                format!("mount -t bpf bpf {at}   # as root"),
            ),
            Some(Bpffs::Missing) => findings.add(
                Level::Note,
                "bpffs is not mounted; bmc attach will do it",
                format!("statfs {at}: sysfs"),
                format!("mount -t bpf bpf {at}"),
            ),
            Some(Bpffs::Private) => findings.add(
                Level::Blocker,
                "has no bpf file system here, in a mount namespace that one mounted would go with",
                format!("statfs {at}: sysfs; /proc/self/ns/mnt is not that of process 1"),
                format!("nsenter --net=/run/netns/NAME {} doctor   # not ip netns exec", self.bmc),
            ),
            Some(Bpffs::Other) => findings.add(
                Level::Blocker,
                "something else is mounted where bpffs belongs",
                format!("statfs {at}: neither bpf nor sysfs"),
                format!("umount {at}"),
            ),
            None => findings.add(
                Level::Blocker,
                "there is no place for bpffs",
                format!("statfs {at} fails"),
                "mount -t sysfs sysfs /sys",
            ),
        }
    }

    /// Whoever lacks capabilities was told of these.
    fn judge_access(&self, findings: &mut Findings) {
        let (at, Some(why)) = (system::BPFFS, &self.no_access) else { return };
        if self.missing_capabilities.is_empty() {
            let user = nix::unistd::geteuid();
            findings.add(
                Level::Blocker,
                "the capabilities are there, but not the directory for bmc's pins",
                format!("access {at}/bmc: {why}"),
                format!("chmod 711 {at}; install -d -m 700 -o {user} {at}/bmc   # as root"),
            );
        }
    }

    fn judge_jit(&self, findings: &mut Findings) {
        let file = system::JIT;
        match self.jit.as_deref() {
            Some("0") => findings.add(
                Level::Blocker,
                "BPF programs are not compiled, and bmc's cannot be interpreted",
                format!("{file}: 0"),
                "sysctl -w net.core.bpf_jit_enable=1",
            ),
            Some(value) => findings.ok("BPF programs are compiled", format!("{file}: {value}")),
            // That they load tells as much.
            None if matches!(self.programs, Programs::Loaded { .. }) => {}
            None => findings.add(
                Level::Note,
                "cannot see whether BPF programs are compiled",
                format!("{file} is for root in the initial network namespace"),
                "sysctl net.core.bpf_jit_enable   # 1 will do",
            ),
        }
    }

    fn judge_lockdown(&self, findings: &mut Findings) {
        let file = system::LOCKDOWN;
        let Some(lockdown) = &self.lockdown else { return };
        let evidence = format!("{file}: {lockdown}");
        if lockdown.contains("[confidentiality]") {
            findings.add(
                Level::Blocker,
                "the kernel is locked down, and refuses what bmc's programs read by",
                evidence,
                "boot without lockdown=confidentiality   # lockdown=integrity will do",
            );
        } else {
            findings.ok("the kernel is not locked down against BPF", evidence);
        }
    }

    fn judge_memory(&self, findings: &mut Findings) {
        let (Some(available), false) = (self.memory, self.is_attached) else { return };
        let evidence =
            format!("MemAvailable in /proc/meminfo, memory.max of cgroups: {}M", available >> 20);
        let most = system::memory_to_lock(available) >> 20;
        let wanted = self.memory_wanted >> 20;
        if wanted > most {
            findings.add(
                Level::Blocker,
                format!("there is too little memory for the {wanted}M that bmc attach locks"),
                evidence,
                format!("{} attach --memory {}M IFACE", self.bmc, (most / 2).max(16)),
            );
        } else {
            findings.ok(format!("has the {wanted}M that bmc attach locks"), evidence);
        }
    }

    fn judge_programs(&self, findings: &mut Findings) {
        match &self.programs {
            Programs::NotTried => {}
            Programs::Loaded { .. } => findings.ok(
                "the kernel takes bmc's programs",
                "loaded with 16M, not attached, and let go of again",
            ),
            Programs::Refused(why) => findings.add(
                Level::Blocker,
                "the kernel refuses bmc's programs",
                why.replace('\n', "; "),
                format!("{} -v attach --memory 16M IFACE   # prints all the kernel says", self.bmc),
            ),
        }
    }

    fn judge_btf(&self, findings: &mut Findings) {
        let file = system::BTF;
        let is_told = !matches!(self.programs, Programs::Loaded { tells_the_end: false });
        if self.has_btf && is_told {
            findings.ok("the kernel tells when memcached is gone", file);
            return;
        }
        let evidence = if self.has_btf {
            "bmc_gone could not be loaded".into()
        } else {
            format!("no {file}: CONFIG_DEBUG_INFO_BTF is off")
        };
        findings.add(
            Level::Warning,
            "the kernel does not tell when memcached is gone: old values are served after a \
             restart, for up to --max-age",
            evidence,
            format!("{} flush   # after each restart of memcached", self.bmc),
        );
    }
}

/// Whether the kernel tells what the drivers can: from 6.3 on.
pub(super) fn tells_xdp_features() -> bool {
    system::release()
        .ok()
        .and_then(|release| system::version(&release))
        .is_some_and(|v| v >= [6, 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Host {
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
            programs: Programs::Loaded { tells_the_end: true },
        }
    }

    /// What is said of a host that differs from a good one by this.
    fn said(change: impl Fn(&mut Host)) -> Vec<(Level, String, Option<String>)> {
        let mut host = good();
        change(&mut host);
        let findings = host.judge().into_iter().filter(|finding| finding.level != Level::Ok);
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
        use Level::Blocker;
        use Level::Note;
        use Level::Warning;

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
        says(Warning, "when memcached is gone", "bmc flush", |h| h.has_btf = false);
        says(Warning, "when memcached is gone", "bmc flush", |h| {
            h.programs = Programs::Loaded { tells_the_end: false };
        });
    }

    #[test]
    fn attach_is_told_the_memory_that_help_promises() {
        let patient = Patient::new("none", &Ok(None));
        assert_eq!(Host::read(&patient).memory_wanted, 256 << 20);
    }
}
