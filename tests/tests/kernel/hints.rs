//! Step 1: what the tracepoint and the destroy events say, and when.
//!
//! The tracepoint tells of the whole machine, so tests that run beside these show up in it:
//! each test here looks for its own process and ports that no other test uses.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread;

use rum_agent::kernel::destroy::{Destroy, DestroyEvents};
use rum_agent::kernel::sock_diag::SockDiag;
use rum_agent::kernel::tracepoint::{Hint, Tracepoint};
use rum_tests::monotonic_ns;
use rum_tests::rum::{Setup, agent_below};
use rum_tests::wait::until;
use rustix::net::{AddressFamily, Shutdown, SocketType, shutdown, socket};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::*;

/// Waits for a hint; others are passed over. Times are checked here and left out of `wanted`.
async fn wait_for(tracepoint: &mut Tracepoint, wanted: Hint) {
    loop {
        let mut hint = tracepoint.next().await;
        if let Hint::Listen { at_ns, .. } = &mut hint {
            assert!(*at_ns > 0 && *at_ns <= monotonic_ns());
            *at_ns = 0;
        }
        if hint == wanted {
            return;
        }
    }
}

/// Waits like [`wait_for`]; neither before nor after it there is a hint of `unwanted`.
async fn wait_for_all_but(tracepoint: &mut Tracepoint, wanted: Hint, unwanted: u16) {
    let mut seen = false;
    loop {
        let hint = if !seen {
            Some(tracepoint.next().await)
        } else {
            tracepoint.try_next()
        };
        let Some(mut hint) = hint else { return };
        if let Hint::Listen { at_ns, .. } = &mut hint {
            *at_ns = 0;
        }
        seen |= hint == wanted;
        match hint {
            Hint::Listen { port, .. } | Hint::Unlisten { port } => assert_ne!(port, unwanted),
            Hint::Lost => panic!("hints were lost"),
        }
    }
}

fn listens(port: u16) -> Hint {
    let pid = std::process::id();
    let at_ns = 0;
    Hint::Listen { port, pid, at_ns }
}

#[test]
fn listen_shutdown_and_close_are_seen() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        for mptcp in [false, true] {
            if mptcp && !std::fs::exists("/proc/sys/net/mptcp/enabled").unwrap() {
                eprintln!("NOT TESTED: this kernel has no MPTCP");
                continue;
            }
            let options = Options {
                mptcp,
                ..Options::default()
            };
            for addr in ["127.0.0.1:20001", "[::]:20001"] {
                let listener = listener_with(addr, options);
                wait_for(&mut tracepoint, listens(20001)).await;
                drop(listener);
                wait_for(&mut tracepoint, Hint::Unlisten { port: 20001 }).await;
            }
        }
        let listener = listener("127.0.0.1:20002");
        shutdown(&listener, Shutdown::Both).unwrap();
        wait_for(&mut tracepoint, listens(20002)).await;
        wait_for(&mut tracepoint, Hint::Unlisten { port: 20002 }).await;
    });
}

#[test]
fn listen_without_bind_is_reported_with_port_0_in_any_range() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        tracepoint.set_range(20003, 20003).unwrap();
        let unbound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        listen(&unbound, 16).unwrap();
        wait_for(&mut tracepoint, listens(0)).await;
    });
}

#[test]
fn the_kernel_filters_the_range_and_the_range_can_change() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        let me = std::process::id();
        for wanted in [20004, 20005, 20004] {
            // What was in the ring before the change is kept.
            let before = listener(&format!("127.0.0.1:{wanted}"));
            tracepoint.set_range(wanted, wanted).unwrap();
            drop(before);
            wait_for(&mut tracepoint, Hint::Unlisten { port: wanted }).await;

            let other = 20004 + 20005 - wanted;
            drop(listener(&format!("127.0.0.1:{other}")));
            let _listener = listener(&format!("127.0.0.1:{wanted}"));
            loop {
                match tracepoint.next().await {
                    Hint::Listen { port, pid, .. } if (port, pid) == (wanted, me) => break,
                    Hint::Listen { port, .. } | Hint::Unlisten { port } => {
                        assert!(port == 0 || port == wanted, "{port}, not {wanted}");
                    }
                    Hint::Lost => panic!("hints were lost"),
                }
            }
        }
    });
}

/// A host on the same kernel binds each port that it is told of.
#[test]
fn threads_of_one_name_can_be_left_out() {
    in_async_netns(|| async {
        let name = "rum-test-host";
        let mut tracepoint = Tracepoint::open(Some(name.parse().unwrap())).unwrap();
        for (min, max) in [(1, u16::MAX), (20022, 20023)] {
            tracepoint.set_range(min, max).unwrap();
            for other in ["rum-test-hos", "rum-test-host2", name] {
                let of_thread = || drop(listener("127.0.0.1:20022"));
                let thread = thread::Builder::new().name(other.to_owned());
                thread.spawn(of_thread).unwrap().join().unwrap();
                if other != name {
                    wait_for(&mut tracepoint, listens(20022)).await;
                    wait_for(&mut tracepoint, Hint::Unlisten { port: 20022 }).await;
                }
            }
            let _listener = listener("127.0.0.1:20023");
            wait_for_all_but(&mut tracepoint, listens(20023), 20022).await;
        }
    });
}

/// What the host's end of rum binds is left out by the name that it has told its agent.
#[test]
fn the_agent_knows_the_threads_of_its_own_host() {
    in_async_netns(|| async {
        let (rum, mut guest) = Setup::new().start_guest(&["--range", "20024"]);
        rum.stderr.wait("connected");
        let agent = until("an agent", || agent_below(rum.child.id()));
        let arguments = std::fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap();
        let mut arguments = arguments.split('\0');
        let name = arguments.find_map(|argument| argument.strip_prefix("--host-threads="));
        let mut agents = Tracepoint::open(Some(name.unwrap().parse().unwrap())).unwrap();
        let mut all = Tracepoint::open(None).unwrap();
        for tracepoint in [&mut agents, &mut all] {
            tracepoint.set_range(20024, 20024).unwrap();
        }
        guest.tell("listen 127.0.0.1:20024 hello");
        let (pid, at_ns) = (rum.child.id(), 0);
        let port = 20024;
        wait_for(&mut all, Hint::Listen { port, pid, at_ns }).await;
        let hints = std::iter::from_fn(|| agents.try_next());
        let pids: Vec<u32> = hints
            .filter_map(|hint| match hint {
                Hint::Listen { port, pid, .. } => (port == 20024).then_some(pid),
                // Of other tests.
                Hint::Unlisten { .. } | Hint::Lost => None,
            })
            .collect();
        assert!(
            matches!(pids[..], [of_guest] if of_guest != pid),
            "{pids:?}"
        );
    });
}

/// A connection is made as a copy of its listener, which the tracepoint tells as leaving LISTEN.
#[test]
fn connections_to_a_listener_are_no_hints() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        tracepoint.set_range(20020, 20021).unwrap();
        for mptcp in [false, true] {
            if mptcp && !std::fs::exists("/proc/sys/net/mptcp/enabled").unwrap() {
                eprintln!("NOT TESTED: this kernel has no MPTCP");
                continue;
            }
            let options = Options {
                mptcp,
                ..Options::default()
            };
            let listener = TcpListener::from(listener_with("127.0.0.1:20020", options));
            wait_for(&mut tracepoint, listens(20020)).await;
            let connect = || {
                let client = bound("127.0.0.1:0", options);
                let address: SocketAddr = "127.0.0.1:20020".parse().unwrap();
                rustix::net::connect(&client, &address).unwrap();
                (client, listener.accept().unwrap())
            };
            let _connections: Vec<_> = (0..10).map(|_| connect()).collect();
            let _mark = super::listener("127.0.0.1:20021");
            loop {
                match tracepoint.next().await {
                    Hint::Listen { port: 20021, .. } => break,
                    // The mark of the last turn; an MPTCP listener's second socket.
                    Hint::Unlisten { port: 20021 } | Hint::Listen { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            drop(listener);
            wait_for(&mut tracepoint, Hint::Unlisten { port: 20020 }).await;
        }
    });
}

/// Thousands of listen() from several threads on all CPUs, and each wakes us. The threads wait
/// for their hints now and then, so that the rings never fill.
#[test]
fn no_wakeup_is_lost() {
    const THREADS: u16 = 4;
    const EACH: u16 = 1_000;
    const UNSEEN: usize = 16;
    const FIRST: u16 = 21_000;
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        tracepoint
            .set_range(FIRST, FIRST + THREADS * EACH - 1)
            .unwrap();
        let mut slots = Vec::new();
        let mut threads = Vec::new();
        for index in 0..THREADS {
            let (send, receive) = sync_channel::<()>(UNSEEN);
            slots.push(receive);
            threads.push(thread::spawn(move || {
                for port in 0..EACH {
                    // Taken out when the hint was seen.
                    if send.send(()).is_err() {
                        return;
                    }
                    drop(listener(&format!(
                        "127.0.0.1:{}",
                        FIRST + index * EACH + port
                    )));
                }
            }));
        }
        let mut seen = HashSet::new();
        while seen.len() < usize::from(THREADS * EACH) {
            match tracepoint.next().await {
                Hint::Listen { port, .. } if port >= FIRST && seen.insert(port) => {
                    slots[usize::from((port - FIRST) / EACH)].recv().unwrap();
                }
                Hint::Lost => panic!("hints were lost"),
                _ => {}
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_ring_that_overflows_says_so_and_goes_on() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        tracepoint.set_range(20006, 20007).unwrap();
        // Nobody reads, and nothing follows that would carry the kernel's own record of it.
        for _ in 0..2_000 {
            drop(listener("127.0.0.1:20006"));
        }
        wait_for(&mut tracepoint, Hint::Lost).await;
        while tracepoint.try_next().is_some() {}
        let _listener = listener("127.0.0.1:20007");
        wait_for(&mut tracepoint, listens(20007)).await;
    });
}

#[test]
fn without_privileges_the_tracepoint_says_what_would_help_and_the_rest_works() {
    in_async_netns(|| async {
        // Of this thread only.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).unwrap();
        let error = Tracepoint::open(None).unwrap_err();
        assert!(error.hint().unwrap().contains("CAP_"), "{error}");

        let mut source = SockDiag::open().unwrap();
        let mut events = DestroyEvents::open().unwrap();
        let listener = listener("127.0.0.1:5000");
        let cookie = source.dump().unwrap()[0].cookie.unwrap();
        drop(listener);
        let port = 5000;
        assert_eq!(events.next().await, Destroy::Closed { cookie, port });
    });
}

#[test]
fn destroy_carries_the_cookie_that_the_dump_showed_and_skips_connections() {
    in_async_netns(|| async {
        let mut source = SockDiag::open().unwrap();
        let mut events = DestroyEvents::open().unwrap();
        for addr in ["127.0.0.1:5000", "[::1]:5000"] {
            let server = TcpListener::bind(addr).unwrap();
            for _ in 0..50 {
                drop(TcpStream::connect(addr).unwrap());
                drop(server.accept().unwrap());
            }
            let cookie = source.dump().unwrap()[0].cookie.unwrap();
            drop(server);
            let port = 5000;
            assert_eq!(events.next().await, Destroy::Closed { cookie, port });
        }
        assert_eq!(events.try_next(), None);
    });
}

#[test]
fn destroy_tells_twins_apart() {
    in_async_netns(|| async {
        let mut source = SockDiag::open().unwrap();
        let mut events = DestroyEvents::open().unwrap();
        let first = twin("127.0.0.1:5000");
        let cookie = source.dump().unwrap()[0].cookie.unwrap();
        let _second = twin("127.0.0.1:5000");
        drop(first);
        let port = 5000;
        assert_eq!(events.next().await, Destroy::Closed { cookie, port });
        let left = source.dump().unwrap();
        assert_eq!(ports(&left), [5000]);
        assert_ne!(left[0].cookie, Some(cookie));
    });
}

#[test]
fn the_range_of_the_destroy_events_is_filtered_in_the_kernel() {
    in_async_netns(|| async {
        let mut all = DestroyEvents::open().unwrap();
        let mut some = DestroyEvents::open().unwrap();
        for (min, max) in [(5001, 5001), (5001, 6000), (5000, 5001)] {
            some.set_range(min, max).unwrap();
            for outside in [min - 1, max + 1] {
                drop(listener(&format!("127.0.0.1:{outside}")));
                // Both sockets get it in one go, or only this one does.
                assert!(
                    matches!(all.next().await, Destroy::Closed { port, .. } if port == outside)
                );
            }
            for inside in [min, max] {
                drop(listener(&format!("127.0.0.1:{inside}")));
                assert!(matches!(all.next().await, Destroy::Closed { port, .. } if port == inside));
                assert!(
                    matches!(some.next().await, Destroy::Closed { port, .. } if port == inside)
                );
            }
        }
    });
}

/// Every event arrives, or an overflow is reported after which the next ones do.
#[test]
fn destroy_events_are_never_lost_in_silence() {
    in_async_netns(|| async {
        let mut events = DestroyEvents::open().unwrap();
        let mut count = 1_000;
        // More each time, until they do not fit.
        'overflow: loop {
            for _ in 0..count {
                drop(bound("127.0.0.1:5000", Options::default()));
            }
            for _ in 0..count {
                if events.next().await == Destroy::Overflow {
                    break 'overflow;
                }
            }
            count *= 2;
        }
        // The kernel may still be busy with the others, and overflow again.
        drop(listener("127.0.0.1:5001"));
        loop {
            match events.next().await {
                Destroy::Closed { port: 5001, .. } => break,
                Destroy::Closed { .. } => {}
                Destroy::Overflow => drop(listener("127.0.0.1:5001")),
            }
        }
    });
}

/// [`Tracepoint::next`] and [`DestroyEvents::next`] may be dropped at any moment.
#[test]
fn waiting_is_cancel_safe() {
    in_async_netns(|| async {
        let mut tracepoint = Tracepoint::open(None).unwrap();
        tracepoint.set_range(20008, 20008).unwrap();
        let mut events = DestroyEvents::open().unwrap();
        let mut turns = 0;
        for _ in 0..200 {
            let listener = listener("127.0.0.1:20008");
            let (mut hinted, mut closed) = (false, false);
            drop(listener);
            // Each turn drops the future of the branch that was not ready.
            while !hinted || !closed {
                turns += 1;
                tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => {}
                    hint = tracepoint.next() => hinted |= hint == Hint::Unlisten { port: 20008 },
                    event = events.next() => {
                        closed |= matches!(event, Destroy::Closed { port: 20008, .. });
                    }
                }
            }
        }
        assert!(turns > 400, "no future was ever dropped");
    });
}
