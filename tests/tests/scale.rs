//! Many ports.

use std::collections::BTreeSet;
use std::fs;

use rum_host::control::model::State;
use rum_tests::client::exchange;
use rum_tests::netns::in_netns;
use rum_tests::ports::{follow, until_port};
use rum_tests::rum::Setup;
use rustix::process::{Resource, getrlimit, setrlimit};

const FIRST: u16 = 20_000;
const MANY: u16 = 2000;
/// The inodes of all sockets that listen on the host, by port.
fn listening() -> BTreeSet<(String, String)> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc");
    let lines = table.lines().skip(1);
    let columns = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = columns.filter(|columns| columns[3] == "0A");
    listening
        .map(|columns| (columns[1].to_owned(), columns[9].to_owned()))
        .collect()
}

#[test]
fn thousands_of_ports_outlive_the_agent() {
    // The guest program inherits it.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("below the hard limit");
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "20000-29999"]);
        guest.tell(&format!("many {FIRST} {MANY}"));
        let all_forwarded = || {
            follow(&setup, "all forwarded", |known| {
                let forwarded = known.ports().filter(|p| p.state == State::Forwarded);
                (forwarded.count() == usize::from(MANY)).then_some(())
            });
        };
        all_forwarded();
        let before = listening();
        assert!(before.len() >= usize::from(MANY));
        rum.stderr.wait("connected (events");
        rum.kill_agent();
        rum.stderr.wait("Agent lost");
        rum.stderr.wait_nth("connected (events", 2);
        all_forwarded();
        assert_eq!(listening(), before, "each port is bound by the same socket");
        // What it tells comes after all that it found when it came back.
        guest.tell("listen 127.0.0.1:29999 echo");
        until_port(&setup, "guest:29999", |p| p.state == State::Forwarded);
        assert_eq!(exchange(29_999, "one more").expect("echo"), "one more");
        assert!(listening().is_superset(&before));
        // What closes ends in one go, too.
        guest.tell(&format!("close-many {FIRST} {MANY}"));
        follow(&setup, "one is left", |known| {
            (known.ports().count() == 1).then_some(())
        });
        assert!(listening().is_disjoint(&before));
    });
}
