//! The small commands around `rum up`, as a user runs them.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use rum_tests::assets::assets;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, binary};

/// The programs that tests/vm-assets has got, too.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(assets().join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).expect("no colon in them")
}

/// What `rum ARGS` says until it ends.
fn run(setup: &Setup, args: &[&str]) -> Output {
    let mut command = setup.rum(args);
    command.stdin(Stdio::null()).output().expect("rum starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn init_then_check_then_up() {
    in_netns(|| {
        let setup = Setup::new();
        let init = run(&setup, &["init", "--name", "dev", "--range", "5000-5010"]);
        assert_eq!(
            stdout(&init),
            "Wrote rum.toml\nnext: rum check, then rum up\n"
        );
        assert_eq!(init.status.code(), Some(0));

        let file = setup.path().join("rum.toml");
        let written = fs::read_to_string(&file).expect("a file");
        let again = run(&setup, &["init"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(
            stderr(&again).contains("there already\nhint: "),
            "{again:?}"
        );
        assert_eq!(fs::read_to_string(&file).expect("a file"), written);

        let check = run(&setup, &["check"]);
        assert_eq!(check.status.code(), Some(0));
        assert!(
            stdout(&check).contains("dev: a network namespace"),
            "{check:?}"
        );
        assert!(stdout(&check).contains("localhost:5000-5010"), "{check:?}");
        assert_eq!(stderr(&check), "");

        let (rum, mut guest) = setup.start_guest(&[]);
        guest.tell("listen 127.0.0.1:5000 hello");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
    });
}

#[test]
fn check_says_what_is_in_the_way() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = taken.local_addr().expect("its address");
        let port = addr.port();
        let text = format!(
            "[[ports]]\nhost = {port}\nguest = 1\n[[ports]]\nhost = 80\nguest = 2\n\
             [[ports]]\nhost = 8080\nguest = 3\nbind = \"192.0.2.1\"\n\
             [auto_ports]\nrange = \"9000-9001\"\nbind = \"0.0.0.0\"\n"
        );
        fs::write(setup.path().join("rum.toml"), text).expect("a file");
        let check = run(&setup, &["check"]);
        assert_eq!(check.status.code(), Some(0), "{check:?}");
        assert!(stdout(&check).contains("192.0.2.1:8080 → guest:3"));
        let warnings = stderr(&check);
        for warning in [
            format!("{addr} is taken"),
            "binding 127.0.0.1:80 needs privilege".to_owned(),
            "binding [::1]:80 needs privilege".to_owned(),
            "this machine does not have the address 192.0.2.1".to_owned(),
            "0.0.0.0 is every address".to_owned(),
        ] {
            assert!(warnings.contains(&warning), "no `{warning}` in {warnings}");
        }
        assert_eq!(warnings.matches("hint: ").count(), 5, "{warnings}");
        // Nobody can see whose socket it is but root and its owner.
        let root = Setup {
            uid: None,
            ..setup.clone()
        };
        let by_us = format!("(pid {})", std::process::id());
        assert!(stderr(&run(&root, &["check"])).contains(&by_us));

        fs::write(setup.path().join("rum.toml"), "[auto_ports]\n").expect("a file");
        let check = run(&setup, &["check"]);
        assert_eq!(check.status.code(), Some(2));
        assert_eq!(stdout(&check), "");
        assert!(stderr(&check).contains("`range` is missing"), "{check:?}");
    });
}

#[test]
fn check_and_up_find_the_same_wrong_with_a_vm() {
    in_netns(|| {
        let setup = Setup::new();
        let write =
            |name: &str, text: &str| fs::write(setup.path().join(name), text).expect("ours");
        write("file", "x");
        write("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        let said = |args: &[&str]| {
            let mut command = setup.rum(args);
            let output = command.env("PATH", path()).stdin(Stdio::null()).output();
            let output = output.expect("rum starts");
            (output.status.code(), stderr(&output))
        };
        let disk = "image = \"file\"\n";
        for (keys, wrong) in [
            ("kernel = \"nowhere\"", "cannot read "),
            ("kernel = \"file\"\ninitrd = \"nowhere\"", "cannot read "),
            ("image = \"nowhere\"", "cannot read the image "),
            (&format!("{disk}user_data = \"nowhere\""), "cannot read "),
            (&format!("{disk}ssh_key = \"key\""), "is a private key"),
            (&format!("{disk}disk = \"1G\""), ""),
        ] {
            let range = "[auto_ports]\nrange = \"5000-5010\"\n";
            let config = format!("[guest]\nkind = \"qemu\"\naccel = \"tcg\"\n{keys}\n{range}");
            write("rum.toml", &config);
            let (code, check) = said(&["check"]);
            assert_eq!(code, Some(0), "{check}");
            if wrong.is_empty() {
                assert_eq!(check, "", "{keys}");
                continue;
            }
            assert!(
                check.contains(wrong) && check.contains("\nhint: "),
                "{check}"
            );
            let (code, up) = said(&["up"]);
            assert_eq!(code, Some(1), "{up}");
            let error = check.replace("warning: ", "error: ");
            assert!(up.ends_with(&error), "{keys}: {up}, {check}");
        }
        write(
            "rum.toml",
            "[guest]\nkind = \"unix\"\nsocket = \"vm.vsock\"\n[auto_ports]\nrange = \"5000\"\n",
        );
        let (_, check) = said(&["check"]);
        assert!(
            check.starts_with("warning: there is no socket vm.vsock\nhint: "),
            "{check}"
        );
        let _there = UnixListener::bind(setup.path().join("vm.vsock")).expect("ours");
        assert_eq!(said(&["check"]).1, "");
    });
}

/// Whether the line of `rum doctor` that starts with `level` and `check` contains `fact`.
fn says(report: &str, level: &str, check: &str, fact: &str) -> bool {
    let found = report.lines().find(|line| {
        let rest = line.strip_prefix(level).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with(&format!("{check}  ")))
    });
    found.is_some_and(|line| line.contains(fact))
}

#[test]
fn doctor_says_what_is_true() {
    in_netns(|| {
        for (setup, user, fact, level) in [
            (Setup::new(), "root", "is woken by the tracepoint", "ok"),
            (
                Setup::ordinary_user(),
                "user",
                "is woken by seccomp notifications",
                "ok",
            ),
        ] {
            let doctor = run(&setup, &["doctor"]);
            let report = stdout(&doctor);
            assert_eq!(doctor.status.code(), Some(0), "{user}: {doctor:?}");
            assert!(
                says(&report, "ok", "namespace guest", "entered"),
                "{report}"
            );
            assert!(says(&report, level, "events", fact), "{user}: {report}");
            assert!(says(&report, "ok", "sock_diag", "lists"), "{report}");
            assert!(says(&report, "ok", "ssh", "/bin/ssh"), "{report}");
            let left = fs::read_dir(setup.path().join("run")).expect("the runtime directory");
            assert_eq!(left.count(), 0, "{user}: the trial guest left something");

            // The same as what `rum up` gets.
            let (rum, guest) = setup.start_guest(&["--range", "5000", "--name", "dev"]);
            let connected = rum.stderr.wait("connected");
            let source = if user == "root" {
                "tracepoint"
            } else {
                "seccomp"
            };
            assert!(
                connected.contains(&format!("events: {source}")),
                "{connected}"
            );
            let running = format!("guest dev: namespace, pid {}", rum.child.id());
            let report = stdout(&run(&setup, &["doctor"]));
            assert!(report.contains(&running), "{report}");
            let json = stdout(&run(&setup, &["doctor", "--json"]));
            assert!(json.starts_with("{\"schema_version\":1,"), "{json}");
            let running = format!("\"pid\":{}", rum.child.id());
            assert!(json.contains(&running) && json.ends_with("}\n"), "{json}");
            drop(guest);
        }
    });
}

#[test]
fn doctor_fails_where_no_guest_can_be() {
    in_netns(|| {
        let setup = Setup::ordinary_user();
        let mut command = setup.rum(["doctor"]);
        command.env("RUM_RUNTIME_DIR", "/proc/rum");
        let doctor = command.output().expect("rum starts");
        assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
        let report = stdout(&doctor);
        assert!(
            says(&report, "fail", "runtime directory", "/proc/rum"),
            "{report}"
        );
        assert!(
            says(&report, "fail", "namespace guest", "/proc/rum"),
            "{report}"
        );
    });
}

/// What bash offers for the last of `words`, with `rum` in its PATH.
fn offered(setup: &Setup, words: &[&str]) -> Vec<String> {
    let dir = binary("rum");
    let dir = dir.parent().expect("it is in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    // What bash itself does after Tab (bash(1), Programmable Completion).
    let script = r#"
        source <(rum completions bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
        spec=$(complete -p rum)
        function=${spec#*-F }
        "${function%% *}" rum "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = setup.command("bash");
    bash.args(["--norc", "-c", script, "bash"])
        .args(words)
        .env("PATH", format!("{}:{path}", dir.display()));
    let output = bash.output().expect("bash starts");
    assert_eq!(stderr(&output), "");
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes() {
    in_netns(|| {
        let setup = Setup::new();
        assert_eq!(offered(&setup, &["rum", "com"]), ["completions"]);
        assert_eq!(offered(&setup, &["rum", "check", "--ra"]), ["--range"]);
        assert!(!offered(&setup, &["rum", "exec", "--name", ""]).contains(&"one".to_owned()));
        let (one, guest_one) = setup.start_guest(&["--range", "5000", "--name", "one"]);
        let (two, guest_two) = setup.start_guest(&["--range", "5000", "--name", "two"]);
        one.stderr.wait("connected");
        two.stderr.wait("connected");
        assert_eq!(
            offered(&setup, &["rum", "exec", "--name", ""]),
            ["one", "two"]
        );
        assert_eq!(offered(&setup, &["rum", "shell", "--name", "t"]), ["two"]);
        drop((guest_one, guest_two));
    });
}

#[test]
fn man_pages_are_written() {
    let setup = Setup::new();
    let one = stdout(&run(&setup, &["man"]));
    assert!(one.contains(".TH RUM 1"), "{one}");
    let all = run(&setup, &["man", "."]);
    assert_eq!((all.status.code(), stdout(&all).as_str()), (Some(0), ""));
    for page in ["rum.1", "rum-up.1", "rum-doctor.1"] {
        let text = fs::read_to_string(setup.path().join(page)).expect(page);
        assert!(text.contains(".SH SYNOPSIS"), "{text}");
    }
    assert!(!setup.path().join("rum-man.1").exists(), "hidden");
    let refused = run(&setup, &["man", "/no/such/directory"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("hint: "), "{refused:?}");
}

#[test]
fn every_line_is_json_if_asked_for() {
    in_netns(|| {
        let setup = Setup::new();
        let args = ["up", "--range", "5000", "--log-format", "json", "-vv"];
        let mut rum = setup.start(args);
        rum.stderr.wait("\"notice\":\"agent-connected\"");
        let (mut server, mut guest) = setup.exec_guest();
        guest.tell("listen 127.0.0.1:5000 echo");
        let line = rum.stdout.wait("\"notice\":\"forwarded\"");
        assert!(
            line.contains("\"host\":\"127.0.0.1:5000\",\"guest\":5000"),
            "{line}"
        );
        rum.signal(rustix::process::Signal::TERM);
        rum.wait();
        server.wait().expect("a child");
        let logged = rum.stderr.wait("\"target\":\"rum_agent");
        assert!(logged.contains("\"message\":"), "{logged}");
        for line in rum.stdout.all().iter().chain(&rum.stderr.all()) {
            let object = line.starts_with("{\"timestamp\":\"2") && line.ends_with('}');
            assert!(object && line.contains("\"level\":\""), "{line}");
        }
        let failed = run(
            &setup,
            &["--log-format", "json", "check", "-c", "none.toml"],
        );
        assert_eq!(failed.status.code(), Some(2));
        let line = stderr(&failed);
        assert!(
            line.contains("\"level\":\"ERROR\",\"message\":\"there is no none.toml\""),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    });
}

#[test]
fn the_benchmark_measures_nothing_unasked() {
    let bench = |args: &[&str]| {
        let mut command = Command::new(binary("bench"));
        command.args(args).output().expect("bench starts")
    };
    let help = bench(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).starts_with("Measures rum"), "{help:?}");
    for wrong in [
        &["latncy"][..],
        &["--samples"],
        &["--seconds", "x"],
        &["--samples", "0"],
    ] {
        let output = bench(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(stderr(&output).contains("hint: "), "{output:?}");
    }
}

#[test]
fn a_seed_disk_for_others_is_what_cloud_init_reads() {
    let setup = Setup::new();
    let file = |name: &str| setup.path().join(name);
    fs::write(file("key"), "ssh-ed25519 AAAA me@here\n").expect("ours");
    fs::write(file("user"), "#!/bin/sh\ntrue\n").expect("ours");
    let given = ["--ssh-key", "key", "--user-data", "user"];
    let seed = |more: &[&str]| run(&setup, &[&["agent", "seed", "seed.img"], more].concat());
    let written = seed(&given);
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    assert!(stdout(&written).contains("give the VM seed.img as one more disk"));
    let read = |name: &str| {
        let mut mtype = setup.command("mtype");
        mtype.args(["-i", "seed.img", &format!("::{name}")]);
        stdout(&mtype.output().expect("tests/run installs mtools"))
    };
    let meta = read("meta-data");
    assert!(meta.starts_with("instance-id: \"rum-"), "{meta}");
    assert!(
        meta.ends_with("public-keys:\n  - \"ssh-ed25519 AAAA me@here\"\n"),
        "{meta}"
    );
    assert!(!meta.contains("hostname"), "{meta}");
    assert_eq!(read("user-data"), "#!/bin/sh\ntrue\n");
    let mut label = Command::new("blkid");
    label
        .args(["-p", "-s", "LABEL", "-o", "value"])
        .arg(file("seed.img"));
    assert_eq!(stdout(&label.output().expect("util-linux")), "CIDATA\n");

    // One of rum's own is written anew, something else is not.
    assert_eq!(seed(&["--name", "web"]).status.code(), Some(0));
    assert!(read("meta-data").contains("local-hostname: \"web\"\n"));
    fs::write(file("seed.img"), "precious").expect("ours");
    let refused = seed(&given);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("hint: name another file"),
        "{refused:?}"
    );
    assert_eq!(fs::read(file("seed.img")).expect("ours"), b"precious");
    assert_eq!(seed(&["--force"]).status.code(), Some(0));
    // What must not leave this machine does not.
    fs::write(file("key"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").expect("ours");
    let refused = seed(&["--ssh-key", "key"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("is a private key"), "{refused:?}");
}
