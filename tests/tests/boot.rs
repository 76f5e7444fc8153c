//! The agent and its keeper as a guest's first process, without a VM: PID 1 of a PID namespace, in a root that
//! holds what an initramfs would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Makes the root in `$1` and becomes the agent in it, as the kernel would: under its full path,
/// with what it does not understand of its command line.
const KERNEL: &str = r#"
mount --make-rprivate /
mount -t tmpfs rum "$1"
mkdir "$1/rum" "$1/proc" "$1/usr"
mount --rbind -o ro /usr "$1/usr"
for dir in bin lib lib64; do cp -a "/$dir" "$1/$dir"; done
cp "$2/agent" "$1/rum/agent"
cp "$2/init" "$1/init"
exec env -i given=1 "$(command -v chroot)" "$1" /rum/agent single 'two words'
"#;

/// The guest's init: says who it is, empties the root as one does that goes on in another, and
/// tells what has become of the agent.
const INIT: &str = r#"#!/bin/sh
echo "init is $$ with $# arguments: $*; given=$given"
mount -t proc proc /proc
rm -r /rum && echo "the root is emptied"
# What it starts has its name, too, until it runs the agent: the keeper is the one that leads a session.
for process in /proc/[0-9]*; do
    [ "$(tr '\0' ' ' <"$process/cmdline")" = '@rum-keeper ' ] || continue
    read -r pid _ _ parent _ session _ <"$process/stat"
    [ "$session" != "$pid" ] || agent=$pid by=$parent
done
[ -n "$agent" ] && echo "its keeper is a child of $by in a session of its own"
echo "its root has:" $(ls "/proc/$agent/root")
echo "its /proc/1 is $(cat "/proc/$agent/root/proc/1/comm")"
[ -e "/proc/$agent/root/sys/devices/system/cpu/online" ] && echo "its /sys is one"
"#;

#[test]
fn the_agent_starts_the_guests_init_and_outlives_its_root() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("a directory");
    program(&dir.path().join("agent"), rum_host::guest::payload::agent());
    program(&dir.path().join("init"), INIT.as_bytes());
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc"])
        .args([KERNEL, "sh"])
        .args([&root, dir.path()])
        .output()
        .expect("unshare can be run");
    let (said, complaints) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(
        said,
        "init is 1 with 2 arguments: single two words; given=1\n\
         the root is emptied\n\
         its keeper is a child of 1 in a session of its own\n\
         its root has: proc sys\n\
         its /proc/1 is init\n\
         its /sys is one\n",
        "{complaints}"
    );
}

fn program(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("a new file");
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("our own file");
}
