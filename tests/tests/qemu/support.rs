//! A small guest for the tests of kind `qemu`: Debian's kernel, and an initramfs with busybox in
//! it that serves its parameters. What it is made of comes from `tests/vm-assets`.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rum_tests::assets::assets;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;

/// PID 1 of the guest. `port=N` on the kernel's command line is where it serves `word=W`; asked
/// for /cgi-bin/sh?COMMAND, with a + for each space, it runs that. It powers off at the press of its button, a shell is on the
/// console.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for word in $(cat /proc/cmdline); do
    case $word in port=*|word=*) export "$word" ;; esac
done
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
mkdir -p /www/cgi-bin
echo "$word" >/www/index.html
printf '#!/bin/sh\necho; eval "$(echo "$QUERY_STRING" | tr + " ")"\n' >/www/cgi-bin/sh
chmod +x /www/cgi-bin/sh
httpd -p "$port" -h /www
press() { dd if="$1" bs=24 count=1 of=/dev/null 2>/dev/null && poweroff -f; }
for event in /dev/input/event*; do press "$event" & done
echo "init: up"
while :; do setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'; done
"#;

/// Writes the initramfs to `out`.
fn initramfs(assets: &Path, out: &Path) {
    let root = out.with_extension("d");
    for dir in ["bin", "modules", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(dir)).expect("a new directory");
    }
    let copy = |from: &Path, to: &str| {
        fs::copy(from, root.join(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    };
    copy(&assets.join("busybox"), "bin/busybox");
    let mut order = fs::read_to_string(assets.join("modules/order")).expect("the assets");
    for module in order.lines() {
        copy(
            &assets.join("modules").join(module),
            &format!("modules/{module}"),
        );
    }
    // For the power button.
    let versions = fs::read_dir(assets.join("kernel/lib/modules")).expect("the assets");
    let version = versions.flatten().next().expect("a kernel").path();
    for (dir, module) in [("input", "evdev.ko"), ("acpi", "button.ko")] {
        let path = version.join("kernel/drivers").join(dir).join(module);
        copy(&path, &format!("modules/{module}"));
        order += &format!("{module}\n");
    }
    fs::write(root.join("modules/order"), order).expect("a new file");
    fs::write(root.join("init"), INIT).expect("a new file");
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).expect("ours");
    let out = fs::File::create(out).expect("a new file");
    let archive = "find . | cpio --quiet -o -H newc";
    let mut cpio = Command::new("sh");
    cpio.args(["-c", archive]).current_dir(root).stdout(out);
    assert!(cpio.status().expect("sh").success(), "cpio");
}

/// A place for VMs, each with a `NAME.toml`.
pub struct Vms {
    /// Where they run.
    pub setup: Setup,
    assets: PathBuf,
}

impl Vms {
    /// Without any yet.
    pub fn new() -> Self {
        let (setup, assets) = (Setup::new(), assets());
        initramfs(&assets, &setup.path().join("initrd"));
        Self { setup, assets }
    }

    /// Writes `NAME.toml`: a VM that serves `name` on `port`, with `append` on its kernel's
    /// command line, and `guest` in its [guest].
    pub fn configure(&self, name: &str, port: u16, append: &str, guest: &str) {
        let kernel = self.assets.join("vmlinuz");
        let text = format!(
            "name = \"{name}\"\n[guest]\nkind = \"qemu\"\naccel = \"tcg\"\nmemory = \"192M\"\n\
             kernel = \"{}\"\ninitrd = \"initrd\"\n\
             append = \"quiet port={port} word={name} {append}\"\n{guest}\n\
             [auto_ports]\nrange = \"{port}\"\n",
            kernel.display()
        );
        fs::write(self.setup.path().join(format!("{name}.toml")), text).expect("ours");
    }

    /// Replaces `this` in `NAME.toml` by `that`.
    pub fn replace(&self, name: &str, this: &str, that: &str) {
        let path = self.setup.path().join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).expect("configured");
        assert!(text.contains(this), "{text}");
        fs::write(path, text.replace(this, that)).expect("ours");
    }

    /// The tests' own PATH with the assets' programs.
    pub fn path(&self) -> OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [self.assets.join("bin")]
            .into_iter()
            .chain(std::env::split_paths(&path));
        std::env::join_paths(dirs).expect("no colon in them")
    }

    /// `rum ARGS`.
    pub fn rum(&self, args: &[&str]) -> Command {
        let mut command = self.setup.rum(args);
        command.env("PATH", self.path()).stdin(Stdio::null());
        command
    }

    /// `rum up -c NAME.toml`.
    pub fn up(&self, name: &str) -> Rum {
        let file = format!("{name}.toml");
        self.setup
            .start_command(&mut self.rum(&["up", "-c", &file]))
    }
}

/// What the guest serves at `path`; None while nobody does.
pub fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.trim().to_owned())
}

/// Waits until the guest serves `word`.
pub fn until_served(port: u16, word: &str) {
    until("the guest's own word", || {
        (get(port, "/").as_deref() == Some(word)).then_some(())
    });
}

/// Ids and command lines of the processes whose environment names `setup`'s directory.
pub fn processes(setup: &Setup) -> Vec<(u32, String)> {
    let marker = format!("RUM_RUNTIME_DIR={}/run", setup.path().display());
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let ours = environ
            .split(|byte| *byte == 0)
            .any(|v| v == marker.as_bytes());
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        ours.then(|| (pid, line.replace('\0', " ")))
    })
    .collect()
}

/// Waits until no process and no file of the runtime directory is left.
pub fn until_nothing_is_left(setup: &Setup) {
    until("the end of every process", || {
        processes(setup).is_empty().then_some(())
    });
    let run = setup.path().join("run");
    until("an empty runtime directory", || {
        let mut left = fs::read_dir(&run).ok()?;
        left.next().is_none().then_some(())
    });
}
