//! `rum check`: what `rum up` would forward, and what on this machine prevents it.
//!
//! Every statement about the machine was tested: each address is bound for an instant, without
//! listening, so that nothing can connect to it. The result holds only for this moment, so it never
//! changes the exit code: `rum up` waits for a host port that is taken. The code that starts the
//! guest also checks what would prevent the start ([`guest::in_the_way`]).
//!
//! Invariant: `summary` and `warnings` are pure.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rum_shared::range::{PortRange, PortRanges};
use rum_shared::text::printable;

use crate::cli::GlobalArgs;
use crate::cli::tools::CheckArgs;
use crate::config::{self, Settings};
use crate::error::RumError;
use crate::exit;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder;
use crate::guest::{self, GuestKind};
use crate::plan::policy::{PortBlock, RuleAction};
use crate::plan::{AutoPolicy, Binds, HostAddr, OnConflict, StaticForward};
use crate::ui::render;

/// Runs `rum check`.
///
/// # Errors
/// The configuration is wrong, or stdout cannot be written to.
pub async fn run(args: &CheckArgs, global: &GlobalArgs) -> Result<u8, RumError> {
    let settings = config::load(args.config.as_deref(), &args.overrides())?;
    if !global.quiet {
        super::print(&summary(&settings))?;
    }
    let auto = settings.policy.auto.iter();
    let outgoing = auto.filter_map(|auto| outgoing(auto, local_port_range()));
    let guest = guest::in_the_way(&settings.guest).await;
    let guest = guest
        .into_iter()
        .map(|error| render::warning(&error.into()));
    let ports = warnings(&settings, probe).into_iter().chain(outgoing);
    let warnings: String = guest.chain(ports.map(|warning| warning.render())).collect();
    // A closed stderr is not a failure.
    let _ = anstream::stderr().lock().write_all(warnings.as_bytes());
    Ok(exit::OK)
}

/// What would be forwarded, one line each.
fn summary(settings: &Settings) -> String {
    let mut lines = Vec::new();
    lines.push(match &settings.origin {
        Some(file) => format!("{} is valid", file.display()),
        None => "The command line is valid, and there is no rum.toml".to_owned(),
    });
    let kind = match &settings.guest {
        GuestKind::Namespace(_) => "a network namespace of this machine".to_owned(),
        GuestKind::Qemu(vm) => format!("a VM that boots from {}", vm.boot.file().display()),
        GuestKind::Vsock { cid } => format!("the VM with context id {cid} (vsock)"),
        GuestKind::Unix { socket } => format!("the VM behind {} (unix)", socket.display()),
        GuestKind::Libvirt(spec) => format!("the domain {} of {}", spec.domain, spec.uri),
    };
    lines.push(format!("guest      {}: {kind}", settings.name));
    lines.extend(settings.policy.statics.iter().map(|forward| {
        let StaticForward {
            host,
            binds,
            guest,
            label,
        } = forward;
        let host = shown(*binds, host.0.port());
        let label = label.iter().map(|label| format!(" ({label})"));
        format!(
            "static     {host} → guest:{guest}{}",
            label.collect::<String>()
        )
    }));
    lines.extend(settings.policy.auto.iter().flat_map(automatic));
    lines.extend(settings.policy.auto.iter().flat_map(rules));
    // A path may contain any characters.
    lines.iter().map(|line| printable(line) + "\n").collect()
}

fn automatic(auto: &AutoPolicy) -> [String; 2] {
    let AutoPolicy {
        ranges,
        bind,
        on_conflict,
        drain,
        ..
    } = auto;
    let conflict = match on_conflict {
        OnConflict::Wait => "wait until it is free",
        OnConflict::Next => "take the next free one",
    };
    let drain = match drain {
        None => "go on when their port closes".to_owned(),
        Some(Duration::ZERO) => "are cut when their port closes".to_owned(),
        Some(drain) => format!("may go on for {drain:?} when their port closes"),
    };
    [
        format!("automatic  {} → guest, the same port", shown(*bind, ranges)),
        format!("           host port taken: {conflict}; connections {drain}"),
    ]
}

/// `localhost:5000-6000`, `127.0.0.1:5000, [::1]:5000`
fn shown(binds: Binds, ports: impl std::fmt::Display) -> String {
    if binds == Binds::LOCALHOST {
        return format!("localhost:{ports}");
    }
    let one = |ip: IpAddr| {
        if ip.is_ipv6() {
            format!("[{ip}]:{ports}")
        } else {
            format!("{ip}:{ports}")
        }
    };
    binds.all().map(one).collect::<Vec<_>>().join(", ")
}

/// What is excluded, and a line for each rule.
fn rules(auto: &AutoPolicy) -> Vec<String> {
    let exclude = Some(&auto.exclude).filter(|exclude| !exclude.is_empty());
    let mut lines: Vec<_> = exclude
        .map(|e| format!("excluded   {e}"))
        .into_iter()
        .collect();
    lines.extend(auto.rules.iter().enumerate().map(|(index, rule)| {
        let mut line = format!("rule {:<5} {rule}: ", index + 1);
        match rule.action {
            RuleAction::Ignore => line += "ignored",
            RuleAction::Forward { host, bind } => {
                let bind = bind.unwrap_or(auto.bind);
                line += &match host {
                    Some(host) => format!("to {} and up", shown(bind, host)),
                    None => format!("to {bind}, the same port"),
                };
            }
        }
        line.extend(rule.label.iter().map(|label| format!(" ({label})")));
        line
    }));
    lines
}

/// A problem on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Warning {
    message: String,
    hint: String,
}

impl Warning {
    fn render(&self) -> String {
        render::warning(&RumError::new(&*self.message).hint(&*self.hint))
    }
}

/// The problems of `settings`, according to `probe`.
fn warnings(
    settings: &Settings,
    mut probe: impl FnMut(SocketAddr) -> Option<BindFailure>,
) -> Vec<Warning> {
    let mut found = Vec::new();
    for StaticForward { host, binds, .. } in &settings.policy.statics {
        for ip in binds.all() {
            let addr = SocketAddr::new(ip, host.0.port());
            match probe(addr) {
                Some(BindFailure::NoAddress) if binds.may_lack(ip) => {}
                why => found.extend(why.map(|why| in_the_way(addr, &why))),
            }
        }
    }
    if let Some(auto) = &settings.policy.auto
        && let Some(range) = auto.ranges.hull()
    {
        // The lowest port is the one that may need privilege.
        for ip in auto.bind.all() {
            let lowest = SocketAddr::new(ip, range.min());
            match probe(lowest) {
                // One port of many, on which the guest may never listen.
                Some(BindFailure::Taken { .. }) => {}
                Some(BindFailure::NoAddress) if auto.bind.may_lack(ip) => {}
                why => found.extend(why.map(|why| in_the_way(lowest, &why))),
            }
        }
    }
    let statics = settings.policy.statics.iter().flat_map(|s| s.binds.all());
    let autos = settings.policy.auto.iter().flat_map(|a| a.bind.all());
    let mut wide: Vec<_> = statics
        .chain(autos)
        .filter(|ip| ip.is_unspecified())
        .collect();
    wide.sort_unstable();
    wide.dedup();
    found.extend(wide.into_iter().map(|ip| Warning {
        message: format!("{ip} is every address of this machine: the network can reach the guest"),
        hint: "write `bind = \"localhost\"` to let only this machine in".to_owned(),
    }));
    found
}

/// Warns that outgoing connections may take host ports of `auto`, if the kernel takes their ports
/// from `local`.
fn outgoing(auto: &AutoPolicy, local: Option<PortRange>) -> Option<Warning> {
    let local = local?;
    let host = auto
        .port_blocks()
        .iter()
        .map(PortBlock::host)
        .reduce(|all, t| all.union(&t))?;
    let shared = host.intersection(&PortRanges::new([local]));
    (!shared.is_empty()).then(|| Warning {
        message: format!(
            "host ports {shared} are among those that outgoing connections get \
             (net.ipv4.ip_local_port_range is {local}): while one has a port, it cannot be forwarded"
        ),
        hint: format!(
            "choose other ports, or as root: sysctl -w net.ipv4.ip_local_reserved_ports={shared}"
        ),
    })
}

/// The ports that the kernel gives to outgoing connections (ip(7)).
fn local_port_range() -> Option<PortRange> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    PortRange::new(ends.next()?.ok()?, ends.next()?.ok()?).ok()
}

fn in_the_way(addr: SocketAddr, why: &BindFailure) -> Warning {
    let hint = match why {
        BindFailure::Taken {
            holder: Some(_), ..
        } => "`rum up` forwards it once that is free; or choose another `host` port".to_owned(),
        BindFailure::Taken { holder: None, .. } => format!(
            "`rum up` forwards it once that is free; as root `ss -ltnp sport = :{}` says by whom",
            addr.port()
        ),
        BindFailure::Privileged => format!(
            "choose a higher port, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start={}",
            addr.port()
        ),
        BindFailure::NoAddress => {
            "`ip address` shows those that it has; \"127.0.0.1\" is always among them".to_owned()
        }
        BindFailure::Other(_) => "`rum up` tries again and again".to_owned(),
    };
    Warning {
        message: why.message(HostAddr(addr)),
        hint,
    }
}

/// Why `addr` cannot be bound; `None` if it can. Binds it for an instant, as the forwarder does,
/// without listening.
fn probe(addr: SocketAddr) -> Option<BindFailure> {
    let failure = BindFailure::from(io::Error::from(bind(addr).err()?));
    if let BindFailure::Taken { .. } = failure {
        let (holder, by) = holder::holder(HostAddr(addr));
        return Some(BindFailure::Taken { holder, by });
    }
    Some(failure)
}

/// Binds `addr` and closes the socket.
pub(super) fn bind(addr: SocketAddr) -> rustix::io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let family = if addr.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Earlier connections in TIME_WAIT do not prevent a bind.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use rum_shared::listener::Process;

    use super::*;
    use crate::config::parse;
    use crate::forward::bind_failure::Hold;

    const FILE: &str = "name = \"dev\"
drain = \"0\"
[[ports]]
host = 8080
guest = 80
[[ports]]
host = 80
guest = 8000
bind = \"::\"
[[ports]]
host = 9000
guest = 9000
bind = \"192.0.2.1\"
[auto_ports]
range = \"443,5000-6000\"
bind = \"0.0.0.0\"
on_conflict = \"next\"
";

    fn settings(text: &str) -> Settings {
        Settings {
            origin: Some("rum.toml".into()),
            ..parse(text, "rum.toml").unwrap()
        }
    }

    #[test]
    fn summaries() {
        let mut vsock = settings(FILE);
        vsock.guest = GuestKind::Vsock { cid: 3 };
        let mut alone = settings("[auto_ports]\nrange = \"5000-6000\"\nbind = \"::1\"");
        alone.origin = None;
        alone.guest = GuestKind::Unix {
            socket: "/run/a\u{1b}[2J\u{202e}".into(),
        };
        let all = [settings(FILE), vsock, alone].map(|s| summary(&s));
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn every_warning() {
        let postgres = Process {
            pid: 4121,
            name: "postgres".into(),
            ..Process::default()
        };
        let probe = |addr: SocketAddr| match addr.port() {
            8080 => Some(BindFailure::Taken {
                holder: Some(postgres.clone()),
                by: Hold::Listener,
            }),
            80 | 443 => Some(BindFailure::Privileged),
            9000 => Some(BindFailure::NoAddress),
            _ => panic!("{addr} was not asked for"),
        };
        let mut all = warnings(&settings(FILE), probe);
        let taken = |by| BindFailure::Taken { holder: None, by };
        let at = "[::1]:1".parse().unwrap();
        all.extend([Hold::Listener, Hold::TimeWait].map(|by| in_the_way(at, &taken(by))));
        let auto = settings("[auto_ports]\nrange = \"5000,32000-40000\"")
            .policy
            .auto
            .unwrap();
        all.extend(outgoing(&auto, PortRange::new(32768, 60999).ok()));
        assert_eq!(outgoing(&auto, PortRange::new(50000, 60999).ok()), None);
        all.push(in_the_way(at, &BindFailure::Other("no memory".into())));
        let text: String = all.iter().map(Warning::render).collect();
        insta::assert_snapshot!(crate::commands::plain(&text));
        let free = "[auto_ports]\nrange = \"5000\"";
        assert_eq!(warnings(&settings(free), |_| None), []);
        let taken = warnings(&settings(free), |_| Some(taken(Hold::Listener)));
        assert_eq!(taken, [], "one of the automatic ports");
    }

    #[test]
    fn what_is_tried_is_true() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let Some(BindFailure::Taken {
            holder: Some(holder),
            by: Hold::Listener,
        }) = probe(addr)
        else {
            panic!("not taken");
        };
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(probe("127.0.0.1:0".parse().unwrap()), None);
        // TEST-NET-1 of RFC 5737 is nobody's.
        assert_eq!(
            probe("192.0.2.1:0".parse().unwrap()),
            Some(BindFailure::NoAddress)
        );
    }
}
