//! Cost of one dump of the listeners, with and without established connections.

use rum_agent::kernel::proc_net::ProcNet;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_tests::monotonic_ns;

use crate::hold::Held;
use crate::report::{Report, Unit, thousands};

/// The two cases are interleaved in so many blocks, so that both see the same machine.
const BLOCKS: usize = 5;

/// Measures, with `connections` in the second case, and adds the rows.
pub fn run(report: &mut Report, connections: usize, dumps: usize) {
    let mut netlink = SockDiag::open().expect("sock_diag");
    let mut proc = ProcNet::new();
    let mut samples = [const { (Vec::new(), Vec::new()) }; 2];
    for _ in 0..BLOCKS {
        for (case, samples) in samples.iter_mut().enumerate() {
            let held = Held::start(case * connections).expect("connections");
            time(&mut samples.0, dumps.div_ceil(BLOCKS), || {
                netlink.dump().expect("a dump").len()
            });
            // A thousand times as dear.
            time(&mut samples.1, dumps.div_ceil(BLOCKS * 20), || {
                proc.dump().expect("a dump").len()
            });
            drop(held);
        }
    }
    for (case, (netlink, proc)) in samples.into_iter().enumerate() {
        let way = format!("{} connections", thousands(case * connections));
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
