//! Faults: what is killed, stopped, cut or taken away. Each says whether it happened.

use std::thread;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::waiting::Fate;
use super::{BOOT, World};
use crate::chaos::probe;
use crate::chaos::step::Hint;
use crate::device::Flow;

impl World {
    pub(super) fn kill_agent(&mut self, hint: Hint) -> bool {
        let Some(pid) = self.agent_pid() else {
            return false;
        };
        self.agent_stopped = None;
        self.fault("kill-agent");
        if self.machine.is_none() {
            // Its sockets stay, and connections do not need it.
            send(pid, Signal::KILL);
            return true;
        }
        self.agent = None;
        self.end_held();
        self.cut_answered();
        self.hint = hint;
        self.start_agent();
        true
    }

    pub(super) fn stop_agent(&mut self) -> bool {
        let Some(pid) = self.agent_pid() else {
            return false;
        };
        send(pid, Signal::STOP);
        self.agent_stopped = Some(pid);
        self.fault("stop");
        true
    }

    pub(super) fn stop_host(&mut self) -> bool {
        self.signal_host(Signal::STOP);
        self.host_stopped = true;
        self.fault("stop");
        true
    }

    pub(super) fn kill_host(&mut self, hint: Hint) -> bool {
        self.rum = None;
        self.host_stopped = false;
        self.limit = None;
        self.end_held();
        self.change_all(Fate::Reset);
        if self.machine.is_none() {
            self.model.listeners.clear();
            self.deaf.clear();
            self.agent_stopped = None;
            self.hint = hint;
        }
        self.start_host();
        if self.machine.is_none() {
            self.gather();
        }
        self.fault("reboot or kill-host");
        true
    }

    pub(super) fn cut(&mut self) -> bool {
        let Some(machine) = &self.machine else {
            return false;
        };
        machine.device.cut();
        self.end_held();
        self.cut_answered();
        self.fault("cut");
        true
    }

    pub(super) fn flow(&mut self, flow: Flow) -> bool {
        let Some(machine) = &self.machine else {
            return false;
        };
        machine.device.flow(flow);
        self.fault("stall");
        true
    }

    pub(super) fn reboot(&mut self) -> bool {
        let Some(machine) = &mut self.machine else {
            return false;
        };
        machine.device.reboot();
        self.agent = None;
        machine.reboot();
        self.agent_stopped = None;
        self.model.listeners.clear();
        self.deaf.clear();
        self.end_held();
        self.change_all(Fate::Either);
        thread::sleep(BOOT);
        self.start_agent();
        self.gather();
        self.fault("reboot or kill-host");
        true
    }

    pub(super) fn exhaust(&mut self, left: u16) -> bool {
        let pid = self.host_pid();
        let current = probe::descriptors(pid) + u64::from(left);
        let before = prlimit(
            Pid::from_raw(pid as i32),
            Resource::Nofile,
            Rlimit {
                current: Some(current),
                maximum: getrlimit(Resource::Nofile).maximum,
            },
        );
        let Ok(before) = before else { return false };
        self.limit.get_or_insert(before);
        self.fault("exhaust");
        true
    }

    /// Lifts what was stopped.
    pub(super) fn resume(&mut self) {
        if std::mem::take(&mut self.host_stopped) {
            self.signal_host(Signal::CONT);
        }
        if let Some(pid) = self.agent_stopped.take() {
            send(pid, Signal::CONT);
        }
    }

    /// No connection of now can live.
    fn end_held(&mut self) {
        for held in &mut self.held {
            held.dead = true;
        }
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // Gone already is as good.
        let _ = kill_process(pid, signal);
    }
}
