//! What a running `rum up` tells readers of its control socket.

use rum_host::control::client::Feed;
use rum_host::runtime_dir::list_in;
use rum_host::status::model::PortStatus;
use rum_host::view::Mirror;

use crate::rum::Setup;
use crate::wait::DEADLINE;

/// Follows the only `rum up` of `setup` until `condition` gives a value.
///
/// # Panics
/// When it does not come, or rum is gone.
pub fn follow<T>(setup: &Setup, what: &str, condition: impl Fn(&Mirror) -> Option<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let guests = list_in(&setup.path().join("run")).expect("a runtime directory");
        let mut feed = Feed::open(&guests[0], false, None, None)
            .await
            .expect("rum up");
        let mut known = Mirror::default();
        let found = async {
            loop {
                known.apply(&feed.next().await.expect("rum up"));
                if let Some(value) = condition(&known) {
                    return value;
                }
            }
        };
        let found = tokio::time::timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("waited in vain: {what}"))
    })
}

/// Waits until the port with this id is as `condition` says.
///
/// # Panics
/// As [`follow`].
pub fn until_port(setup: &Setup, id: &str, condition: impl Fn(&PortStatus) -> bool) -> PortStatus {
    follow(setup, id, |known| {
        let port = known.ports().find(|port| port.id == id);
        port.filter(|port| condition(port)).cloned()
    })
}
