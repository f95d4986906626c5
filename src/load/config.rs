// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Options as the programs read them: `struct bmc_config`, written and read back.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;

use super::layout::Layout;
use super::options::{Cidr, Mode, Options};
use crate::abi::LAYOUT;
use crate::abi::types::{bmc_config, bmc_prefix4, bmc_prefix6};
use crate::host::facts;

/// The configuration for these options and sizes. `kept` is the configuration of the
/// maps that are taken over, if any: entries are found only by the hash that filed
/// them, so its seeds stay.
pub fn encode(options: &Options, layout: &Layout, kept: Option<&bmc_config>) -> Result<bmc_config> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos());
    let mut config = bmc_config {
        memory: options.memory,
        max_age: nanos(options.max_age)?,
        unknown_ttl: nanos(options.unknown_ttl)?,
        tick: nanos(facts::tick()?)?,
        wall: facts::wall_clock()?,
        tai: facts::atomic_clock()?,
        layout: LAYOUT,
        buckets: layout.buckets,
        slabs: layout.slabs,
        senders: layout.senders,
        leases: layout.leases,
        expiries: layout.expiries,
        flow_sets: layout.flow_sets,
        netns: facts::netns()?,
        sk_uid: facts::socket_user_offset().unwrap_or_default(),
        generic: u32::from(options.mode == Mode::Generic),
        ..Default::default()
    };
    if let Some(kept) = kept {
        (config.seed, config.nh) = (kept.seed, kept.nh);
    } else {
        let mut bytes = vec![0; size_of_val(&config.seed) + size_of_val(&config.nh)];
        facts::random(&mut bytes)?;
        let (seed, nh) = bytes.split_at(size_of_val(&config.seed));
        fill(&mut config.seed, seed, u64::from_ne_bytes);
        fill(&mut config.nh, nh, u32::from_ne_bytes);
    }
    for (to, port) in config.ports.iter_mut().zip(&options.ports) {
        *to = port.to_be();
        config.nr_ports += 1;
    }
    encode_allow(&mut config, &options.allow);
    Ok(config)
}

fn encode_allow(config: &mut bmc_config, allow: &[Cidr]) {
    let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = allow.iter().partition(|cidr| cidr.addr.is_ipv4());
    for (to, cidr) in config.allow4.iter_mut().zip(v4) {
        let [mut net, mut mask] = [[0]; 2];
        let (addr, bits) = cidr.bytes();
        fill(&mut net, &addr, u32::from_ne_bytes);
        fill(&mut mask, &bits, u32::from_ne_bytes);
        *to = bmc_prefix4 { net: net[0], mask: mask[0] };
        config.nr_allow4 += 1;
    }
    for (to, cidr) in config.allow6.iter_mut().zip(v6) {
        let (addr, bits) = cidr.bytes();
        *to = bmc_prefix6::default();
        fill(&mut to.net, &addr, u64::from_ne_bytes);
        fill(&mut to.mask, &bits, u64::from_ne_bytes);
        config.nr_allow6 += 1;
    }
}

/// Fills an array from bytes, converting N of them for each element.
fn fill<T, const N: usize>(to: &mut [T], from: &[u8], element: impl Fn([u8; N]) -> T) {
    for (to, from) in to.iter_mut().zip(from.chunks_exact(N)) {
        *to = element(std::array::from_fn(|i| from[i]));
    }
}

/// The ports of a configuration.
pub fn ports(config: &bmc_config) -> Vec<u16> {
    config.ports.iter().take(config.nr_ports as usize).map(|port| u16::from_be(*port)).collect()
}

/// The networks whose clients a configuration answers, IPv4 first.
pub fn allow(config: &bmc_config) -> Vec<Cidr> {
    let v4 = config.allow4.iter().take(config.nr_allow4 as usize).map(|prefix| Cidr {
        addr: Ipv4Addr::from(prefix.net.to_ne_bytes()).into(),
        bits: prefix.mask.count_ones() as u8,
    });
    let v6 = config.allow6.iter().take(config.nr_allow6 as usize).map(|prefix| {
        let [high, low] = prefix.net.map(|half| u128::from(u64::from_be(half)));
        let bits = prefix.mask.map(u64::count_ones).iter().sum::<u32>();
        Cidr { addr: Ipv6Addr::from(high << 64 | low).into(), bits: bits as u8 }
    });
    v4.chain(v6).collect()
}

/// Whether entries filled under one configuration are right under the other.
pub fn keeps_entries_valid(a: &bmc_config, b: &bmc_config) -> bool {
    (a.nr_ports, a.ports, a.max_age, a.unknown_ttl)
        == (b.nr_ports, b.ports, b.max_age, b.unknown_ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { buckets: 1, slabs: 2, senders: 4, leases: 8, expiries: 16, flow_sets: 32 };

    #[test]
    fn reads_back_what_it_wrote() {
        let allow: Vec<Cidr> = ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8", "::1/128", "::/0"]
            .map(|cidr| cidr.parse().expect("valid"))
            .into();
        let ports = vec![11211, 22122];
        let options = Options { ports, allow, ..Options::default() };
        let config = encode(&options, &LAYOUT, None).expect("the host tells its clocks");
        assert_eq!(super::ports(&config), options.ports);
        assert_eq!(super::allow(&config), options.allow);
        assert_eq!((config.buckets, config.flow_sets, config.generic), (1, 32, 0));
    }

    #[test]
    fn takes_the_seeds_of_kept_maps_over_and_makes_new_ones_else() {
        let encode = |kept| encode(&Options::default(), &LAYOUT, kept).expect("as above");
        let [first, second] = [encode(None), encode(None)];
        assert_ne!((first.seed, first.nh), (second.seed, second.nh));
        let third = encode(Some(&first));
        assert_eq!((first.seed, first.nh), (third.seed, third.nh));
    }
}
