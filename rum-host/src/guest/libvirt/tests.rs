//! Tests that need no libvirt; the others are in the package `rum-tests`.

#![allow(clippy::unwrap_used)]

use super::virsh::{Refusal, refusal};
use super::xml::Vsock;
use super::*;
use crate::ui::render;

#[test]
fn a_description_tells_run_and_cid() {
    let running = "<domain type='kvm' id='7'><name>a</name>\
        <metadata><x:vsock xmlns:x='urn:x'><x:cid address='9'/></x:vsock></metadata>\
        <devices><disk/><vsock model='virtio'><cid auto='yes' address='4'/>\
        <address type='pci' domain='0x0000'/></vsock></devices></domain>";
    let cases = [
        (running, Some(7), Some(Some(4))),
        // Shut off: the CID is not chosen yet, or fixed.
        (
            "<domain><devices><vsock><cid auto='yes'/></vsock></devices></domain>",
            None,
            Some(None),
        ),
        (
            "<domain><devices><vsock><cid auto='no' address='77'/></vsock></devices></domain>",
            None,
            Some(Some(77)),
        ),
        (
            "<domain id='1'><devices><vsock model='virtio'/></devices></domain>",
            Some(1),
            Some(None),
        ),
        (
            "<domain id='1'><devices/><!-- <vsock/> --></domain>",
            Some(1),
            None,
        ),
        (
            "<domain id='-1'><devices><vsock><cid address='-3'/></vsock></devices></domain>",
            None,
            Some(None),
        ),
        ("<domain/>", None, None),
    ];
    for (xml, run, cid) in cases {
        let vsock = cid.map(|cid| Vsock { cid });
        assert_eq!(
            Description::parse(xml),
            Ok(Description { run, vsock }),
            "{xml}"
        );
    }
    for xml in ["", "<domain", "<network/>", "<!DOCTYPE domain><domain/>"] {
        Description::parse(xml).unwrap_err();
    }
}

#[test]
fn what_a_state_asks_for() {
    let cases = [
        ("running (booted)", Ok(Next::Use)),
        ("running", Ok(Next::Use)),
        ("idle (unknown)", Ok(Next::Use)),
        ("shut off (destroyed)", Ok(Next::Start)),
        ("shut off (saved)", Ok(Next::Start)),
        ("paused (user)", Ok(Next::Resume)),
        ("paused (migrating)", Err(None)),
        ("paused (I/O error)", Err(Some("resume"))),
        ("paused (crashed)", Err(Some("destroy"))),
        ("crashed (panicked)", Err(Some("destroy"))),
        ("pmsuspended (unknown)", Err(Some("dompmwakeup"))),
        ("in shutdown (user)", Err(None)),
        ("", Err(None)),
    ];
    for (state, next) in cases {
        assert_eq!(Next::of(state), next, "{state}");
    }
}

#[test]
fn what_virsh_says_is_cleaned() {
    let said = "error: Failed to start domain 'a'\nerror: x\u{1b}[2J\u{202e}y\n\n";
    let text = "x\u{fffd}[2J\u{fffd}y";
    assert_eq!(refusal(said, "1"), Refusal(text.to_owned()));
    assert_eq!(
        refusal(" \n", "exit status: 1").0,
        "virsh ended with exit status: 1"
    );
    assert!(refusal(&"x".repeat(5000), "").0.ends_with('…'));
}

/// The user's view of each error; the refusals are output of virsh 9.0.
#[test]
fn troubles_in_words() {
    let spec = |domain: &str, uri: &str| Spec {
        domain: domain.to_owned(),
        uri: uri.to_owned(),
        socket: None,
    };
    let system = spec("debian", DEFAULT_URI);
    let session = spec("debian", "qemu:///session");
    let odd = spec("it's \u{1b}[1m", "test:///a b");
    let refused = |text: &str| Failed::Refused(refusal(text, "exit status: 1"));
    let connect = |text: &str| {
        let text = format!("error: failed to connect to the hypervisor\nerror: {text}");
        DomainErrors::with(&system, true).connect(refused(&text))
    };
    let vhost = "error: Failed to start domain 'debian'\n\
                 error: unsupported configuration: unable to open vhost-vsock device";
    let some = ["b", "a\u{1b}"].into_iter();
    let many: Vec<_> = (10..30).map(|n| format!("vm{n}")).collect();
    let errors = [
        connect(
            "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
        ),
        connect("Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied"),
        connect(
            "authentication unavailable: no polkit agent available to authenticate action 'org.libvirt.unix.manage'",
        ),
        connect("no connection driver available for foo:///bar"),
        DomainErrors::with(&system, true).unknown([].into_iter()),
        DomainErrors::with(&odd, true).unknown(some),
        DomainErrors::with(&system, true).unknown(many.iter().map(String::as_str)),
        DomainErrors::with(&system, true).start(refused(vhost)),
        DomainErrors::with(&system, false).start(refused(vhost)),
        DomainErrors::with(&session, false).start(refused(vhost)),
        DomainErrors::with(&session, true).unknown([].into_iter()),
        DomainErrors::with(&system, true).no_address(),
        DomainErrors::with(&session, true).no_address(),
        DomainErrors::with(&system, false).state("crashed (panicked)", Some("destroy")),
        DomainErrors::with(&system, false).state("in shutdown (user)", None),
        DomainErrors::with(&odd, false).no_vsock(false),
        DomainErrors::with(&system, true).no_vsock(true),
        DomainErrors::with(&system, true).no_cid(),
        DomainErrors::with(&system, true).ended_at_once("shut off (failed)"),
    ];
    let shown = errors.map(|error| {
        let text = render::render(&error, 80);
        anstream::adapter::strip_str(&text).to_string()
    });
    insta::assert_snapshot!(shown.join("\n"));
}
