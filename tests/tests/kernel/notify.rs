//! Step 1 without the tracepoint: seccomp user notification of `listen()`, and its holder.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rum_agent::kernel::listen_events::{Notified, Told, Wanted};
use rum_host::hint::holder;
use rum_host::hint::holder::{Door, Holder, MAX_FILTERS};
use rum_host::hint::seccomp;
use rum_tests::rum::binary;

use super::{alone_in_netns, within};

/// The guest program, with `prepare` done between fork and exec.
fn program(prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Child {
    let mut command = Command::new(binary("guest"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: what the closures here do is made for it: system calls, and no allocation.
    unsafe { command.pre_exec(prepare) };
    command.spawn().unwrap()
}

/// What it answers to `line`.
fn ask(program: &mut Child, line: &str) -> String {
    writeln!(program.stdin.as_mut().unwrap(), "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(program.stdout.as_mut().unwrap())
        .read_line(&mut answer)
        .unwrap();
    answer
}

fn end(mut program: Child) {
    drop(program.stdin.take());
    program.wait().unwrap();
}

/// A holder, what it tells, and where it is told of what.
fn hold() -> (Door, Notified, Wanted) {
    let door = Door::new().unwrap();
    assert!(holder::find().is_none(), "nobody listens yet");
    let holder = Holder::start(&door).unwrap();
    let [pipe, wanted] = holder
        .for_agent()
        .map(|fd| fd.try_clone_to_owned().unwrap());
    (door, Notified::open(pipe).unwrap(), Wanted::from(wanted))
}

fn enlisted() -> Child {
    let way: OwnedFd = holder::find().expect("a holder with a place");
    program(move || holder::enlist(&way))
}

fn on_one_thread(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(within(body));
}

#[test]
fn a_held_listen_succeeds_and_is_told_with_its_process() {
    alone_in_netns(|| {
        on_one_thread(async {
            let (_door, mut notified, _) = hold();
            let mut first = enlisted();
            let mut second = enlisted();
            for (port, program) in [(1, &mut first), (2, &mut second)] {
                let answer = ask(program, &format!("listen 127.0.0.1:{port} hello"));
                assert!(answer.starts_with("ok "), "{answer}");
                let told = notified.next().await;
                assert_eq!((told.pid, told.port), (program.id(), port));
                assert!(!told.untold);
                let told_at: u64 = answer[3..].trim().parse().unwrap();
                assert!(told.at_ns <= told_at, "told after the fact");
            }
            // What it starts is asked about too; bind() is no listen().
            let script = "printf 'bind 127.0.0.1:9\\nlisten 127.0.0.1:8 hello\\n' | \"$GUEST\"";
            let script = script.replace("$GUEST", binary("guest").to_str().unwrap());
            let answer = ask(&mut first, &format!("sh {script} >&2"));
            assert!(answer.starts_with("ok "), "{answer}");
            let told = notified.next().await;
            assert!(![0, first.id(), second.id()].contains(&told.pid));
            assert_eq!(told.port, 8);
            assert_eq!(notified.try_next(), None);
            end(first);
            end(second);
        });
    });
}

#[test]
fn only_wanted_ports_are_told_and_those_that_may_be() {
    alone_in_netns(|| {
        on_one_thread(async {
            let (_door, mut notified, wanted) = hold();
            let mut program = enlisted();
            let mut listen = |command: &str, port: u16| {
                let answer = ask(&mut program, &format!("{command} [::1]:{port} silent"));
                assert!(answer.starts_with("ok "), "{answer}");
            };
            wanted.set("80-90".parse().unwrap()).unwrap();
            listen("listen", 79);
            listen("listen", 91);
            listen("thread", 80);
            assert_eq!(notified.next().await.port, 80);
            listen("mptcp", 90);
            assert_eq!(notified.next().await.port, 90);
            // Which port it will have is for the kernel to say.
            listen("unbound", 1);
            assert_eq!(notified.next().await.port, 0);
            wanted.set("93".parse().unwrap()).unwrap();
            listen("listen", 85);
            listen("v6only", 92);
            listen("twin", 93);
            // While four sockets that were looked at wait to be closed, the next is told of without its port.
            let mut told = vec![notified.next().await.port];
            told.extend(std::iter::from_fn(|| Some(notified.try_next()?.port)));
            assert!(told.iter().all(|port| [0, 93].contains(port)), "{told:?}");
            end(program);
        });
    });
}

#[test]
fn a_unix_socket_is_not_told_of() {
    alone_in_netns(|| {
        on_one_thread(async {
            let (_door, mut notified, _) = hold();
            let mut program = enlisted();
            for what in ["unix", "pipe"] {
                let answer = ask(&mut program, &format!("misuse {what}"));
                assert!(answer.starts_with("ok "), "{answer}");
            }
            // What it is that is no socket remains unknown; also what comes while it is closed.
            assert_eq!(notified.next().await.port, 0);
            for port in 1.. {
                ask(&mut program, &format!("listen 127.0.0.1:{port} hello"));
                let told = notified.next().await.port;
                assert!([0, port].contains(&told), "{told}");
                if told != 0 {
                    break;
                }
            }
            assert_eq!(notified.try_next(), None);
            end(program);
        });
    });
}

#[test]
fn an_answer_that_nobody_can_give_any_more_is_enosys() {
    alone_in_netns(|| {
        let mut program = program(|| seccomp::install().map(drop));
        let answer = ask(&mut program, "listen 127.0.0.1:1 hello");
        assert!(answer.contains("not implemented"), "{answer}");
        end(program);
    });
}

#[test]
fn only_one_is_asked() {
    alone_in_netns(|| {
        let mut command = Command::new("true");
        let prepare = || {
            let first = seccomp::install()?;
            let second = seccomp::install().map(drop);
            drop(first);
            second
        };
        // SAFETY: as above.
        unsafe { command.pre_exec(prepare) };
        let error = command.spawn().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
    });
}

#[test]
fn who_passes_no_filter_is_untold() {
    alone_in_netns(|| {
        on_one_thread(async {
            let (_door, mut notified, _) = hold();
            let is_untold = |told: Told| assert_eq!((told.pid, told.untold), (0, true));
            // As a program that could not install it.
            drop(holder::find().unwrap());
            is_untold(notified.next().await);
            // Something else than a filter.
            let way = holder::find().unwrap();
            rustix::net::send(&way, b"H", rustix::net::SendFlags::NOSIGNAL).unwrap();
            is_untold(notified.next().await);
            // From then on every record says so.
            let mut program = enlisted();
            ask(&mut program, "listen 127.0.0.1:1 hello");
            let told = notified.next().await;
            assert_eq!((told.pid, told.untold), (program.id(), true));
            end(program);
        });
    });
}

#[test]
fn places_are_bounded_and_free_again_when_nothing_runs_under_a_filter() {
    alone_in_netns(|| {
        on_one_thread(async {
            let (_door, mut notified, _) = hold();
            let last = enlisted();
            let waiting: Vec<_> = (1..MAX_FILTERS).map(|_| holder::find().unwrap()).collect();
            assert!(holder::find().is_none(), "one more than there are places");
            let told = notified.next().await;
            assert_eq!((told.pid, told.untold), (0, true));
            end(last);
            super::wait_until("a place", || holder::find().is_some());
            drop(waiting);
        });
    });
}
