//! `guest = "172.17.0.2:80"`: an address in the guest's networks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::values::Invalid;
use crate::plan::policy::Destination;

/// An address in the guest's networks, with a port: `172.17.0.2:80`, `[fd00::2]:80`.
///
/// # Errors
/// What is wrong with it.
pub fn destination(text: &str) -> Result<Destination, Invalid> {
    let example = "write an IP address and a port, such as \"172.17.0.2:80\" or \"[fd00::2]:80\"";
    let Ok(address) = text.parse::<SocketAddr>() else {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        return Err(if let Ok(ip) = text.parse::<IpAddr>() {
            let hint = format!("write it with the port: \"{}\"", SocketAddr::new(ip, 80));
            Invalid::new(format!("`{text}` has no port"), hint)
        } else if host.starts_with(|c: char| c.is_ascii_alphabetic()) && port.parse::<u16>().is_ok()
        {
            Invalid::new(format!("`{host}` is a host name"), example)
        } else {
            Invalid::new(format!("`{text}` is not an address with a port"), example)
        });
    };
    let ip = address.ip().to_canonical();
    let no_use = |why: &str, hint: &str| Err(Invalid::new(format!("{ip} {why}"), hint));
    match ip {
        _ if address.port() == 0 => {
            let message = format!("`{text}` has a port that does not exist");
            Err(Invalid::new(message, "write a port from 1 to 65535"))
        }
        _ if ip.is_loopback() || ip.is_unspecified() => {
            let hint = format!("write the port alone: `guest = {}`", address.port());
            no_use("is the guest itself", &hint)
        }
        _ if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            no_use("is not the address of one machine", example)
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => no_use(
            "means nothing without a network interface",
            "write an address that is not link-local",
        ),
        _ => Ok(address.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn destinations() {
        for text in ["172.17.0.2:80", "[fd00::2]:80"] {
            assert_eq!(destination(text).unwrap().to_string(), text);
        }
        let mapped = destination("[::ffff:10.0.0.1]:80").unwrap();
        assert_eq!(mapped.to_string(), "10.0.0.1:80");
        for (text, part) in [
            ("80", "not an address"),
            ("172.17.0.2", "\"172.17.0.2:80\""),
            ("fd00::2", "\"[fd00::2]:80\""),
            ("db:5432", "`db` is a host name"),
            ("172.17.0.2:0", "from 1 to 65535"),
            ("172.17.0.2:65536", "not an address"),
            ("127.0.0.1:5432", "`guest = 5432`"),
            ("[::1]:5432", "`guest = 5432`"),
            ("0.0.0.0:80", "`guest = 80`"),
            ("224.0.0.1:80", "one machine"),
            ("255.255.255.255:80", "one machine"),
            ("[fe80::1]:80", "link-local"),
            ("[fe80::1%2]:80", "link-local"),
            ("", "172.17.0.2:80"),
            (":80", "172.17.0.2:80"),
        ] {
            let said = destination(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
