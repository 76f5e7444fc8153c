//! Kinds that rum only dials; the package `rum-tests` tests namespace guests.

#![allow(clippy::unwrap_used)]
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::runtime_dir::list_in;

#[tokio::test]
async fn a_guest_of_somebody_else_is_dialled_and_left_alone() {
    let base = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    let socket = PathBuf::from("/run/vm.sock");
    let cases = [
        (GuestKind::Vsock { cid: 7 }, Endpoint::Vsock { cid: 7 }),
        (
            GuestKind::Unix {
                socket: socket.clone(),
            },
            Endpoint::Connect { socket },
        ),
    ];
    for (kind, endpoint) in cases {
        let dir = Arc::new(RuntimeDir::create_in(base.path(), "dev").unwrap());
        let spec = GuestSpec {
            name: "dev".to_owned(),
            kind: kind.clone(),
            reset: false,
        };
        let guest = Guest::start(&spec, &dir, &Link::unheard(Vec::new()))
            .await
            .unwrap();
        assert_eq!(guest.endpoint(), &endpoint);
        assert_eq!(guest.init_pid(), None);
        let error = guest
            .spawn(&["true".into()], std::path::Path::new(""))
            .unwrap_err();
        assert!(error.to_string().contains(kind.name()), "{error}");
        assert!(error.hint().is_some());
        let listed = list_in(base.path()).unwrap();
        assert_eq!(listed[0].kind.as_deref(), Some(kind.name()));
        assert_eq!(guest.stop(Duration::ZERO).await, Stopped::Clean);
    }
}
