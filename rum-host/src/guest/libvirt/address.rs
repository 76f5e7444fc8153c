//! The address of a domain for a login: what libvirt knows or can query.

use std::net::IpAddr;

use super::virsh::DEADLINE;
use super::{Domain, Spec};
use crate::error::RumError;
use crate::guest::libvirt::error::DomainErrors;

/// Sources of the address (virsh(1), domifaddr), the most reliable first: libvirt's DHCP server,
/// QEMU's agent in the domain, this machine's ARP table.
const SOURCES: [&str; 3] = ["lease", "agent", "arp"];
/// Likewise for a domain of a user's own: that agent says the address in QEMU's user network, to which nothing leads.
const SESSION_SOURCES: [&str; 2] = ["lease", "arp"];

/// An address of the running domain.
///
/// # Errors
/// libvirt cannot be reached or has no such domain; no source has an address.
pub async fn address(spec: &Spec) -> Result<IpAddr, RumError> {
    let domain = Domain::find(spec).await?;
    let sources: &[&str] = if spec.is_session() {
        &SESSION_SOURCES
    } else {
        &SOURCES
    };
    for source in sources {
        let options = [format!("--source={source}")];
        match domain.run("domifaddr", &options, DEADLINE).await {
            Ok(said) => {
                if let Some(address) = best(&said) {
                    return Ok(address);
                }
            }
            Err(failed) => tracing::debug!(source, ?failed, "no address of the domain"),
        }
    }
    Err(DomainErrors::of(spec).no_address())
}

/// The address for a login, from a table of name, MAC, protocol and address: one that this machine
/// can reach, IPv4 first.
fn best(table: &str) -> Option<IpAddr> {
    let addresses = table.lines().filter_map(|line| {
        let address = line.split_ascii_whitespace().last()?;
        address.split('/').next()?.parse().ok()
    });
    let leads = |address: &IpAddr| match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    addresses.filter(leads).min_by_key(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_leads_there_is_chosen() {
        let table = " lo         00:00:00:00:00:00    ipv4         127.0.0.1/8
 -          -                    ipv6         ::1/128
 eth0       52:54:00:11:22:33    ipv6         fe80::5054:ff:fe11:2233/64
 -          -                    ipv6         2001:db8::7/64
 eth1       52:54:00:11:22:34    ipv4         192.168.122.7/24
";
        assert_eq!(best(table), "192.168.122.7".parse().ok());
        let without = table.lines().take(4).collect::<Vec<_>>().join("\n");
        assert_eq!(best(&without), "2001:db8::7".parse().ok());
        let without = table.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(best(&without), None);
        assert_eq!(best(""), None);
        assert_eq!(best("error: -oProxyCommand=x/1"), None);
    }
}
