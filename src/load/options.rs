// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How a cache is set up: ports, size, ages and clients.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use crate::abi::{ALLOW_MAX, PORTS_MAX};

/// The options of a cache. The defaults are those of `bmc attach`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// UDP and TCP ports of memcached.
    pub ports: Vec<u16>,
    /// Where hits are answered.
    pub mode: Mode,
    /// Bytes of memory that all maps together lock.
    pub memory: u64,
    /// The age at which an entry is fetched again.
    pub max_age: Duration,
    /// The same for entries whose expiry is unknown.
    pub unknown_ttl: Duration,
    /// Networks whose clients are answered.
    pub allow: Vec<Cidr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ports: vec![11211],
            mode: Mode::Auto,
            memory: 256 << 20,
            max_age: Duration::from_secs(60),
            unknown_ttl: Duration::from_secs(1),
            allow: PRIVATE_NETWORKS.to_vec(),
        }
    }
}

impl Options {
    /// Checks what single options cannot: whether the programs have room for all of them.
    pub fn check(&self) -> Result<(), String> {
        if self.ports.len() > PORTS_MAX {
            return Err(format!("--port is given more than {PORTS_MAX} times"));
        }
        let ipv4 = self.allow.iter().filter(|cidr| cidr.addr.is_ipv4()).count();
        if ipv4.max(self.allow.len() - ipv4) > ALLOW_MAX {
            return Err(format!("--allow is given more than {ALLOW_MAX} times for a family"));
        }
        Ok(())
    }
}

/// Where hits are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In the driver if it has native XDP, else in tc.
    #[default]
    Auto,
    /// In the driver (native XDP).
    Native,
    /// In the network stack, behind the driver; without an XDP program.
    Tc,
    /// In the network stack, by generic XDP.
    Generic,
}

/// The private, link-local, loopback and unique-local networks: clients that are
/// answered by default.
const PRIVATE_NETWORKS: [Cidr; 8] = [
    Cidr::v4([10, 0, 0, 0], 8),
    Cidr::v4([172, 16, 0, 0], 12),
    Cidr::v4([192, 168, 0, 0], 16),
    Cidr::v4([169, 254, 0, 0], 16),
    Cidr::v4([127, 0, 0, 0], 8),
    Cidr::v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Cidr::v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Cidr::v6(Ipv6Addr::LOCALHOST, 128),
];

/// A network in CIDR notation, as in 10.0.0.0/8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub addr: IpAddr,
    /// The length of its prefix in bits.
    pub bits: u8,
}

impl Cidr {
    const fn v4(octets: [u8; 4], bits: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { addr: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }
    }

    const fn v6(addr: Ipv6Addr, bits: u8) -> Self {
        Self { addr: IpAddr::V6(addr), bits }
    }

    /// The mask of a prefix, 128 bits wide; for IPv4 the first 32 of them.
    fn mask(bits: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
    }

    fn masked(self) -> IpAddr {
        match self.addr {
            IpAddr::V4(addr) => {
                IpAddr::V4((addr.to_bits() & (Self::mask(self.bits) >> 96) as u32).into())
            }
            IpAddr::V6(addr) => IpAddr::V6((addr.to_bits() & Self::mask(self.bits)).into()),
        }
    }

    /// The first address and the mask in network byte order. IPv4 takes the first four
    /// bytes of each.
    pub fn bytes(self) -> ([u8; 16], [u8; 16]) {
        let mut addr = [0; 16];
        match self.addr {
            IpAddr::V4(v4) => addr[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => addr = v6.octets(),
        }
        (addr, Self::mask(self.bits).to_be_bytes())
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let addr: IpAddr = addr
            .parse()
            .map_err(|_| "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8")?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| format!("not a number of bits up to {most} behind the /"))?,
        };
        let cidr = Self { addr, bits };
        let masked = Self { addr: cidr.masked(), bits };
        if cidr != masked {
            return Err(format!("has bits set behind the first {bits} (did you mean {masked}?)"));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_networks_are_the_first_addresses_of_their_prefixes() {
        for cidr in PRIVATE_NETWORKS {
            assert_eq!(cidr.to_string().parse(), Ok(cidr));
        }
    }

    #[test]
    fn refuses_more_than_the_programs_have_room_for() {
        let ports = |n: u16| Options { ports: (1..=n).collect(), ..Options::default() };
        assert_eq!(ports(16).check(), Ok(()));
        assert_eq!(ports(17).check(), Err("--port is given more than 16 times".into()));
        let (v4, v6) = (Cidr::v4([10, 0, 0, 1], 32), Cidr::v6(Ipv6Addr::LOCALHOST, 128));
        let allow = |cidrs: &[Cidr]| Options { allow: cidrs.to_vec(), ..Options::default() };
        assert_eq!(allow(&[[v4; 32], [v6; 32]].concat()).check(), Ok(()));
        let refused = Err("--allow is given more than 32 times for a family".into());
        assert_eq!(allow(&[v4; 33]).check(), refused);
        assert_eq!(allow(&[v6; 33]).check(), refused);
    }

    #[test]
    fn reads_networks() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().map(|c| c.to_string()), Ok(shown.into()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_network() {
        for (text, why) in [
            ("10.0.0.1/8", "has bits set behind the first 8 (did you mean 10.0.0.0/8?)"),
            ("fd00::1/64", "has bits set behind the first 64 (did you mean fd00::/64?)"),
            ("10.0.0.0/33", "not a number of bits up to 32 behind the /"),
            ("fd00::/129", "not a number of bits up to 128 behind the /"),
            ("10.0.0.0/", "not a number of bits up to 32 behind the /"),
            ("10.0.0/8", "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8"),
            ("example.org", "not an IPv4 or IPv6 network, as in 10.0.0.0/8 or fd00::/8"),
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn turns_networks_into_bytes_as_on_the_wire() {
        let (addr, mask) = "172.16.0.0/12".parse::<Cidr>().expect("valid").bytes();
        assert_eq!(addr[..4], [172, 16, 0, 0]);
        assert_eq!(mask[..4], [255, 240, 0, 0]);
        let (addr, mask) = "fe80::/10".parse::<Cidr>().expect("valid").bytes();
        assert_eq!(addr[..2], [0xfe, 0x80]);
        assert_eq!(mask[..3], [0xff, 0xc0, 0]);
        assert_eq!("::/0".parse::<Cidr>().expect("valid").bytes().1, [0; 16]);
    }
}
