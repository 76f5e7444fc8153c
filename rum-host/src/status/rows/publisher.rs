//! Guest programs that hold ports for containers: their names, and which of them belong together.
//!
//! Pure. The guest controls what these programs report, so it is used for names and hints only.

use std::net::IpAddr;

use rum_shared::listener::{MONITOR, Process};

/// Docker starts one of these for each address of a published port: mostly two, for IPv4 and IPv6.
const DOCKER: &str = "docker-proxy";

/// The displayed name of `process`: its short name, followed by the container's name for a
/// container's monitor, as all monitors have the same short name.
pub fn name(process: &Process) -> String {
    match &*process.program {
        MONITOR if !process.script.is_empty() => format!("{}:{}", process.name, process.script),
        _ => process.name.clone(),
    }
}

/// Whether both lead to the same port of the same container, so that clients of either reach the
/// same program.
pub fn same_container(one: &Process, other: &Process) -> bool {
    let (Some((ip, port)), Some((other_ip, other_port))) = (leads_to(one), leads_to(other)) else {
        return false;
    };
    // A container has one address of each family.
    port == other_port && (ip == other_ip || ip.is_ipv4() != other_ip.is_ipv4())
}

/// The container's address and port, from the command line of a [`DOCKER`] proxy.
fn leads_to(process: &Process) -> Option<(IpAddr, u16)> {
    let option = |name: &str| {
        let mut words = process.command.split(' ');
        words.find(|word| *word == name)?;
        words.next()
    };
    if process.program != DOCKER {
        return None;
    }
    let ip = option("-container-ip")?.parse().ok()?;
    Some((ip, option("-container-port")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(host: &str, ip: &str, port: u16) -> Process {
        Process {
            name: "docker-proxy".into(),
            program: "docker-proxy".into(),
            command: format!(
                "/usr/sbin/docker-proxy -proto tcp -host-ip {host} -host-port 5000 \
                 -container-ip {ip} -container-port {port}"
            ),
            ..Process::default()
        }
    }

    #[test]
    fn the_proxies_of_one_container_belong_together() {
        let v4 = proxy("0.0.0.0", "172.17.0.2", 80);
        assert!(same_container(&v4, &proxy("::", "172.17.0.2", 80)));
        assert!(same_container(&v4, &proxy("::", "fd00::2", 80)));
        for other in [
            proxy("127.0.0.2", "172.17.0.3", 80),
            proxy("::", "172.17.0.2", 81),
            Process {
                command: "docker-proxy -container-ip 172.17.0.2 -container-port".into(),
                ..proxy("::", "172.17.0.2", 80)
            },
            Process {
                program: "python3".into(),
                ..proxy("::", "172.17.0.2", 80)
            },
        ] {
            assert!(!same_container(&v4, &other), "{other:?}");
        }
    }

    #[test]
    fn a_monitor_is_called_by_its_container() {
        let monitor = Process {
            name: "conmon".into(),
            program: "conmon".into(),
            script: "web".into(),
            ..Process::default()
        };
        assert_eq!(name(&monitor), "conmon:web");
        let unknown = Process {
            script: String::new(),
            ..monitor.clone()
        };
        assert_eq!(name(&unknown), "conmon");
        let python = Process {
            program: "python3".into(),
            ..monitor
        };
        assert_eq!(name(&python), "conmon");
    }
}
