//! The whole of rum on a real virtual machine with a real vsock: a real `rum up`, of kind
//! `unix`, on a guest with a kernel, an agent and hash tables of its own.
//!
//! Each test boots a VM for itself (three seconds) and has a network namespace as its host.

mod bytes;
mod life;
mod ports;
mod vsock;

use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup};
use rum_tests::vm::Vm;

/// A booted VM, its guest program, and a `rum up` that forwards 5000 to 6000.
struct Machine {
    rum: Rum,
    guest: Guest,
    vm: Vm,
}

impl Machine {
    fn boot() -> Self {
        let vm = Vm::start("", &[]);
        let setup = Setup::new();
        let config = format!(
            "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n[auto_ports]\nrange = \"5000-6000\"\n",
            vm.socket().display()
        );
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        // It waits for the agent of a guest that boots.
        let rum = setup.start(["up"]);
        let guest = vm.guest();
        rum.stderr.wait("connected (events: tracepoint)");
        Self { rum, guest, vm }
    }

    /// Makes a listener in the guest and waits for its forward.
    fn listen(&mut self, port: u16, mode: &str) {
        self.guest.tell(&format!("listen 127.0.0.1:{port} {mode}"));
        self.until_forwarded(port, 1);
    }

    /// Waits until `port` was forwarded `times` times.
    fn until_forwarded(&self, port: u16, times: usize) {
        let line = format!("Auto-forwarding 127.0.0.1:{port} → guest:{port}");
        self.rum.stdout.wait_nth(&line, times);
    }

    /// Fails if the forward of `port` was ever stopped, or the poll had to repair it.
    fn assert_undisturbed(&self, port: u16) {
        let lines = [self.rum.stdout.all(), self.rum.stderr.all()].concat();
        let bad = [
            format!("Stopped forwarding {port}"),
            format!("Port {port} is "),
        ];
        let found = lines.iter().find(|l| bad.iter().any(|b| l.starts_with(b)));
        assert_eq!(found, None);
    }
}

/// Runs `test` on a machine of its own.
fn on_machine(test: impl FnOnce(Machine) + Send) {
    in_netns(|| test(Machine::boot()));
}
