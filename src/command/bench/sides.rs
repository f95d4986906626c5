// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What is compared, and under which load.

use std::net::SocketAddr;
use std::time::Duration;

use super::cases::{About, Case};
use super::net::Net;
use super::server::Sockets;
use crate::load::options::Mode;
use crate::memcached::reuseport::Steer;

/// The rate at which latency is measured, as a share of what memcached alone can do.
pub const PACE: f64 = 0.7;

/// The maximum age of entries. They outlive the measurements, whose results thus do not depend on
/// how long a measurement takes.
pub const AGE: Duration = Duration::from_secs(3600);

/// What answers the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// memcached alone.
    Without,
    /// bmc in the driver.
    Native,
    /// bmc in tc.
    Tc,
    /// bmc as generic XDP.
    Generic,
    /// The smallest XDP program that answers: it sends requests back.
    Reflector,
    /// memcached alone, each worker with a UDP socket of its own.
    Sockets,
    /// The same with bmc in the driver.
    SocketsNative,
    /// The same without bmc; the client chooses the worker.
    ByClient,
    /// The same without bmc; the CPU chooses the worker.
    ByCpu,
}

impl Side {
    /// All sides, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Without,
        Self::Native,
        Self::Tc,
        Self::Generic,
        Self::Reflector,
        Self::Sockets,
        Self::SocketsNative,
        Self::ByClient,
        Self::ByCpu,
    ];

    /// The sides that a case compares.
    pub fn of(case: &Case) -> Vec<Self> {
        if case.about == About::Sockets {
            return vec![
                Self::Without,
                Self::Native,
                Self::Sockets,
                Self::SocketsNative,
                Self::ByClient,
                Self::ByCpu,
            ];
        }
        let mut sides = vec![Self::Without, Self::Native, Self::Tc, Self::Generic];
        // The reflector speaks no TCP.
        if !case.uses_tcp() {
            sides.push(Self::Reflector);
        }
        sides
    }

    /// Its name, which is also that of its network device and of its instance.
    pub fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Native => "native",
            Self::Tc => "tc",
            Self::Generic => "generic",
            Self::Reflector => "reflector",
            Self::Sockets => "sockets",
            Self::SocketsNative => "sockets-native",
            Self::ByClient => "by-client",
            Self::ByCpu => "by-cpu",
        }
    }

    /// How its memcached gets datagrams.
    pub fn sockets(self) -> Sockets {
        match self {
            Self::Sockets | Self::SocketsNative => Sockets::Own(Steer::Datagram),
            Self::ByClient => Sockets::Own(Steer::Client),
            Self::ByCpu => Sockets::Own(Steer::Cpu),
            _ => Sockets::Shared,
        }
    }

    /// The address of its memcached.
    pub fn address(self) -> SocketAddr {
        Net::server(self as usize, self.sockets().port())
    }

    /// The mode of bmc; `None` if it has none.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Self::Without | Self::Reflector | Self::Sockets | Self::ByClient | Self::ByCpu => None,
            Self::Native | Self::SocketsNative => Some(Mode::Native),
            Self::Tc => Some(Mode::Tc),
            Self::Generic => Some(Mode::Generic),
        }
    }
}

/// How clients send requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// As many as are answered.
    Saturated,
    /// This many a second.
    Paced(f64),
}

impl Load {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saturated => "saturated",
            Self::Paced(_) => "paced",
        }
    }

    /// Requests a second; `None` for as many as are answered.
    pub fn rate(self) -> Option<f64> {
        match self {
            Self::Saturated => None,
            Self::Paced(rate) => Some(rate),
        }
    }
}
