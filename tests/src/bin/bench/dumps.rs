//! What one dump of the listeners costs: with nothing else there, with many established
//! connections, and with many listeners.

use std::net::{SocketAddr, TcpListener};

use rum_agent::kernel::proc_net::ProcNet;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_tests::monotonic_ns;

use crate::hold::{Held, raise_limit};
use crate::report::{Report, Unit, thousands};

/// The cases are interleaved in so many blocks, so that all see the same machine.
const BLOCKS: usize = 5;
/// The first of many ports.
const FIRST: u16 = 10_000;

/// Measures, with `many` connections or listeners, and adds the rows.
pub fn run(report: &mut Report, many: usize, dumps: usize) {
    raise_limit();
    let mut netlink = SockDiag::open().expect("sock_diag");
    let mut proc = ProcNet::new();
    let cases = [(0, 0), (many, 0), (0, many)];
    let mut samples = cases.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..BLOCKS {
        for ((connections, listeners), samples) in cases.iter().zip(&mut samples) {
            let held = Held::start(*connections).expect("connections");
            let listen = |port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)));
            let listening: Vec<TcpListener> = (FIRST..)
                .take(*listeners)
                .map(|port| listen(port).expect("a free port"))
                .collect();
            time(&mut samples.0, dumps.div_ceil(BLOCKS), || {
                netlink.dump().expect("a dump").len()
            });
            // A hundred times as dear.
            time(&mut samples.1, dumps.div_ceil(BLOCKS * 20), || {
                proc.dump().expect("a dump").len()
            });
            drop((held, listening));
        }
    }
    for ((connections, listeners), (netlink, proc)) in cases.into_iter().zip(samples) {
        let way = match listeners {
            0 => format!("{} connections", thousands(connections)),
            n => format!("{} listeners", thousands(n)),
        };
        for (what, samples) in [("netlink", netlink), ("/proc", proc)] {
            report.add("dumps", what, &way, Unit::Microseconds, samples);
        }
    }
}

fn time(samples: &mut Vec<f64>, count: usize, mut work: impl FnMut() -> usize) {
    for _ in 0..count {
        let start = monotonic_ns();
        std::hint::black_box(work());
        samples.push((monotonic_ns() - start) as f64 / 1e3);
    }
}
