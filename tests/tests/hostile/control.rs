//! Clients that lie to the control socket of a real `rum up`, and clients that are somebody else.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Output;

use rum_shared::stream::link::MAX_SESSION_FRAMES;
use rum_shared::stream::session::Limits;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Setup, binary};

use super::support::{connect, first_frame, flood, frame, item, peak_mib, recorded};

/// What `rum up` may have resident under these lies, in MiB (a debug build).
const MOST: u64 = 80;

fn ports(setup: &Setup) -> Output {
    setup.rum(["ports"]).output().expect("rum starts")
}

#[test]
fn rum_outlives_every_lie_on_its_control_socket() {
    in_netns(|| {
        let setup = Setup::new();
        let rum = setup.start(["up", "--name", "dev", "--range", "5000"]);
        rum.stderr.wait("connected");
        let socket = setup.path().join("run/dev/control.sock");
        let host = recorded("host");
        let line = vec![b'x'; 1 << 20];
        for lie in [&line[..], &[0xff; 8], &frame(&[0xff; 40]), &host[..9]] {
            let mut stream = connect(&socket);
            // It is cut off as soon as it is seen through.
            let _ = stream.write_all(lie);
        }
        let small = flood(connect(&socket), first_frame(&host), |n| item(n, 0));
        assert!(u64::from(small) <= 2 * MAX_SESSION_FRAMES, "{small}");
        let large = flood(connect(&socket), first_frame(&host), |n| item(n, 60_000));
        let limit = Limits::AGENT.bytes / 60_000 + 16;
        assert!(u64::from(large) <= limit, "{large} of {limit}");
        // More than have room; none of them ever reads or writes.
        let silent: Vec<_> = (0..200).map(|_| connect(&socket)).collect();
        // Those that say nothing lose their place after the time for a handshake.
        let mut asked = ports(&setup);
        while !asked.status.success() {
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            assert!(said.contains("does not answer"), "{said}");
            asked = ports(&setup);
        }
        drop(silent);
        let peak = peak_mib(rum.child.id());
        assert!(peak <= MOST, "{peak} MiB");
    });
}

#[test]
fn somebody_else_has_no_access() {
    in_netns(|| {
        let setup = Setup::new();
        let rum = setup.start(["up", "--name", "dev", "--range", "5000"]);
        rum.stderr.wait("connected");
        // As `nobody`, with everything pointing to root's directory. The program is copied, since
        // the build directory may be closed to others.
        let public = tempfile::tempdir().expect("a directory");
        let copy = public.path().join("rum");
        std::fs::copy(binary("rum"), &copy).expect("a copy");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(public.path(), open).expect("our own");
        let mut command = setup.command(&copy);
        command.args(["down", "--name", "dev"]).current_dir("/");
        let output = command.uid(65_534).gid(65_534).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("ermission denied"), "{said}");
        assert!(ports(&setup).status.success(), "it still runs");
    });
}
