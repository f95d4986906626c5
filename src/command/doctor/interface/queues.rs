// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Has the interface as many queues as it could have, and few enough for XDP?

use super::facts::Interface;
use crate::command::doctor::finding::{Finding, Level};
use crate::host::netlink::Channels;

/// Drivers that give XDP half of their queues, and refuse XDP while more are in use.
const HALVERS: [&str; 2] = ["ena", "gve"];

pub(super) fn check(interface: &Interface) -> Vec<Finding> {
    judge(interface).iter().map(|judged| judged.finding(&interface.link.name)).collect()
}

struct Judged {
    verdict: Verdict,
    channels: Channels,
    cpus: u32,
    /// The most queues of use, to receive and to send.
    most: [u32; 2],
}

enum Verdict {
    Enough,
    TooFew,
    TooManyForXdp,
}

/// Nothing is said of an interface without queues to set.
fn judge(interface: &Interface) -> Option<Judged> {
    let (channels, cpus) = (interface.channels?, interface.cpus);
    let Channels { rx, rx_max, tx, tx_max, .. } = channels;
    let halves = interface.driver.as_deref().is_some_and(|driver| HALVERS.contains(&driver));
    let allowed = if halves { [rx_max.min(tx_max) / 2; 2] } else { [rx_max, tx_max] };
    // More queues than CPUs are of no more use.
    let most = allowed.map(|max| max.min(cpus));
    let verdict = if halves && (rx > allowed[0] || tx > allowed[1]) {
        Verdict::TooManyForXdp
    } else if most[0] > rx || most[1] > tx {
        Verdict::TooFew
    } else {
        Verdict::Enough
    };
    Some(Judged { verdict, channels, cpus, most })
}

impl Judged {
    fn finding(&self, name: &str) -> Finding {
        let Channels { rx, rx_max, tx, tx_max, is_combined } = self.channels;
        let ([most_rx, most_tx], cpus) = (self.most, self.cpus);
        let evidence = format!("ethtool -l: {rx} of {rx_max} receive, {tx} of {tx_max} send");
        let remedy = if is_combined {
            format!("ethtool -L {name} combined {}", most_rx.max(most_tx))
        } else {
            format!("ethtool -L {name} rx {most_rx} tx {most_tx}")
        };
        match self.verdict {
            Verdict::Enough => {
                Finding::ok(format!("has the queues that it can have for {cpus} CPUs"), evidence)
            }
            Verdict::TooFew => Finding::new(
                Level::Note,
                format!(
                    "has fewer queues than it could have for {cpus} CPUs: bmc answers on as many \
                     CPUs as queues receive"
                ),
                evidence,
                remedy,
            ),
            Verdict::TooManyForXdp => Finding::new(
                Level::Warning,
                "its driver keeps half of its queues for XDP and refuses it now",
                evidence,
                remedy,
            ),
        }
    }
}
