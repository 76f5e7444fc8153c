//! A guest of kind `unix` without a virtual machine: the guest program in a network namespace of its
//! own, where an agent can be started beside it, behind a [`Device`].

use std::process::{Command, Stdio};

use crate::device::{Defects, Device};
use crate::guest::Guest;
use crate::netns::{self, in_netns};
use crate::rum::{Rum, Setup, binary};

/// A guest, without an agent at first.
pub struct Machine {
    /// Where its `rum.toml` and sockets are.
    pub setup: Setup,
    /// The way to it.
    pub device: Device,
    /// The guest program.
    pub program: Rum,
    /// Its pipes.
    pub guest: Guest,
}

impl Machine {
    /// A guest behind a device with `defects`, and a `rum.toml` for it with `rest` at its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn boot(defects: Defects, rest: &str) -> Self {
        let setup = Setup::new();
        let device = Device::start(setup.path(), defects);
        let config = Self::config(&device, rest);
        std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let (program, guest) = Self::start_program(&setup);
        Self {
            setup,
            device,
            program,
            guest,
        }
    }

    /// The `rum.toml` for a guest behind `device`, with `rest` at its head.
    pub fn config(device: &Device, rest: &str) -> String {
        let socket = device.socket("vm");
        let socket = socket.display();
        format!("{rest}[guest]\nkind = \"unix\"\nsocket = \"{socket}\"\n")
    }

    /// Begins the guest anew, in a new network namespace: its program and whatever it had opened
    /// is gone. Agents are the caller's.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn reboot(&mut self) {
        (self.program, self.guest) = Self::start_program(&self.setup);
    }

    fn start_program(setup: &Setup) -> (Rum, Guest) {
        let mut program = in_netns(|| {
            let mut command = setup.command(binary("guest"));
            setup.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
        });
        let guest = Guest::of(&mut program.child);
        (program, guest)
    }

    /// Starts an agent beside the guest program, with further arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_agent(&self, args: &[&str]) -> Rum {
        self.start_changed_agent(args, |_| {})
    }

    /// As [`Self::start_agent`], once `change` was made to its command.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_changed_agent(&self, args: &[&str], change: impl FnOnce(&mut Command)) -> Rum {
        let unix = |name| format!("unix:{}", self.device.socket(name).display());
        let mut command = self.setup.command(binary("rum-agent"));
        command
            .args(["--rpc", &unix("rpc"), "--channel", &unix("channel")])
            .args(["--knock", &unix("vm_2224")])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        change(&mut command);
        let namespace = netns::of(self.program.child.id());
        netns::inside(&namespace, || self.setup.spawn(&mut command))
    }

    /// Starts `rum up` in the caller's network namespace.
    pub fn start_rum(&self) -> Rum {
        self.setup.start(["up"])
    }
}
