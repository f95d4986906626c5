// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! The services of IPVS, as kube-proxy makes them in its mode of this name.

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;

use super::PROTOCOLS;
use super::Ports;
use super::Target;
use super::Traffic;
use super::Translation;

/// Those of this network namespace. There is no such file without IPVS.
const SERVICES: &str = "/proc/thread-self/net/ip_vs";

pub(super) fn translations() -> Vec<Translation> {
    fs::read_to_string(SERVICES).map(|text| read(&text)).unwrap_or_default()
}

/// Each service with each server behind it that has another port.
fn read(text: &str) -> Vec<Translation> {
    let mut all = Vec::new();
    let mut service: Option<(Traffic, String)> = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(read_address)) {
            (Some("->"), Some(server)) => {
                let Some((from, name)) = &service else { continue };
                let to = Ports::from_iter([server.port()]);
                if *from != from.and(&Traffic::to(&to)) {
                    all.push(Translation {
                        by: format!("ipvsadm -L -n: {name} -> {server}"),
                        from: Traffic::clone(from),
                        to: Target { addresses: Some((server.ip(), server.ip())), ports: to },
                    });
                }
            }
            (Some(protocol), Some(at)) => {
                let number = PROTOCOLS.iter().find(|(_, name)| *name == protocol);
                service = number.map(|(number, _)| {
                    let port = match at.port() {
                        // A persistent service may be for all.
                        0 => Ports::all(),
                        port => Ports::from_iter([port]),
                    };
                    let from = Traffic::protocol(*number).and(&Traffic::to(&port));
                    (from, format!("{protocol} {at}"))
                });
            }
            // By the mark of a packet: that may be any.
            (Some("FWM"), None) => {
                service = Some((Traffic::all(), line.trim().into()));
            }
            _ => {}
        }
    }
    all
}

/// As in `0A600001:2BCB` or `[fd00:0000:0000:0000:0000:0000:0000:0001]:2BCB`.
fn read_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let v6 = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address: IpAddr = match v6 {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_services_and_the_servers_behind_them() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  \
                      -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                    TCP  0A600001:2BCC rr \n  \
                      -> 0A0B0C01:2BCB      Masq    1      0          0         \n  \
                      -> 0A0B0C02:2BCC      Masq    1      0          0         \n\
                    UDP  [fd00:0000:0000:0000:0000:0000:0000:0009]:7A69 rr \n  \
                      -> [fd00:0000:0000:0000:0000:0000:0000:0001]:2BCB      Masq    1      0          0\n\
                    SCTP 0A600001:2BCC rr \n  \
                      -> 0A0B0C01:2BCB      Masq    1      0          0         \n\
                    FWM  00000007 rr \n  \
                      -> 0A0B0C01:2BCB      Masq    1      0          0         \n";
        let said: Vec<_> = read(text).into_iter().map(|found| (found.by, found.from)).collect();
        let by = |text: &str| format!("ipvsadm -L -n: {text}");
        let to = |tcp: &[u16], udp: &[u16]| {
            Traffic([tcp, udp].map(|ports| ports.iter().copied().collect()))
        };
        assert_eq!(
            said,
            [
                (by("TCP 10.96.0.1:11212 -> 10.11.12.1:11211"), to(&[11212], &[])),
                (by("UDP [fd00::9]:31337 -> [fd00::1]:11211"), to(&[], &[31337])),
                (by("FWM  00000007 rr -> 10.11.12.1:11211"), Traffic::all()),
            ]
        );
    }
}
