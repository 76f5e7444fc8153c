//! Step 2: what dumps and lookups show.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rum_agent::kernel::Socket;
use rum_agent::kernel::proc_net::ProcNet;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_agent::kernel::sockstat::Sockstat;
use rum_tests::netns::add_to_lo;
use rustix::net::{AddressFamily, Shutdown, SocketType, shutdown, socket};

use super::*;

/// Listeners of every kind, and things that are none.
fn varied() -> (Vec<OwnedFd>, Vec<TcpStream>) {
    add_to_lo("fe80::1".parse().unwrap()).unwrap();
    let v6_only = Options {
        v6_only: true,
        ..Options::default()
    };
    let listeners = vec![
        listener("0.0.0.0:1"),
        listener("0.0.0.0:5000"),
        listener("127.0.0.1:5001"),
        listener("127.0.0.2:5001"),
        listener("[::1]:5001"),
        twin("0.0.0.0:5002"),
        twin("0.0.0.0:5002"),
        twin("127.0.0.1:5002"),
        listener("[::]:5003"),
        listener_with("[::]:5004", v6_only),
        listener("0.0.0.0:5004"),
        listener("[::ffff:127.0.0.1]:5005"),
        listener("[fe80::1%1]:5006"),
        listener("0.0.0.0:65535"),
        bound("127.0.0.1:5007", Options::default()),
    ];
    let connections = ["127.0.0.1:5000", "127.0.0.1:5003", "[::1]:5003"]
        .map(|to| TcpStream::connect(to).unwrap())
        .into();
    (listeners, connections)
}

/// A line of `ss -ltnH` for a socket, with the interface left out.
fn as_ss(socket: &Socket) -> String {
    let port = socket.port;
    match socket.ip {
        _ if socket.dual_stack => format!("*:{port}"),
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

#[test]
fn both_sources_and_ss_show_the_same_sockets() {
    alone_in_netns(|| {
        let _sockets = varied();
        let netlink = SockDiag::open().unwrap().dump().unwrap();
        assert_eq!(
            ports(&netlink),
            [
                1, 5000, 5001, 5001, 5001, 5002, 5002, 5002, 5003, 5004, 5004, 5005, 5006, 65535
            ]
        );

        let output = Command::new("ss").arg("-ltnH").output().unwrap();
        assert!(output.status.success());
        let mut ss: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().nth(3).unwrap())
            .map(|local| {
                local
                    .replace("%lo", "")
                    .replace("[::ffff:127.0.0.1]", "127.0.0.1")
            })
            .collect();
        ss.sort();
        let mut ours: Vec<_> = netlink.iter().map(as_ss).collect();
        ours.sort();
        assert_eq!(ours, ss);

        // What /proc cannot know left aside.
        let comparable = |sockets: Vec<Socket>| {
            let mut sockets: Vec<_> = sockets
                .into_iter()
                .map(|s| (s.port, s.ip, s.uid, s.inode))
                .collect();
            sockets.sort();
            sockets
        };
        let proc = ProcNet::new().dump().unwrap();
        assert!(proc.iter().all(|socket| socket.cookie.is_none()));
        assert_eq!(comparable(proc), comparable(netlink));
    });
}

#[test]
fn a_lookup_finds_every_kind_of_listener_until_it_closes() {
    in_netns(|| {
        let (mut listeners, _connections) = varied();
        let mut source = SockDiag::open().unwrap();
        let sockets = source.dump().unwrap();
        for socket in &sockets {
            assert!(source.exists(socket).unwrap(), "{socket:?}");
        }
        // One of the two twins on 0.0.0.0:5002: the other still serves the address.
        drop(listeners.remove(5));
        for socket in &sockets {
            assert!(source.exists(socket).unwrap(), "{socket:?}");
        }
        drop(listeners);
        for socket in &sockets {
            assert!(!source.exists(socket).unwrap(), "{socket:?}");
        }
    });
}

#[test]
fn a_listen_dump_does_not_list_connections() {
    in_netns(|| {
        let server = TcpListener::bind("127.0.0.1:5000").unwrap();
        let mut connections = Vec::new();
        for _ in 0..100 {
            connections.push(TcpStream::connect("127.0.0.1:5000").unwrap());
            connections.push(server.accept().unwrap().0);
        }
        let mut source = SockDiag::open().unwrap();
        assert_eq!(ports(&source.dump().unwrap()), [5000]);
        // Not even those that still use the port of a listener that is gone.
        drop(server);
        assert_eq!(ports(&source.dump().unwrap()), [] as [u16; 0]);
    });
}

#[test]
fn a_dump_of_many_datagrams_is_complete() {
    allow_many_descriptors();
    in_netns(|| {
        let _listeners: Vec<_> = (10_000..11_000)
            .map(|port| listener(&format!("127.0.0.1:{port}")))
            .collect();
        let mut source = SockDiag::open().unwrap();
        let expected: Vec<u16> = (10_000..11_000).collect();
        assert_eq!(ports(&source.dump().unwrap()), expected);
        assert_eq!(ports(&ProcNet::new().dump().unwrap()), expected);
    });
}

#[test]
fn a_dump_of_some_ports_shows_all_of_theirs_and_nothing_else() {
    in_netns(|| {
        let (listeners, _connections) = varied();
        let mut source = SockDiag::open().unwrap();
        let all = source.dump().unwrap();
        let every: BTreeSet<u16> = all.iter().map(|socket| socket.port).collect();
        for port in &every {
            let mut found = source.dump_ports(&BTreeSet::from([*port])).unwrap();
            let mut expected = all.clone();
            expected.retain(|socket| socket.port == *port);
            found.sort();
            expected.sort();
            assert_eq!(found, expected);
        }
        let found = source.dump_ports(&every).unwrap();
        assert_eq!(found.len(), all.len());
        drop(listeners);
        // 0 would be every port.
        for ports in [every, BTreeSet::from([0]), BTreeSet::new()] {
            assert_eq!(source.dump_ports(&ports).unwrap(), []);
        }
    });
}

#[test]
fn a_port_that_is_looked_up_shows_what_a_dump_shows_but_for_twins_and_strange_addresses() {
    in_netns(|| {
        let (listeners, _connections) = varied();
        let mut source = SockDiag::open().unwrap();
        let all = source.dump().unwrap();
        let every: BTreeSet<u16> = all.iter().map(|socket| socket.port).collect();
        for port in every {
            let here: Vec<&Socket> = all.iter().filter(|s| s.port == port).collect();
            let guessed = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
            for known in here.iter().map(|s| Some(*s)).chain([None]) {
                let found = source.look_up(port, known).unwrap();
                // Each is one of them, and each address where a connection would arrive is there.
                assert!(
                    found.iter().all(|socket| here.contains(&socket)),
                    "{found:?}"
                );
                let arrives = |s: &&&Socket| {
                    ["127.0.0.1", "::1"]
                        .iter()
                        .any(|to| s.ip.to_string() == *to)
                        || s.ip.is_unspecified() && here.len() == 1
                        || Some(s.ip) == known.map(|known| known.ip)
                };
                for socket in here.iter().filter(arrives) {
                    assert!(
                        found.iter().any(|s| s.ip == socket.ip),
                        "{socket:?} of {found:?}"
                    );
                }
                assert!(
                    found
                        .iter()
                        .all(|s| guessed(s.ip) || known.is_some_and(|k| k.ip == s.ip)),
                    "{found:?}"
                );
            }
        }
        drop(listeners);
        for socket in &all {
            assert_eq!(source.look_up(socket.port, Some(socket)).unwrap(), []);
        }
    });
}

#[test]
fn an_mptcp_listener_appears_once_with_its_own_inode() {
    if !fs::exists("/proc/sys/net/mptcp/enabled").unwrap() {
        // Nothing to assume of a kernel that was built without it.
        eprintln!("NOT TESTED: this kernel has no MPTCP");
        return;
    }
    in_netns(|| {
        let options = Options {
            mptcp: true,
            ..Options::default()
        };
        let listener = listener_with("0.0.0.0:5000", options);
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let mut source = SockDiag::open().unwrap();
        for sockets in [source.dump().unwrap(), ProcNet::new().dump().unwrap()] {
            assert_eq!(ports(&sockets), [5000]);
            let inode = format!("socket:[{}]", sockets[0].inode);
            assert_eq!(inode, link.to_str().unwrap());
            assert!(source.exists(&sockets[0]).unwrap());
        }
    });
}

#[test]
fn a_listener_that_is_shut_down_is_gone_from_the_dump_at_once() {
    in_netns(|| {
        let listener = listener("[::]:5000");
        let mut source = SockDiag::open().unwrap();
        let sockets = source.dump().unwrap();
        assert_eq!(ports(&sockets), [5000]);
        shutdown(&listener, Shutdown::Both).unwrap();
        assert!(source.dump().unwrap().is_empty());
        assert!(!source.exists(&sockets[0]).unwrap());
        assert!(ProcNet::new().dump().unwrap().is_empty());
    });
}

#[test]
fn listen_without_bind_gets_a_port_of_the_kernels_choice() {
    in_netns(|| {
        let unbound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        listen(&unbound, 16).unwrap();
        let sockets = SockDiag::open().unwrap().dump().unwrap();
        assert_eq!(sockets.len(), 1);
        assert_eq!(ports(&ProcNet::new().dump().unwrap()), ports(&sockets));
    });
}

#[test]
fn sockstat_moves_at_listen_shutdown_and_close_and_not_at_bind() {
    in_netns(|| {
        let mut sockstat = Sockstat::open().unwrap();
        let empty = sockstat.read().unwrap();
        for addr in ["127.0.0.1:5000", "[::1]:5000", "[::]:5000"] {
            for shut in [false, true] {
                let socket = bound(addr, Options::default());
                assert_eq!(sockstat.read().unwrap(), empty, "bind {addr}");
                listen(&socket, 16).unwrap();
                assert_ne!(sockstat.read().unwrap(), empty, "listen {addr}");
                if shut {
                    shutdown(&socket, Shutdown::Both).unwrap();
                    assert_eq!(sockstat.read().unwrap(), empty, "shutdown {addr}");
                }
                drop(socket);
                assert_eq!(sockstat.read().unwrap(), empty, "close {addr}");
            }
        }
    });
}

/// Opens and closes `count` twins on `addr` again and again while `f` runs.
fn under_churn(addr: &str, count: usize, f: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for the thread.
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut twins = Vec::with_capacity(count);
                for _ in 0..count {
                    twins.push(twin(addr));
                }
            }
        });
        f();
    });
}

/// The reason for [`SockDiag::exists`]: while twins come and go, dumps miss one that stays, and
/// the lookup never does.
#[test]
fn a_dump_under_churn_misses_what_a_lookup_finds() {
    allow_many_descriptors();
    in_netns(|| {
        let addr = "127.0.0.1:5000";
        let _stable = twin(addr);
        let mut source = SockDiag::open().unwrap();
        let stable = source.dump().unwrap().remove(0);
        // More than one datagram holds.
        under_churn(addr, 400, || {
            wait_until("a dump that misses the stable socket", || {
                assert!(source.exists(&stable).unwrap());
                let dump = source.dump().unwrap();
                !dump.iter().any(|socket| socket.cookie == stable.cookie)
            });
        });
    });
}

/// A twin that is chosen by a lookup and closes meanwhile is no reason to think the port closed.
/// A single lookup gives such an answer once in a hundred to once in a thousand here.
#[test]
fn a_lookup_never_misses_a_listener_whose_twin_comes_and_goes() {
    const LOOKUPS: usize = 20_000;
    in_netns(|| {
        for addr in ["127.0.0.1:5000", "[::1]:5000", "[::]:5000"] {
            let _stable = twin(addr);
            let mut source = SockDiag::open().unwrap();
            let stable = source.dump().unwrap().remove(0);
            under_churn(addr, 1, || {
                for lookup in 0..LOOKUPS {
                    assert!(source.exists(&stable).unwrap(), "lookup {lookup} of {addr}");
                }
            });
        }
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
