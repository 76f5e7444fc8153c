//! Bytes in bulk, over every transport that needs no virtual machine: random sizes, stalls, ends and
//! resets, several connections at once, compared byte by byte at both ends (`rum_tests::traffic`).
//!
//! `RUM_DATA_MB` is how many megabytes go over each transport, 100 if it is not set.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use rum_host::plan::{AutoPolicy, Policy};
use rum_host::supervisor::{Options, Stop, Supervisor};
use rum_shared::transport::Endpoint;
use rum_tests::client::connect;
use rum_tests::device::Defects;
use rum_tests::guest::Guest;
use rum_tests::machine::Machine;
use rum_tests::netns::in_netns;
use rum_tests::rum::Setup;
use rum_tests::traffic::{Job, Order, run};
use rum_tests::wait::until;
use tokio::sync::watch;

/// Connections at once.
const AT_ONCE: usize = 4;
/// Bytes of all connections together are shared out among so many.
const JOBS: u64 = 50;

/// A connection for each of [`JOBS`], in every order, each with its share of the bytes, but for
/// every fifth, which has none or one: the last byte is then the first.
fn jobs(seed: u64) -> Vec<Job> {
    let megabytes = std::env::var("RUM_DATA_MB").ok();
    let megabytes = megabytes.map_or(100, |text| text.parse().expect("RUM_DATA_MB is a number"));
    let share: u64 = megabytes * 1_000_000 / JOBS;
    let mut random = fastrand::Rng::with_seed(seed);
    let orders = Order::ALL.into_iter().cycle();
    let job = |(number, order): (u64, Order)| {
        let most = match number % 11 {
            0 => 1,
            _ => share,
        };
        let to_guest = random.u64(0..=most);
        Job {
            seed: random.u64(..),
            to_guest,
            to_client: most - to_guest,
            order,
        }
    };
    (0..JOBS).zip(orders).map(job).collect()
}

/// Does all jobs through port 5000 of the host.
fn traffic(guest: &mut Guest, seed: u64) {
    let all = jobs(seed);
    let left = Mutex::new(all.clone());
    let next = || left.lock().expect("no holder panics").pop();
    let failed = Mutex::new(vec![]);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = next() {
                    if let Err(text) = run(connect(5000), &job) {
                        failed.lock().expect("no holder panics").push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no holder panics");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let says: BTreeSet<String> = all.iter().filter_map(Job::says).collect();
    let said: BTreeSet<String> = says.iter().map(|_| guest.line()).collect();
    assert_eq!(said, says);
}

#[test]
fn all_bytes_arrive_over_sockets_that_were_handed_over() {
    in_netns(|| {
        let (rum, mut guest) = Setup::new().start_guest(&["--range", "5000-6000"]);
        guest.tell("listen 127.0.0.1:5000 traffic");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        traffic(&mut guest, 1);
    });
}

#[test]
fn all_bytes_arrive_through_a_device_with_defects() {
    in_netns(|| {
        let defects = Defects {
            split_answer: true,
            ..Defects::default()
        };
        let mut machine = Machine::boot(defects, "[auto_ports]\nrange = \"5000-6000\"\n");
        let _agent = machine.start_agent(&[]);
        let rum = machine.start_rum();
        machine.guest.tell("listen 127.0.0.1:5000 traffic");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        traffic(&mut machine.guest, 2);
    });
}

#[test]
fn all_bytes_arrive_in_frames_over_a_unix_socket() {
    in_netns(|| {
        let mut machine = Machine::boot(Defects::default(), "");
        // Without --hand-over it relays.
        let _agent = machine.start_agent(&[]);
        let endpoint = Endpoint::Unix {
            rpc: machine.device.socket("rpc"),
            channel: machine.device.socket("channel"),
            net: None,
        };
        let policy = Policy {
            auto: Some(AutoPolicy::new("5000-6000".parse().expect("a range"))),
            ..Policy::default()
        };
        let (stop, stopped) = watch::channel(Stop::Run);
        thread::scope(|scope| {
            let host = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let supervisor = Supervisor::new(Options::new(endpoint, policy));
                runtime
                    .expect("a runtime")
                    .block_on(supervisor.run(stopped, drop))
            });
            machine.guest.tell("listen 127.0.0.1:5000 traffic");
            until("the port to be forwarded", || {
                std::net::TcpStream::connect(rum_tests::client::host(5000)).ok()
            });
            traffic(&mut machine.guest, 3);
            stop.send_replace(Stop::Cut);
            let summary = host.join().expect("the host's loop does not panic");
            assert_eq!(summary.repaired, 0);
        });
    });
}
