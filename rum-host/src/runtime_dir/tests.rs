#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::base::choose_base;
use super::*;

fn base() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("rum")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap()
}

#[test]
fn names() {
    let longest = "a".repeat(MAX_NAME);
    for good in ["a", "dev", "a.b-c_D9", "-", longest.as_str()] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    let too_long = "a".repeat(MAX_NAME + 1);
    for bad in [
        "",
        ".",
        "..",
        ".a",
        "a/b",
        "a b",
        "ä",
        "a\0",
        too_long.as_str(),
    ] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn base_by_the_rule() {
    let xdg = || Some(PathBuf::from("/x"));
    let cases = [
        (Some("/r"), xdg(), 0, true, "/r"),
        (None, xdg(), 0, true, "/run/rum"),
        (None, xdg(), 7, true, "/x/rum"),
        (None, Some(PathBuf::from("x")), 7, true, "/run/user/7/rum"),
        (None, None, 7, true, "/run/user/7/rum"),
        (None, xdg(), 7, false, "/tmp/rum-7"),
    ];
    for (given, xdg, uid, ours, want) in cases {
        let got = choose_base(given.map(PathBuf::from), xdg, uid, |_| ours);
        assert_eq!(got, Path::new(want));
    }
}

#[test]
fn a_second_owner_is_told_who_the_first_is_and_follows_when_it_ends() {
    let base = base();
    let first = RuntimeDir::create_in(base.path(), "dev").unwrap();
    let error = RuntimeDir::create_in(base.path(), "dev").unwrap_err();
    let me = std::process::id();
    assert!(
        matches!(&error, RuntimeDirError::Running { pid: Some(pid), .. } if *pid == me),
        "{error}"
    );
    assert!(error.to_string().contains(&me.to_string()));
    RuntimeDir::create_in(base.path(), "other").unwrap();

    drop(first);
    assert!(!base.path().join("dev").exists());
    RuntimeDir::create_in(base.path(), "dev").unwrap();
}

#[test]
fn what_a_dead_owner_left_is_taken_over() {
    let base = base();
    let path = base.path().join("dev");
    private_dir(&path).unwrap();
    fs::write(path.join(LOCK), "4000000000 1\n").unwrap();
    fs::write(path.join(STATE), "kind namespace\ninit 1 1\n").unwrap();
    drop(UnixListener::bind(path.join(RPC)).unwrap());
    assert_eq!(list_in(base.path()).unwrap(), []);

    let dir = RuntimeDir::create_in(base.path(), "dev").unwrap();
    assert!(!path.join(STATE).exists());
    UnixListener::bind(dir.rpc_socket()).unwrap();
}

#[test]
fn a_late_cleaner_leaves_the_successor_alone() {
    let base = base();
    let path = base.path().join("dev");
    let first = RuntimeDir::create_in(base.path(), "dev").unwrap();
    let keeper = first.held().dir.try_clone().unwrap();
    drop(first);
    let second = RuntimeDir::create_in(base.path(), "dev").unwrap();
    let (at, name) = open_base(&path).unwrap();
    clean(keeper.as_fd(), at.as_fd(), name);
    let held = second.held();
    assert!(is_at(&held.lock, &held.dir));
    drop(held);
    assert!(path.join(LOCK).exists());
}

#[test]
fn lists_what_is_held() {
    let base = base();
    assert_eq!(list_in(&base.path().join("none")).unwrap(), []);
    let b = RuntimeDir::create_in(base.path(), "b").unwrap();
    let a = RuntimeDir::create_in(base.path(), "a").unwrap();
    fs::create_dir(base.path().join("stray")).unwrap();
    fs::write(base.path().join(".hidden"), "").unwrap();
    let me = ProcessId::current().unwrap();
    let isolation = Isolation {
        private_tmp: true,
        privileged: true,
        ..Isolation::default()
    };
    b.publish("namespace", Some((me, isolation))).unwrap();
    a.publish("vsock", None).unwrap();

    let found = list_in(base.path()).unwrap();
    let names: Vec<_> = found.iter().map(|guest| guest.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(found[0].kind.as_deref(), Some("vsock"));
    assert_eq!(found[0].init, None);
    assert_eq!(found[0].isolation, Isolation::default());
    assert_eq!(found[1].init, Some(me));
    assert_eq!(found[1].isolation, isolation);
    assert_eq!(found[1].rum, Some(me));
}

#[test]
fn unsafe_directories_are_refused() {
    let base = base();
    let open = base.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(base.path(), base.path().join("link")).unwrap();
    fs::write(base.path().join("file"), "").unwrap();
    for name in ["open", "link", "file"] {
        let error = RuntimeDir::create_in(base.path(), name).unwrap_err();
        assert!(matches!(error, RuntimeDirError::Unsafe { .. }), "{error}");
        assert!(error.hint().is_some());
    }
    // As a base directory, too: / belongs to root or another user, and is open to others.
    for base in [open.as_path(), Path::new("/")] {
        let error = RuntimeDir::create_in(base, "dev").unwrap_err();
        assert!(matches!(error, RuntimeDirError::Unsafe { .. }), "{error}");
    }
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
    let base = base();
    let room = MAX_SOCKET_PATH - base.path().as_os_str().len() - "//".len() - CHANNEL.len();
    let dir = RuntimeDir::create_in(base.path(), &"a".repeat(room.min(MAX_NAME))).unwrap();
    UnixListener::bind(dir.channel_socket()).unwrap();

    let deep = base.path().join("d".repeat(100));
    let error = RuntimeDir::create_in(&deep, "dev").unwrap_err();
    assert!(matches!(error, RuntimeDirError::TooLong { .. }), "{error}");
    assert!(!deep.exists());
}

#[test]
fn a_directory_for_other_things_is_not_hidden() {
    let base = base();
    let uid = rustix::process::geteuid().as_raw();
    let a = RuntimeDir::create_in(base.path(), "a").unwrap();
    assert!(to_hide(a.path(), uid).contains(&base.path().to_owned()));
    // The remains of a dead guest count as a guest's directory.
    fs::create_dir(base.path().join("b")).unwrap();
    assert!(to_hide(a.path(), uid).contains(&base.path().to_owned()));
    fs::write(base.path().join("notes"), "").unwrap();
    let hidden = to_hide(a.path(), uid);
    assert!(!hidden.contains(&base.path().to_owned()), "{hidden:?}");
    assert!(hidden.contains(&a.path().to_owned()), "{hidden:?}");
}

/// Also if the user is root inside the guest, with another id than in the directories' names.
#[test]
fn directories_are_hidden_under_the_id_that_the_user_has_outside() {
    let base = base();
    let a = RuntimeDir::create_in(base.path(), "a").unwrap();
    // An id that only this process uses.
    let uid = 4_000_000_000 + std::process::id();
    let other = tempfile::Builder::new()
        .prefix(&format!("rum-{uid}"))
        .rand_bytes(0)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in("/tmp")
        .unwrap();
    assert!(to_hide(a.path(), uid).contains(&other.path().to_owned()));
    assert!(!to_hide(a.path(), uid + 1).contains(&other.path().to_owned()));
}

#[test]
fn what_somebody_removed_is_made_anew() {
    let base = base();
    let path = base.path().join("dev");
    let dir = RuntimeDir::create_in(base.path(), "dev").unwrap();
    dir.publish("unix", None).unwrap();
    assert_eq!(dir.mend().unwrap(), Mended::Whole);
    let removals: [fn(&Path); 4] = [
        |path| fs::remove_dir_all(path).unwrap(),
        |path| fs::remove_file(path.join(LOCK)).unwrap(),
        |path| fs::remove_file(path.join(STATE)).unwrap(),
        |path| fs::rename(path, path.with_extension("old")).unwrap(),
    ];
    for remove in removals {
        remove(&path);
        assert_eq!(dir.mend().unwrap(), Mended::Anew);
        let found = list_in(base.path()).unwrap();
        assert_eq!(found[0].kind.as_deref(), Some("unix"));
        assert_eq!(found[0].rum, Some(ProcessId::current().unwrap()));
        assert_eq!(dir.mend().unwrap(), Mended::Whole);
    }
    // Another process has taken the name, with its own directory and lock.
    fs::remove_dir_all(&path).unwrap();
    let other = RuntimeDir::create_in(base.path(), "dev").unwrap();
    let error = dir.mend().unwrap_err();
    assert!(matches!(error, RuntimeDirError::Running { .. }), "{error}");
    drop(dir);
    assert!(path.join(LOCK).exists(), "the other one's stays");
    drop(other);
}

#[test]
fn a_live_one_whose_lock_is_gone_keeps_its_sockets() {
    let base = base();
    let path = base.path().join("dev");
    let dir = RuntimeDir::create_in(base.path(), "dev").unwrap();
    let control = UnixListener::bind(dir.control_socket()).unwrap();
    fs::remove_file(path.join(LOCK)).unwrap();
    let error = RuntimeDir::create_in(base.path(), "dev").unwrap_err();
    assert!(matches!(error, RuntimeDirError::Running { .. }), "{error}");
    assert!(path.join(CONTROL).exists());
    // The refused one does not hold the lock.
    assert_eq!(dir.mend().unwrap(), Mended::Anew);
    drop(control);
}

#[test]
fn a_directory_that_its_owner_may_not_enter_is_opened() {
    let base = base();
    let path = base.path().join("dev");
    for mode in [0o000, 0o500, 0o200] {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        drop(RuntimeDir::create_in(base.path(), "dev").unwrap());
        assert!(!path.exists());
    }
}
