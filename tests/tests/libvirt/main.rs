//! Kind `libvirt`: against libvirt's own test driver, which keeps domains in one connection, and
//! against a real libvirtd with QEMU, started by the test in namespaces of its own.

use std::path::Path;
use std::process::Command;

use rum_tests::client::exchange;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;
use rustix::process::Signal;

use self::support::{Libvirt, Machine, empty_domain};

mod support;

/// A machine of libvirt's test driver. It starts anew with each virsh.
const TEST_NODE: &str = "<node>
  <domain type='test'><name>with vsock</name><uuid>00000000-0000-4000-8000-000000000001</uuid><memory>65536</memory><os><type>hvm</type></os>
    <devices><vsock model='virtio'><cid auto='no' address='4242'/></vsock></devices></domain>
  <domain type='test'><name>bare</name><uuid>00000000-0000-4000-8000-000000000002</uuid><memory>65536</memory><os><type>hvm</type></os></domain>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>off</name><uuid>00000000-0000-4000-8000-000000000003</uuid><memory>65536</memory><os><type>hvm</type></os>
    <test:runstate>5</test:runstate></domain>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>crashed</name><uuid>00000000-0000-4000-8000-000000000004</uuid><memory>65536</memory><os><type>hvm</type></os>
    <test:runstate>6</test:runstate></domain>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>paused</name><uuid>00000000-0000-4000-8000-000000000005</uuid><memory>65536</memory><os><type>hvm</type></os>
    <devices><vsock model='virtio'><cid auto='no' address='4243'/></vsock></devices>
    <test:runstate>3</test:runstate></domain>
</node>";

fn config(setup: &Setup, domain: &str, uri: &str) {
    let text = format!(
        "[guest]\nkind = \"libvirt\"\ndomain = \"{domain}\"\nuri = \"{uri}\"\n\
         [auto_ports]\nrange = \"5000-6000\"\n"
    );
    std::fs::write(setup.path().join("rum.toml"), text).expect("a file");
}

/// A place with a `rum.toml` for a domain of the test driver.
fn setup(domain: &str) -> Setup {
    let setup = Setup::new();
    let node = setup.path().join("node.xml");
    std::fs::write(&node, TEST_NODE).expect("a file");
    config(&setup, domain, &format!("test://{}", node.display()));
    setup
}

/// Waits for the end of a `rum up` that cannot start with a domain of the test driver, and for what it
/// says, which is what `rum check` says.
fn cannot_start(domain: &str, texts: &[&str]) {
    let setup = setup(domain);
    let check = setup.rum(["check"]).output().expect("rum starts");
    let said = String::from_utf8_lossy(&check.stderr);
    for text in texts {
        assert!(said.contains(text), "no {text} in {said}");
    }
    refused(setup.start(["up"]), texts);
}

/// Waits for the end of a `rum up` that cannot start, and for what it says.
fn refused(mut rum: Rum, texts: &[&str]) {
    assert_eq!(rum.wait().code(), Some(1));
    for text in texts {
        rum.stderr.wait(text);
    }
}

#[test]
fn what_is_wrong_with_a_domain_is_said() {
    cannot_start(
        "absent",
        &[
            "has no domain `absent`",
            "hint: there is `bare`, `crashed`, `off`, `paused`, `with vsock`",
        ],
    );
    // Never an option, nor anything but a name.
    cannot_start("--help", &["has no domain `--help`"]);
    cannot_start("1", &["has no domain `1`"]);
    for bare in ["bare", "off"] {
        let message = format!("the domain `{bare}` has no vsock device");
        cannot_start(bare, &[&message, " attach-device ", "<cid auto='yes'/>"]);
    }
    cannot_start(
        "crashed",
        &["the domain `crashed` is crashed", " destroy crashed`"],
    );
}

#[test]
fn a_libvirt_that_cannot_be_reached_is_named() {
    let setup = Setup::new();
    let absent = setup.path().join("absent");
    let uri = format!("qemu:///system?socket={}", absent.display());
    config(&setup, "debian", &uri);
    refused(
        setup.start(["up"]),
        &[
            "cannot reach libvirt at `qemu:///system?socket=",
            "caused by: Failed to connect socket",
            "hint: libvirt does not run here",
        ],
    );
    config(&setup, "debian", "not a uri");
    refused(
        setup.start(["up"]),
        &["cannot reach libvirt at `not a uri`", "hint: check `uri`"],
    );
    let mut command = setup.rum(["up"]);
    command.env("PATH", setup.path());
    refused(
        setup.spawn(&mut command),
        &["`virsh` is not installed", "hint: install"],
    );
}

#[test]
fn the_cid_of_a_running_domain_is_dialled() {
    for (domain, resumed) in [("with vsock", false), ("paused", true)] {
        let mut rum = setup(domain).start(["up"]);
        // Nobody is there; what matters is that it was tried, and goes on.
        rum.stderr.wait("Waiting for the agent");
        let said = rum.stderr.all();
        let text = format!("Resuming the domain `{domain}`, which was paused");
        assert_eq!(said.contains(&text), resumed, "{said:?}");
        rum.signal(Signal::TERM);
        rum.wait();
        // It ran already: nothing is powered off.
        let said = rum.stderr.all();
        assert!(!said.iter().any(|line| line.contains("Power")), "{said:?}");
    }
}

/// The line of [guest] with the socket of a vsock device that nobody answers at.
fn socket(dir: &Path) -> String {
    format!("socket = \"{}\"", dir.join("silent").display())
}

/// Waits until `rum` waits for the agent's knock: then its guest is there.
fn until_up(libvirt: &Libvirt) {
    let knocks = libvirt.setup.path().join("silent_2224");
    until("rum to be up", || knocks.exists().then_some(()));
}

#[test]
fn a_domain_ends_with_the_rum_that_started_it() {
    let libvirt = Libvirt::start();
    // A name that virsh would rather take for an option or a number.
    for name in ["--all", "1"] {
        libvirt.define(&empty_domain(name));
        let more = socket(libvirt.setup.path());
        let mut rum = libvirt.start_rum(name, &more);
        rum.stderr.wait(&format!("Starting the domain `{name}`"));
        until_up(&libvirt);
        let uuid = libvirt.virsh(&["list", "--uuid"]);
        assert!(libvirt.state(&uuid).starts_with("running"));
        // Its firmware knows no power button: only force helps.
        rum.signal(Signal::TERM);
        rum.stderr.wait("Powering the guest off");
        rum.signal(Signal::TERM);
        rum.wait();
        until("the domain's end", || {
            libvirt.state(&uuid).starts_with("shut off").then_some(())
        });
        libvirt.virsh(&["undefine", &uuid]);
    }
}

#[test]
fn a_domain_that_runs_is_left_alone_and_its_end_is_told() {
    let libvirt = Libvirt::start();
    libvirt.define(&empty_domain("box"));
    libvirt.virsh(&["start", "box"]);
    libvirt.virsh(&["suspend", "box"]);
    let more = socket(libvirt.setup.path());
    let mut rum = libvirt.start_rum("box", &more);
    rum.stderr.wait("Resuming the domain `box`");
    until_up(&libvirt);
    rum.signal(Signal::TERM);
    rum.wait();
    assert_eq!(libvirt.state("box"), "running (unpaused)");

    let mut rum = libvirt.start_rum("box", &more);
    until_up(&libvirt);
    // A libvirtd that is away is no end. One that was killed gives its domain up now and then,
    // when it is back: shut off (daemon).
    libvirt.restart();
    until("the domain's end", || {
        libvirt.try_virsh(&["destroy", "box"]);
        libvirt.state("box").starts_with("shut off").then_some(())
    });
    let state = libvirt.state("box");
    rum.stderr
        .wait(&format!("The guest ended: the domain `box` is {state}"));
    assert_eq!(rum.wait().code(), Some(1));

    // Without a device for vsock, which this machine could not give it anyway. An agent for it begins with one.
    for (name, runs) in [("other", false), ("third", true)] {
        libvirt.define(&empty_domain(name));
        if runs {
            libvirt.virsh(&["start", name]);
        }
        let mut install = libvirt.setup.rum(["agent", "install", "--domain", name]);
        let install = install.arg(format!("--uri={}", libvirt.uri())).output();
        let install = install.expect("rum starts");
        let [said, wrong] = [&install.stdout, &install.stderr].map(|s| String::from_utf8_lossy(s));
        let gave = format!("Gave the domain `{name}` a vsock device");
        assert!(said.starts_with(&gave), "{said}{wrong}");
        if !runs {
            let later = ", which it has when it is started next (it does not run)\n";
            assert!(said.ends_with(later), "{said}");
        }
        // It has no address either.
        let no_address = format!("libvirt knows no address of the domain `{name}`");
        assert!(wrong.contains(&no_address), "{wrong}");
        let described = libvirt.virsh(&["dumpxml", "--inactive", name]);
        assert!(described.contains("<cid auto='yes'"), "{described}");
    }
    let mut rum = libvirt.start_rum("box", "");
    assert_eq!(rum.wait().code(), Some(1));
    rum.stderr.wait("the domain `box` has no vsock device");
    // What it says to do helps, as it stands there.
    let attach = rum.stderr.wait("<vsock model='virtio'>");
    let mut sh = Command::new("sh");
    let done = sh.args(["-c", attach.trim()]).output().expect("sh starts");
    assert!(done.status.success(), "{attach}: {done:?}");
    let described = libvirt.virsh(&["dumpxml", "box"]);
    assert!(described.contains("<cid auto='yes'"), "{described}");
}

#[test]
fn ports_of_a_domain_are_forwarded_and_it_is_powered_off() {
    in_netns(|| {
        let libvirt = Libvirt::start();
        let machine = Machine::new(libvirt.setup.path());
        libvirt.define(&machine.domain("box"));
        let more = format!("socket = \"{}\"", machine.socket().display());
        let mut rum = libvirt.start_rum("box", &more);
        rum.stdout
            .wait("Auto-forwarding 127.0.0.1:5000 → guest:5000");
        let answer = exchange(5000, "GET /file HTTP/1.0\r\n\r\n");
        let answer = answer.expect("httpd answers");
        assert!(answer.ends_with("from the domain\n"), "{answer}");
        rum.signal(Signal::TERM);
        rum.stderr.wait("Powering the guest off");
        rum.wait();
        let console = machine.console();
        assert_eq!(libvirt.state("box"), "shut off (shutdown)", "{console}");
    });
}

#[test]
fn the_agent_is_installed_at_the_address_of_a_domain() {
    let setup = Setup::new();
    let install = |domain: &str| {
        let domain = format!("--domain={domain}");
        let uri = "--uri=test:///default";
        let output = setup
            .rum(["agent", "install", "--print", &domain, uri])
            .output();
        let output = output.expect("rum starts");
        let [said, wrong] =
            [output.stdout, output.stderr].map(|said| String::from_utf8(said).expect("text"));
        (output.status.code(), said, wrong)
    };
    // Of the test driver's own.
    let (code, said, wrong) = install("test");
    assert_eq!((code, &*wrong), (Some(0), ""));
    assert!(
        said.contains("| ssh root@192.168.122.3 'cat >rum-agent'\n"),
        "{said}"
    );
    assert!(install("me@test").1.contains("| ssh me@192.168.122.3 "));
    let (code, _, wrong) = install("absent");
    assert_eq!(code, Some(1));
    assert!(wrong.contains("has no domain `absent`\nhint: "), "{wrong}");
    assert_eq!(install("-oProxyCommand=x").0, Some(2));
}
