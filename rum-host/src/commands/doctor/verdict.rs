//! What the facts mean for rum: one line each, with a remedy where something is to be done.

use facet::Facet;

use super::facts::{Facts, No, Tried};
use crate::runtime_dir::RunningGuest;

/// How good a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Slower than it could be, or missing for something that not everybody needs.
    Warn,
    /// `rum up` cannot work with its default guest.
    Fail,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Check {
    /// A word for what was looked at.
    pub check: String,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub fact: String,
    /// What to do about it; None only if it is `ok`.
    pub remedy: Option<String>,
}

/// A running guest of this user.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct GuestLine {
    /// Its name.
    pub name: String,
    /// Its kind; None while it starts.
    pub kind: Option<String>,
    /// The process id of its `rum up`.
    pub pid: Option<u32>,
}

impl From<&RunningGuest> for GuestLine {
    fn from(guest: &RunningGuest) -> Self {
        let clean = |kind: &String| rum_shared::text::clean(kind, rum_shared::listener::MAX_NAME);
        Self {
            name: guest.name.clone(),
            kind: guest.kind.as_ref().map(clean),
            pid: guest.rum.map(|rum| rum.pid()),
        }
    }
}

fn ok(check: &str, fact: impl Into<String>) -> Check {
    Check {
        check: check.to_owned(),
        level: Level::Ok,
        fact: fact.into(),
        remedy: None,
    }
}

fn bad(check: &str, level: Level, fact: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        level,
        remedy: Some(remedy.into()),
        ..ok(check, fact)
    }
}

/// `good`, or why not with the remedy that came along, else `remedy`.
fn tried(check: &str, tried: &Tried, good: &str, level: Level, remedy: &str) -> Check {
    match tried {
        Ok(()) => ok(check, good),
        Err(No { why, remedy: known }) => {
            bad(check, level, why, known.as_deref().unwrap_or(remedy))
        }
    }
}

/// The checks, in the order in which they are shown.
pub fn checks(facts: &Facts) -> Vec<Check> {
    let mut all = vec![
        kernel(&facts.kernel),
        tried(
            "user namespaces",
            &facts.user_namespaces,
            "an ordinary user can make them",
            if facts.uid == 0 {
                Level::Warn
            } else {
                Level::Fail
            },
            "run rum as root",
        ),
        runtime_dir(facts),
        guest(facts),
        events(facts),
        tracepoint(facts),
        dumps(facts),
        tried(
            "sockstat",
            &facts.sockstat,
            "the socket counters can be read",
            Level::Warn,
            "mount /proc; until then an agent without the tracepoint dumps ten times a second",
        ),
        ports(facts),
        open_files(facts.open_files),
    ];
    all.extend(virtual_machines(facts));
    if let Err(no) = &facts.guests {
        let remedy = no.remedy.as_deref().unwrap_or("set RUM_RUNTIME_DIR");
        all.push(bad("guests", Level::Warn, &no.why, remedy));
    }
    all
}

/// setns(2) takes a pidfd since this version, which `rum exec` and commands in a guest rest on.
const OLDEST: (u32, u32) = (5, 8);

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let fact = format!("Linux {release}");
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST => bad(
            "kernel",
            Level::Fail,
            fact,
            format!("use Linux {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
        _ => ok("kernel", fact),
    }
}

fn guest(facts: &Facts) -> Check {
    match &facts.guest {
        Ok(guest) if guest.user_namespace && guest.more_ids => ok(
            "namespace guest",
            "started, entered and ended, in a user namespace with the ids of /etc/subuid and subgid",
        ),
        Ok(guest) if guest.user_namespace => ok(
            "namespace guest",
            "started, entered and ended, in a user namespace of its own",
        ),
        Ok(_) => ok("namespace guest", "started, entered and ended, as root"),
        Err(No { why, remedy }) => bad(
            "namespace guest",
            Level::Fail,
            why,
            remedy.as_deref().unwrap_or(
                "`rum up -vv` says more; a VM (kind \"vsock\" or \"unix\") needs no namespaces",
            ),
        ),
    }
}

fn events(facts: &Facts) -> Check {
    const NAME: &str = "events";
    const FASTER: &str = "another seccomp supervisor is active (of some containers, or of a \
                          guest of another rum): run rum outside it, or as root for the \
                          tracepoint: about 3 ms faster";
    match facts
        .guest
        .as_ref()
        .map(|guest| (guest.hint.as_str(), guest.user_namespace))
    {
        Ok(("tracepoint", _)) => ok(
            NAME,
            "a namespace guest of this user is woken by the tracepoint; of an ordinary user by \
             seccomp notifications",
        ),
        Ok(("seccomp", _)) => ok(
            NAME,
            "a namespace guest of this user is woken by seccomp notifications of listen()",
        ),
        Ok(("poll", true)) => bad(
            NAME,
            Level::Warn,
            "a namespace guest of this user polls socket counters every 4 ms",
            FASTER,
        ),
        Ok((hint, _)) => bad(
            NAME,
            Level::Warn,
            format!("a namespace guest of this user has `{hint}`, not the tracepoint"),
            "see the tracepoint below",
        ),
        Err(_) => bad(
            NAME,
            Level::Warn,
            "not known without a namespace guest",
            "see the namespace guest above",
        ),
    }
}

fn tracepoint(facts: &Facts) -> Check {
    const NAME: &str = "tracepoint";
    match &facts.tracepoint {
        Ok(()) => ok(NAME, "sock:inet_sock_set_state can be opened"),
        Err(no) => {
            let paranoid = match &facts.perf_event_paranoid {
                Some(value) => format!("; kernel.perf_event_paranoid is {value}"),
                None => "; this kernel has no perf events".to_owned(),
            };
            let remedy = no.remedy.as_deref().unwrap_or("run rum as root");
            bad(NAME, Level::Warn, format!("{}{paranoid}", no.why), remedy)
        }
    }
}

fn dumps(facts: &Facts) -> Check {
    const NAME: &str = "sock_diag";
    const REMEDY: &str = "load the modules inet_diag and tcp_diag, or allow AF_NETLINK sockets \
                          in the container's seccomp profile";
    let in_guest = facts.guest.as_ref().map_or("", |guest| &guest.source);
    match &facts.sock_diag {
        Ok(()) if in_guest == "proc" => bad(
            NAME,
            Level::Warn,
            "answers here but not in a namespace guest, which reads /proc/net/tcp instead",
            REMEDY,
        ),
        Ok(()) => ok(NAME, "the kernel lists its listening sockets"),
        Err(no) => bad(
            NAME,
            Level::Warn,
            format!("{}; /proc/net/tcp is read instead, which is slower", no.why),
            REMEDY,
        ),
    }
}

fn ports(facts: &Facts) -> Check {
    const NAME: &str = "low ports";
    let start = facts.port_start.as_deref().unwrap_or("1024");
    match &facts.low_port {
        Ok(()) => ok(
            NAME,
            format!("this user may bind any host port, other users those from {start} on"),
        ),
        Err(no) => bad(
            NAME,
            Level::Warn,
            format!(
                "this user may bind host ports from {start} on; below: {}",
                no.why
            ),
            "as root: sysctl -w net.ipv4.ip_unprivileged_port_start=80, to bind from 80 on",
        ),
    }
}

/// Below this many connections somebody may notice.
const FEW_FILES: u64 = 4096;

fn open_files([soft, hard]: [Option<u64>; 2]) -> Check {
    const NAME: &str = "open files";
    let word = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    // The host has two for each connection.
    let connections = soft.map(|n| n / 2);
    let fact = format!(
        "soft limit {}, hard {}{}",
        word(soft),
        word(hard),
        connections.map_or(String::new(), |n| format!(
            ": about {n} connections at a time"
        )),
    );
    match connections {
        Some(n) if n < FEW_FILES / 2 => bad(
            NAME,
            Level::Warn,
            fact,
            match hard {
                Some(hard) if hard <= FEW_FILES => {
                    "raise LimitNOFILE of the service, or `nofile` in /etc/security/limits.conf"
                        .to_owned()
                }
                hard => format!("for more: ulimit -n {}", word(hard)),
            },
        ),
        _ => ok(NAME, fact),
    }
}

fn runtime_dir(facts: &Facts) -> Check {
    let (path, result) = &facts.runtime_dir;
    let good = format!("{} is ours alone", path.display());
    let remedy = "set RUM_RUNTIME_DIR to a directory of your own";
    tried("runtime directory", result, &good, Level::Fail, remedy)
}

/// What virtual machines need; nobody else misses it.
fn virtual_machines(facts: &Facts) -> [Check; 9] {
    let warn = Level::Warn;
    [
        tried(
            "vsock",
            &facts.vsock,
            "sockets of the family AF_VSOCK can be made",
            warn,
            "for guests of kind \"vsock\": modprobe vsock",
        ),
        match &facts.local_cid {
            Ok(cid) => ok("local cid", format!("this machine's context id is {cid}")),
            Err(no) => bad(
                "local cid",
                warn,
                &no.why,
                "for rum-agent inside a VM only: modprobe vsock, and let this user read /dev/vsock",
            ),
        },
        tried(
            "vhost-vsock",
            &facts.vhost_vsock,
            "/dev/vhost-vsock can be opened",
            warn,
            "for VMs: modprobe vhost_vsock, and be in the group of /dev/vhost-vsock; or install \
             vhost-device-vsock, which guests of kind \"qemu\" take instead",
        ),
        match &facts.vhost_device_vsock {
            Some(path) => ok("vhost-device-vsock", path.display().to_string()),
            None => bad(
                "vhost-device-vsock",
                warn,
                "not in the PATH",
                "only for VMs without /dev/vhost-vsock: cargo install --locked vhost-device-vsock",
            ),
        },
        tried(
            "kvm",
            &facts.kvm,
            "a guest's instructions are executed by the processor",
            warn,
            "for fast VMs: turn virtualisation on in the firmware, modprobe kvm_intel or \
             kvm_amd, and be in the group `kvm`",
        ),
        match &facts.qemu {
            Ok(version) => ok("qemu", version),
            Err(no) => bad(
                "qemu",
                warn,
                &no.why,
                "for guests of kind \"qemu\": install qemu-system-x86 (-arm on aarch64)",
            ),
        },
        match &facts.qemu_img {
            Some(path) => ok("qemu-img", path.display().to_string()),
            None => bad(
                "qemu-img",
                warn,
                "not in the PATH",
                "only for guests of kind \"qemu\" with an `image`: install qemu-utils",
            ),
        },
        match &facts.libvirt {
            Ok(hypervisor) => ok("libvirt", hypervisor),
            Err(No { why, remedy }) => {
                let remedy = remedy.as_deref().unwrap_or(
                    "start it, be in the group `libvirt`, or write `uri = \"qemu:///session\"`",
                );
                let remedy = format!("only for guests of kind \"libvirt\": {remedy}");
                bad("libvirt", warn, why, remedy)
            }
        },
        match (&facts.ssh, &facts.ssh_keygen) {
            (Some(path), Some(_)) => ok("ssh", path.display().to_string()),
            (ssh, _) => bad(
                "ssh",
                warn,
                match ssh {
                    None => "no ssh in the PATH",
                    Some(_) => "no ssh-keygen in the PATH",
                },
                "only for `rum ssh`: install openssh-client (openssh-clients on Fedora)",
            ),
        },
    ]
}
