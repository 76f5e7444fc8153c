//! Which host addresses are in each other's way.

use std::net::{IpAddr, SocketAddr};

use rum_shared::range::{PortRange, PortRanges};

/// Whether two listening sockets at `a` and `b` would be in each other's way. `::` takes IPv4
/// as well.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| {
        all.is_unspecified() && (all.is_ipv6() || all.is_ipv4() == one.is_ipv4())
    };
    a.port() == b.port() && (a.ip() == b.ip() || covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

/// `ranges` without `ports`.
pub(super) fn without(ranges: &PortRanges, ports: &[u16]) -> PortRanges {
    let mut left = Vec::new();
    for range in ranges.iter() {
        let mut cut: Vec<u16> = ports
            .iter()
            .copied()
            .filter(|p| range.contains(*p))
            .collect();
        cut.sort_unstable();
        // A range that would be empty is an error, and so left out.
        let mut from = Some(range.min());
        for port in cut {
            left.extend(from.and_then(|from| PortRange::new(from, port - 1).ok()));
            from = port.checked_add(1);
        }
        left.extend(from.and_then(|from| PortRange::new(from, range.max()).ok()));
    }
    PortRanges::new(left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_cut_out_of_ranges() {
        let cut = |text: &str, ports: &[u16]| without(&text.parse().unwrap(), ports).to_string();
        assert_eq!(cut("5000-6000", &[5050]), "5000-5049,5051-6000");
        assert_eq!(cut("5000-6000", &[6000, 5000, 5000]), "5001-5999");
        assert_eq!(cut("1-65535", &[65535, 1]), "2-65534");
        assert_eq!(cut("8080", &[8080]), "");
        assert_eq!(cut("8080,9000-9001", &[9000]), "8080,9001");
    }

    #[test]
    fn what_collides() {
        let collide = |a: &str, b: &str| collide(a.parse().unwrap(), b.parse().unwrap());
        assert!(collide("127.0.0.1:1", "127.0.0.1:1"));
        assert!(collide("0.0.0.0:1", "127.0.0.1:1"));
        assert!(collide("127.0.0.1:1", "[::]:1"));
        assert!(collide("[::1]:1", "[::]:1"));
        assert!(!collide("0.0.0.0:1", "[::1]:1"));
        assert!(!collide("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!collide("127.0.0.1:1", "127.0.0.1:2"));
    }
}
