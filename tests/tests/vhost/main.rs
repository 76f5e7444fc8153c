//! rum on a host with a genuine /dev/vhost-vsock, which few machines for tests have: here the host
//! is a virtual machine, without KVM, and the guests are VMs inside it. Its only program is
//! `vhost-host`, which holds the checks; all that it needs is packed into its initramfs.
//!
//! Its clock counts its instructions, not the time that passes outside: on a loaded machine all of
//! it is slower, but no deadline inside comes nearer (the kernel gives a vsock two seconds to connect,
//! rum an agent four to be heard), and no timer of the guests takes the time of what they do.
//!
//! The host boots in a few seconds, its two guests take more than a minute each.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rum_tests::assets::assets;
use rum_tests::rum::binary;
use rum_tests::vm::{command, install};

/// The checks wait for conditions, each with a deadline of its own. This bounds all of them.
const DEADLINE: Duration = Duration::from_secs(3000);
/// Lines of the console that are shown when something went wrong.
const TAIL: usize = 150;

/// First process of the host.
const HOST_INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/usr/bin HOME=/tmp
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mkdir /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
ulimit -n 8192
vhost-host 2>&1
echo "vhost-host ended with $?"
poweroff -f
"#;

/// First process of a guest, next to the agent that rum puts in.
const GUEST_INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
while :; do guest vsock "$CONTROL_PORT"; sleep 0.2; done
"#;

/// What Debian's QEMU loads at its start to boot a kernel without KVM.
const QEMU_FILES: &str = "/usr/share/seabios/bios-256k.bin /usr/share/qemu/linuxboot_dma.bin \
     /usr/share/qemu/kvmvapic.bin /usr/lib/*/qemu/accel-tcg-x86_64.so";

#[test]
fn rum_on_a_host_with_vhost_vsock() {
    let dir = tempfile::Builder::new().prefix("rum-vhost-").tempdir();
    let dir = dir.expect("a temporary directory");
    let cache = assets();
    pack_guest(&cache, dir.path());
    pack_host(&cache, dir.path());
    let mut host = Host(start(&cache, dir.path()));
    let begin = Instant::now();
    let ended = loop {
        match host.0.try_wait().expect("a child of ours") {
            Some(status) => break status.to_string(),
            None if begin.elapsed() > DEADLINE => break format!("still running at {DEADLINE:?}"),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let console = fs::read(dir.path().join("console")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<String> = console
        .lines()
        .map(|line| rum_shared::text::clean(line, 400))
        .collect();
    let passed = lines.iter().any(|line| line == "all checks passed");
    if !passed {
        let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        eprintln!("--- the host's QEMU ({ended})\n{log}--- its console");
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("{line}");
        }
    }
    let last = lines.iter().rfind(|line| line.starts_with("check: "));
    assert!(passed, "the last was {last:?}");
    for line in lines.iter().filter(|line| line.starts_with("ok: ")) {
        eprintln!("{line}");
    }
}

/// A QEMU that ends with the test.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(cache: &Path, dir: &Path) -> Child {
    let mut qemu = command("qemu-system-x86_64", dir);
    qemu.args(["-machine", "q35", "-m", "1536", "-cpu", "max"])
        // Room for the translation of a translator.
        .args(["-accel", "tcg,thread=single,tb-size=512"])
        // Its clock counts instructions.
        .args(["-icount", "shift=0"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "file:console", "-no-reboot"])
        .arg("-kernel")
        .arg(cache.join("vmlinuz"))
        .args(["-initrd", "host", "-append", "console=ttyS0 quiet panic=-1"]);
    qemu.spawn().expect("QEMU starts")
}

/// Makes `dir/host`, the initramfs of the host.
fn pack_host(cache: &Path, dir: &Path) {
    let root = dir.join("host.d");
    base(cache, &root, HOST_INIT);
    for program in ["vhost-host", "rum"] {
        install(&binary(program), &format!("bin/{program}"), &root);
    }
    install(
        Path::new("/usr/bin/qemu-system-x86_64"),
        "usr/bin/qemu-system-x86_64",
        &root,
    );
    shell(
        &root,
        r#"
        for file in $QEMU_FILES; do
            mkdir -p ".${file%/*}"
            cp -L "$file" ".$file"
        done
        (cd "$CACHE"/modules && cat order) >modules/order
        while read -r module; do cp "$CACHE/modules/$module" modules/; done <modules/order
        for module in vhost_iotlb.ko vhost.ko vhost_vsock.ko; do
            cp "$CACHE"/kernel/lib/modules/*/kernel/drivers/vhost/$module modules/
            echo $module >>modules/order
        done
        cp "$CACHE/vmlinuz" vmlinuz
        cp ../guest initrd
        qemu-img create -q -f qcow2 snapshots.qcow2 1M
        "#,
        cache,
    );
    pack(&root, cache);
}

/// Makes `dir/guest`, the initramfs of the guests.
fn pack_guest(cache: &Path, dir: &Path) {
    let root = dir.join("guest.d");
    base(cache, &root, GUEST_INIT);
    install(&binary("guest"), "bin/guest", &root);
    // No more than it needs: each costs it a second.
    shell(
        &root,
        r#"
        grep -vE '^(virtio_blk|vsock_diag|udp_diag|unix_diag)\.ko' "$CACHE/modules/order" >modules/order
        while read -r module; do cp "$CACHE/modules/$module" modules/; done <modules/order
        "#,
        cache,
    );
    pack(&root, cache);
}

/// Makes `root` with busybox and `init`.
fn base(cache: &Path, root: &Path, init: &str) {
    for name in ["bin", "dev", "proc", "sys", "tmp", "modules"] {
        fs::create_dir_all(root.join(name)).expect("a new directory");
    }
    fs::write(root.join("init"), init).expect("a new directory");
    let busybox = fs::copy(cache.join("busybox"), root.join("bin/busybox"));
    busybox.expect("tests/vm-assets has run");
}

/// Puts `root`, NAME.d, into the archive NAME next to it.
fn pack(root: &Path, cache: &Path) {
    let script = "chmod 755 init bin/*; find . | cpio --quiet -o -H newc >../$(basename $PWD .d)";
    shell(root, script, cache);
    fs::remove_dir_all(root).expect("ours");
}

/// Runs `script` in `root`.
fn shell(root: &Path, script: &str, cache: &Path) {
    let done = Command::new("sh")
        .args(["-euc", script])
        .current_dir(root)
        .env("CACHE", cache)
        .env("QEMU_FILES", QEMU_FILES)
        .status();
    assert!(done.is_ok_and(|status| status.success()), "{script}");
}
