//! `private_tmp`: what lies in /tmp, Unix sockets for instance, is each guest's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rum_tests::rum::Rum;

use crate::support::{House, Postgres, Who, both, said, words};

both!(
    two_servers_have_their_socket_in_tmp,
    tmp_begins_empty_and_goes_with_the_guest
);

fn up(house: &House, name: &str, more: &str) -> Rum {
    let file = house.setup.path().join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\n[guest]\nprivate_tmp = true\n\
         [auto_ports]\nrange = \"5000\"\n{more}"
    );
    fs::write(&file, text).unwrap();
    let rum = house.setup.start(["up", "-c", file.to_str().unwrap()]);
    rum.stderr.wait("connected");
    rum
}

/// On one port, whose number is the socket's name: without `private_tmp` the second deletes the first
/// one's socket.
fn two_servers_have_their_socket_in_tmp(who: Who) {
    let house = House::new(who);
    let _a = up(&house, "a", "");
    let _b = up(
        &house,
        "b",
        "[[auto_ports.rule]]\nguest = \"5000\"\nhost = 5001\n",
    );
    // What lies in the machine's /tmp is not to be seen inside.
    let elsewhere = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/lib")
        .unwrap();
    let servers = ["a", "b"].map(|name| Postgres::new_in(&house, &elsewhere.path().join(name)));
    for (name, server) in ["a", "b"].iter().zip(&servers) {
        let started = house.exec(name, &words(&server.start(5000, "/tmp")));
        assert!(started.status.success(), "{name}: {}", server.log());
    }
    for (name, server) in ["a", "b"].iter().zip(&servers) {
        let ask = [
            "psql",
            "-h",
            "/tmp",
            "-p",
            "5000",
            "-Atc",
            "show data_directory",
            "postgres",
        ];
        let answer = house.exec(name, &words(&server.tool(&ask)));
        assert_eq!(said(&answer).trim(), server.data(), "{name}");
    }
}

fn tmp_begins_empty_and_goes_with_the_guest(who: Who) {
    let house = House::new(who);
    let file = format!("/tmp/of-the-guest-{}", std::process::id());
    for _ in 0..2 {
        let mut rum = up(&house, "a", "");
        // The test's own directory, of which the caller's /tmp has one.
        let mut elsewhere = house.setup.rum(["exec", "--name", "a", "--", "true"]);
        let elsewhere = said(&elsewhere.stdin(Stdio::null()).output().unwrap());
        assert!(elsewhere.contains("its /tmp is its own"), "{elsewhere}");
        for dir in ["/tmp", "/var/tmp"] {
            assert_eq!(said(&house.exec("a", &["ls", "-A", dir])), "");
        }
        let written = house.exec(
            "a",
            &["sh", "-c", &format!("echo inside >{file}; cat {file}")],
        );
        assert_eq!(said(&written), "inside\n");
        assert_eq!(
            said(&house.exec("a", &["stat", "-c", "%a", "/tmp"])),
            "1777\n"
        );
        assert!(fs::metadata(&file).is_err(), "it is the machine's");
        rum.signal(rustix::process::Signal::TERM);
        rum.wait();
    }
}
