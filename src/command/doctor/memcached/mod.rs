// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Checks of the memcacheds of this network namespace: whether bmc can serve each, and whether
//! it would help.

pub(crate) mod facts;
mod gain;
mod ports;
mod presence;
mod reach;
mod settings;
mod threads;

use self::facts::{Memcached, Memcacheds};
use super::finding::Finding;

/// The checks of a memcached, in the order in which their findings are printed.
const CHECKS: [fn(&Memcacheds, &Memcached) -> Vec<Finding>; 5] =
    [settings::check, reach::check, ports::check, threads::check, gain::check];

/// Makes all checks of the memcacheds.
pub(crate) fn check(all: &Memcacheds) -> Vec<Finding> {
    let each = all.found.iter().flat_map(|one| {
        let findings = CHECKS.iter().flat_map(move |check| check(all, one));
        findings.map(|finding| finding.about(one.name()))
    });
    presence::check(all).into_iter().chain(each).collect()
}

#[cfg(test)]
mod tests {
    use super::facts::Memcached;
    use super::*;
    use crate::command::doctor::finding::Level;
    use crate::memcached::stats::Answer;

    /// What is said of one that differs from a good one by this.
    #[track_caller]
    fn says(level: Level, what: &str, remedy: &str, change: impl Fn(&mut Memcached)) {
        let mut found = Memcached::good();
        change(&mut found);
        let (bmc, watched) = ("bmc".into(), vec![21977]);
        let all = Memcacheds { bmc, watched, found: vec![found], ..Default::default() };
        let findings = check(&all);
        let found = findings.iter().find(|finding| finding.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("{findings:?}"));
        assert_eq!(found.level, level, "{found:?}");
        assert!(found.remedy.as_deref().unwrap_or_default().contains(remedy), "{found:?}");
    }

    #[test]
    fn judges_what_no_memcached_of_this_machine_is() {
        let set = |name: &'static str, value: &'static str| {
            move |m: &mut Memcached| {
                let Answer::Stats(stats) = &mut m.settings_answer else { return };
                stats.insert(name.into(), value.into());
            }
        };
        says(Level::Ok, "bmc can serve it", "", |_| ());
        says(Level::Blocker, "is a proxy", "behind it", set("proxy_enabled", "yes"));
        // A listener that was inherited, and is no part of what we see.
        says(Level::Blocker, "takes writes on TCP port 1 too", "--port 1", set("tcpport", "1"));
        says(Level::Warning, "has UDP port 2", "--port 2", set("udpport", "2"));
        // Attach asks at its ports alone.
        says(Level::Warning, "uses TLS", "turn TLS off", |m| {
            set("ssl_enabled", "yes")(m);
            m.tcp[0].set_port(1);
            m.udp[0].set_port(1);
        });
        says(Level::Blocker, "takes writes on TCP port 1 too", "--port 1", |m| {
            set("tcpport", "1")(m);
            m.tcp[0].set_port(1);
        });
        says(Level::Note, "does not answer", "memcached-tool 127.0.0.1:21977", |m| {
            m.settings_answer = Answer::NoListener;
        });
        says(
            Level::Note,
            "its 4 threads share one UDP socket",
            "bmc memcached -- -U 21977",
            |_| (),
        );
    }

    #[test]
    fn counters_are_not_judged_while_bmc_answers() {
        let mut all = Memcacheds {
            watched: vec![21977],
            found: vec![Memcached::good()],
            ..Default::default()
        };
        let counters = [("cmd_get", "9"), ("get_hits", "0"), ("cmd_set", "1")];
        all.found[0].counters = counters.map(|(k, v)| (k.into(), v.into())).into();
        let says = |all: &Memcacheds, what| check(all).iter().any(|f| f.what.contains(what));
        assert!(says(&all, "found 0 %") && !says(&all, "counts only"));
        all.answered = vec![("bmc".into(), vec![21977])];
        assert!(!says(&all, "found 0 %") && says(&all, "counts only"));
    }
}
