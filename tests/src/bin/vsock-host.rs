//! rum's host side inside a guest: it reaches the agent of the same machine over the kernel's
//! own AF_VSOCK (CID 1, vsock_loopback), which a device's Unix socket never exercises.
//!
//! Prints `listing PORTS`, then each notice of the host's loop, and after each forward
//! `echo PORT ok` once a text came back through it, then `asked PORT ok` once the guest was asked
//! about a connection that it has. Runs until it is killed. Its host ports are in a network
//! namespace of its own, as they would be the guest's otherwise.

#![allow(clippy::print_stdout)] // A test reads it.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use rum_host::plan::{AutoPolicy, Policy};
use rum_host::supervisor::{Options, Stop, Supervisor};
use rum_host::ui::notice::Notice;
use rum_shared::stream::rpc::RumAgentClient;
use rum_shared::stream::session::{Limits, Session};
use rum_shared::transport::{Endpoint, Service, Transport};
use rum_tests::client::{connect, exchange};
use rum_tests::netns::in_netns;
use tokio::sync::watch;

/// This machine, as vsock(7) calls it.
const VMADDR_CID_LOCAL: u32 = 1;

fn main() -> ExitCode {
    in_netns(|| {
        // One thread: sockets are made in this thread's network namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(run());
    });
    ExitCode::SUCCESS
}

async fn run() {
    let transport = Transport::from(Endpoint::Vsock {
        cid: VMADDR_CID_LOCAL,
    });
    // The agent may still be starting.
    let stream = loop {
        match transport.dial(Service::Rpc).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let session: Session<RumAgentClient> = Session::connect(stream, Limits::HOST)
        .await
        .expect("a session");
    let listing = session.client().listening_ports(5000, 6000).await;
    println!("listing {:?}", listing.expect("an answer").ports);
    drop(session);

    let policy = Policy {
        auto: Some(AutoPolicy::new("5000-6000".parse().expect("a range"))),
        ..Policy::default()
    };
    let (_stop, stopped) = watch::channel(Stop::Run);
    let asked = transport.clone();
    let supervisor = Supervisor::new(Options::new(transport, policy));
    supervisor
        .run(stopped, |notice| {
            println!("{notice}");
            if let Notice::Forwarded { guest, .. } = notice {
                let (port, asked) = (guest.port, asked.clone());
                // The loop serves the connection meanwhile.
                std::thread::spawn(move || {
                    let answer = exchange(port, "through").expect("echo");
                    assert_eq!(answer, "through");
                    println!("echo {port} ok");
                    still_served(port, &asked);
                    println!("asked {port} ok");
                });
            }
        })
        .await;
}

/// A connection goes on when the guest, which has it, is asked about it.
fn still_served(port: u16, transport: &Transport) {
    let mut stream = connect(port);
    for byte in *b"abc" {
        stream.write_all(&[byte]).expect("connected");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("echo");
        assert_eq!(answer, [byte]);
        transport.probe();
    }
}
