//! Cost of one dump of the listeners, with and without established connections.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};

use rum_agent::kernel::proc_net::ProcNet;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_tests::monotonic_ns;

use crate::stats::Samples;

const DUMPS: usize = 1000;
const CONNECTIONS: usize = 10_000;

/// Measures and prints the table. The two cases are interleaved in blocks, so that both see
/// the same machine.
pub fn run() {
    println!("\n### {DUMPS} interleaved dumps with 0 and with {CONNECTIONS} connections\n");
    println!("{}", Samples::HEAD);
    raise_limit();
    let mut netlink = SockDiag::open().expect("sock_diag");
    let mut proc = ProcNet::new();
    let (mut none, mut many) = (Vec::new(), Vec::new());
    let (mut proc_none, mut proc_many) = (Vec::new(), Vec::new());
    const BLOCKS: usize = 5;
    for _ in 0..BLOCKS {
        time(&mut none, DUMPS / BLOCKS, || {
            netlink.dump().expect("a dump").len()
        });
        time(&mut proc_none, 10, || proc.dump().expect("a dump").len());
        let held = connections();
        time(&mut many, DUMPS / BLOCKS, || {
            netlink.dump().expect("a dump").len()
        });
        time(&mut proc_many, 10, || proc.dump().expect("a dump").len());
        drop(held);
    }
    let rows = [
        ("netlink, 0 connections", none),
        ("netlink, 10,000 connections", many),
        ("/proc, 0 connections", proc_none),
        ("/proc, 10,000 connections", proc_many),
    ];
    let medians = rows.map(|(name, samples)| {
        let samples = Samples::new(samples);
        println!("{}", samples.row(name));
        samples.quantile(0.5) as f64
    });
    println!(
        "\nRatio of the medians: netlink {:.2}, /proc {:.2}",
        medians[1] / medians[0],
        medians[3] / medians[2]
    );
}

fn time(samples: &mut Vec<u64>, count: usize, mut work: impl FnMut() -> usize) {
    for _ in 0..count {
        let start = monotonic_ns();
        std::hint::black_box(work());
        samples.push(monotonic_ns() - start);
    }
}

/// Takes as many descriptors as the machine allows.
fn raise_limit() {
    let limit = rustix::process::Resource::Nofile;
    let mut files = rustix::process::getrlimit(limit);
    files.current = files.maximum;
    rustix::process::setrlimit(limit, files).expect("below the hard limit");
}

/// Many connections: our ends, and the process that holds the others. Both ends are reset when
/// dropped, so that none lingers in TIME_WAIT.
struct Connections {
    _ours: Vec<TcpStream>,
    theirs: Child,
}

impl Drop for Connections {
    fn drop(&mut self) {
        let _ = self.theirs.kill();
        let _ = self.theirs.wait();
    }
}

fn connections() -> Connections {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    let theirs = Command::new(std::env::current_exe().expect("own path"))
        .args(["connector", &addr.to_string()])
        .spawn()
        .expect("the connector starts");
    let ours = (0..CONNECTIONS).map(|_| {
        let stream = listener.accept().expect("the connector connects").0;
        reset_on_close(&stream);
        stream
    });
    Connections {
        _ours: ours.collect(),
        theirs,
    }
}

/// The process that makes the connections and holds its ends of them until it is killed.
pub fn connector(addr: &str) {
    raise_limit();
    let connect = |_| {
        let stream = TcpStream::connect(addr).expect("connected");
        reset_on_close(&stream);
        stream
    };
    let _held: Vec<TcpStream> = (0..CONNECTIONS).map(connect).collect();
    std::thread::park();
}

fn reset_on_close(stream: &TcpStream) {
    let now = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(stream, now).expect("a TCP socket");
}
