//! What of rum is in reach of a program inside: not its runtime directory, not its helpers, and
//! nothing that rum's caller had open.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rum_tests::rum::{agent_below, below, binary};
use rum_tests::wait::until;
use rustix::io::FdFlags;

use crate::support::{House, Who, both, said};

both!(
    the_runtime_directories_are_hidden,
    rum_inside_says_where_it_is,
    another_s_runtime_directory_lets_nobody_inside_stop_it,
    helpers_cannot_be_opened,
    what_the_caller_had_open_stays_outside,
);

fn the_runtime_directories_are_hidden(who: Who) {
    let house = House::new(who);
    let rum = house.up("a", &[]);
    let other = house.up("b", &["--range", "6000"]);
    let base = house.setup.path().join("run");
    let sockets = |dir: &str| {
        ["control.sock", "agent-rpc.sock", "agent-channel.sock"]
            .map(|file| base.join(dir).join(file))
    };
    for name in ["a", "b"] {
        let seen = house.exec(name, &["ls", "-A", base.to_str().unwrap()]);
        assert_eq!(said(&seen), ".inside\n");
        for socket in sockets("a").iter().chain(&sockets("b")) {
            assert!(
                fs::metadata(socket).is_ok(),
                "{socket:?} is where it belongs"
            );
            let seen = house.exec(name, &["test", "-e", socket.to_str().unwrap()]);
            assert!(!seen.status.success(), "{name} sees {socket:?}");
        }
    }
    drop((rum, other));
    // Also when nobody was left to do it in order.
    until("the directories to be gone", || {
        (fs::read_dir(&base).unwrap().count() == 0).then_some(())
    });
}

fn rum_inside_says_where_it_is(who: Who) {
    let house = House::new(who);
    let _rum = house.up("a", &[]);
    let rum = binary("rum");
    let rum = rum.to_str().unwrap();
    for command in [
        &["ports"][..],
        &["down", "--name", "a"],
        &["exec", "--name", "a", "true"],
        &["wait", "5000", "--timeout", "100ms"],
    ] {
        let output = house.exec("a", &[&[rum], command].concat());
        assert!(!output.status.success(), "{command:?}: {output:?}");
        let text = said(&output);
        assert!(text.contains("inside the guest `a`"), "{command:?}: {text}");
        assert!(text.contains("hint: "), "{command:?}: {text}");
    }
    assert!(house.exec("a", &["true"]).status.success());
}

/// The second guest's caller has another directory, so that of the first is to be seen in it.
fn another_s_runtime_directory_lets_nobody_inside_stop_it(who: Who) {
    let house = House::new(who);
    let mut first = house.up("a", &[]);
    let own = house.setup.path().join("run");
    let other = house.setup.path().join("other");
    let mut second = house.setup.rum(["up", "--name", "b", "--range", "6000"]);
    let second = second.env("RUM_RUNTIME_DIR", &other);
    let second = house.setup.start_command(second);
    second.stderr.wait("connected");
    let (holder, own) = (binary("guest-holder"), own.join("a"));
    let stop = [holder.to_str().unwrap(), "stop", own.to_str().unwrap()];
    let mut exec = house.setup.rum(["exec", "--name", "b", "--"]);
    exec.env("RUM_RUNTIME_DIR", &other).args(stop);
    let refused = exec.stdin(Stdio::null()).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    let text = said(&refused);
    assert!(text.contains("not stopped from inside a guest"), "{text}");
    assert!(house.exec("a", &["true"]).status.success());
    // Outside the same words do it.
    assert!(house.outside(&stop).status.success());
    assert!(first.wait().success());
}

/// The first agent and one that was started again.
fn helpers_cannot_be_opened(who: Who) {
    let house = House::new(who);
    let rum = house.up("a", &[]);
    let script = "for p in /proc/[0-9]*; do read -r name <$p/comm; case $name in \
                  rum-init|rum-agent) echo $name; readlink $p/fd/0 && echo opened;; esac; done";
    for _ in 0..2 {
        let seen = said(&house.exec("a", &["sh", "-c", script]));
        for helper in ["rum-init", "rum-agent"] {
            assert!(seen.contains(helper), "{seen}");
        }
        assert!(!seen.contains("opened"), "{seen}");
        let agent = agent_below(rum.child.id()).unwrap();
        rum.kill_agent();
        let again = || agent_below(rum.child.id()).filter(|pid| *pid != agent);
        let again = until("another agent", again);
        until("its own program", || {
            let name = fs::read_to_string(format!("/proc/{again}/comm")).ok()?;
            let exe = fs::read_link(format!("/proc/{again}/exe")).ok()?;
            (name == "rum-agent\n" && exe.to_string_lossy().contains("memfd")).then_some(())
        });
    }
}

fn what_the_caller_had_open_stays_outside(who: Who) {
    let house = House::new(who);
    let secret = File::open("/etc/shadow").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let fds = [secret.as_raw_fd(), connection.as_raw_fd()];
    let mut command = house.setup.rum(["up", "--name", "a", "--range", "5000"]);
    let inherit = move || {
        for fd in fds {
            // SAFETY: open until the test ends.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: two system calls, nothing else.
    unsafe { command.pre_exec(inherit) };
    let rum = house.setup.start_command(&mut command);
    rum.stderr.wait("connected");
    let pid = rum.child.id();
    let open_in = |pid: u32| -> Vec<String> {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links
            .map(|link| link.to_string_lossy().into_owned())
            .collect()
    };
    let socket = rustix::fs::fstat(connection.as_fd()).unwrap().st_ino;
    let given = ["/etc/shadow".to_owned(), format!("socket:[{socket}]")];
    for file in &given {
        assert!(
            open_in(pid).contains(file),
            "rum has not got {file}: the test is wrong"
        );
        for helper in ["__rum-keeper", "__rum-init", "rum-agent"] {
            let open = open_in(below(pid, helper).unwrap());
            assert!(!open.contains(file), "{helper} has {file}: {open:?}");
        }
    }
    let inside = said(&house.exec("a", &["sh", "-c", "ls -l /proc/self/fd"]));
    assert!(!given.iter().any(|file| inside.contains(file)), "{inside}");
}
