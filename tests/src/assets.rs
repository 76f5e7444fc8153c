//! What `tests/vm-assets` and `tests/vm-image` have put aside for tests with virtual machines.

use std::env;
use std::path::PathBuf;

/// The directory, as those scripts choose it.
///
/// # Panics
/// When they have not run.
pub fn assets() -> PathBuf {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty());
    let home = || PathBuf::from(var("HOME").expect("HOME is set")).join(".cache");
    let default = || {
        let cache = var("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
        cache.join("rum-tests")
    };
    let assets = var("RUM_TEST_CACHE").map_or_else(default, PathBuf::from);
    let stamp = assets.join("stamp");
    assert!(
        stamp.is_file(),
        "no {}: run tests/vm-assets",
        stamp.display()
    );
    assets
}

/// A Debian with systemd and cloud-init that firmware boots; not to be written to.
///
/// # Panics
/// When it is not there.
pub fn debian() -> PathBuf {
    let image = assets().join("debian.qcow2");
    assert!(
        image.is_file(),
        "no {}: run tests/vm-image",
        image.display()
    );
    image
}
