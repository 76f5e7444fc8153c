//! What an agent does on a kernel that has none of the system calls that came after Linux 3.10: those of
//! RHEL 7 and newer are served. Only the system calls are taken away; the rest is this machine's kernel.

use std::io;
use std::os::unix::process::CommandExt;

use rum_host::status::model::PortStatus;
use rum_tests::client::{exchange, until_refused};
use rum_tests::device::Defects;
use rum_tests::machine::Machine;
use rum_tests::ports::until_port;

use super::alone_in_netns;

/// The last system call of Linux 3.10, finit_module(2): they are numbered as they came.
const LAST: u32 = if cfg!(target_arch = "x86_64") {
    313
} else {
    273
};

/// From now on all later ones answer ENOSYS to this process and to what it executes.
fn forget_later_system_calls() -> io::Result<()> {
    let statement = |code: u32, k: u32| (code, 0, 0, k);
    let mut program = [
        // The number is what `struct seccomp_data` begins with.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, LAST),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    });
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: two system calls; the second reads the program, which lives as long.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn an_agent_needs_no_system_call_that_is_newer_than_linux_3_10() {
    alone_in_netns(|| {
        let mut machine =
            Machine::boot(Defects::default(), "[auto_ports]\nrange = \"5000-6000\"\n");
        // Which has no tracepoint for sockets.
        let agent = machine.start_changed_agent(&["--hint=poll"], |command| {
            // SAFETY: system calls, and no allocation.
            unsafe { command.pre_exec(forget_later_system_calls) };
        });
        let rum = machine.start_rum();
        rum.stderr.wait("connected (events: poll)");
        for (port, address) in [(5000, "127.0.0.1:5000"), (5001, "[::]:5001")] {
            machine.guest.tell(&format!("listen {address} echo"));
            let named =
                |port: &PortStatus| port.process.as_ref().is_some_and(|p| p.name == "guest");
            until_port(&machine.setup, &format!("guest:{port}"), named);
            assert_eq!(exchange(port, "through").expect("echo"), "through");
            machine.guest.tell(&format!("close {address}"));
            until_refused(port);
        }
        let said = agent.stderr.all();
        let broken = said
            .iter()
            .find(|line| line.contains("WARN") || line.contains("ERROR"));
        assert_eq!(broken, None);
    });
}
