//! The kernel's own AF_VSOCK on both sides: rum's host side runs in the guest too.

use rum_tests::guest::Guest;
use rum_tests::vm::Vm;

#[test]
fn host_and_agent_meet_over_the_loopback_of_vsock() {
    let vm = Vm::start("--allow-cid=1", &["vsock-host"]);
    let mut guest = vm.guest();
    guest.tell("listen 127.0.0.1:5000 echo");
    guest.tell("sh vsock-host >/tmp/host 2>&1 &");
    for line in [
        "listing [5000]",
        "connected (events: tracepoint)",
        "echo 5000 ok",
        "asked 5000 ok",
    ] {
        wait(&mut guest, line);
    }
    guest.tell("listen [::1]:5001 echo");
    wait(&mut guest, "echo 5001 ok");
    guest.tell("close [::1]:5001");
    wait(&mut guest, "Stopped forwarding 5001");
    guest.tell("sh ! grep 'no event reported it' /tmp/host");
}

/// Waits until the host side has said `line`; if it never does, what it said is in the error.
fn wait(guest: &mut Guest, line: &str) {
    let look = format!("until grep -qF '{line}' /tmp/host; do sleep 0.1; done");
    guest.tell(&format!(
        "sh timeout 60 sh -c \"{look}\" || {{ cat /tmp/host; false; }}"
    ));
}
