//! System V shared memory is the caller's: programs inside and outside see each other's, and what
//! the guest made goes with it.

use rum_tests::wait::until;
use rustix::process::Signal;

use crate::support::{House, Postgres, Who, both, has_segment, made, said, words};

both!(
    a_data_directory_has_one_server,
    what_the_guest_made_goes_with_it,
);

/// PostgreSQL refuses by the memory segment whose id is in the directory: the first server's pid
/// means nothing in another PID namespace.
fn a_data_directory_has_one_server(who: Who) {
    let house = House::new(who);
    let database = Postgres::new(&house, "database");
    let sockets = database.dir.to_str().unwrap().to_owned();
    let _guests = ["a", "b"].map(|name| house.up(name, &[]));
    let places: [Option<&str>; 3] = [None, Some("a"), Some("b")];
    let run = |place: Option<&str>, line: &[String]| match place {
        None => house.outside(&words(line)),
        Some(name) => house.exec(name, &words(line)),
    };
    for first in places {
        let started = run(first, &database.start(5000, &sockets));
        assert!(started.status.success(), "{first:?}: {}", database.log());
        for second in places {
            database.clear_log();
            let refused = run(second, &database.start(5001, &sockets));
            assert!(!refused.status.success(), "{first:?}, then {second:?}");
            let log = database.log();
            let last = log.lines().rfind(|line| line.contains("FATAL"));
            let last = last.unwrap_or_else(|| panic!("no reason: {log}"));
            assert!(
                last.contains("pre-existing shared memory block") || last.contains("lock file"),
                "{last}"
            );
        }
        let stopped = run(first, &database.stop());
        assert!(stopped.status.success(), "{}", said(&stopped));
    }
}

fn what_the_guest_made_goes_with_it(who: Who) {
    let house = House::new(who);
    let make = ["ipcmk", "-M", "4096"];
    let outside = made(&house.outside(&make));
    for signal in [Signal::TERM, Signal::KILL] {
        let mut rum = house.up("a", &[]);
        let inside = made(&house.exec("a", &make));
        let listed = said(&house.exec("a", &["ipcs", "-m"]));
        for id in [&outside, &inside] {
            assert!(listed.contains(&format!(" {id} ")), "{id}: {listed}");
        }
        rum.signal(signal);
        rum.wait();
        until("the guest's segment to go", || {
            (!has_segment(&inside)).then_some(())
        });
        assert!(has_segment(&outside), "one of the caller's is gone");
    }
    house.outside(&["ipcrm", "-m", &outside]);
}
