//! `rum init`: writes a `rum.toml` that explains each key.
//!
//! Invariants: never overwrites a file; the text parses, sets only the name and the range, and
//! mentions every key, which a test compares with the reflection of [`crate::config::Config`].

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum as _;
use rum_shared::range::PortRanges;

use crate::cli::tools::{InitArgs, Kind};
use crate::config::{DEFAULT_NAME, FILE_NAME};
use crate::error::RumError;
use crate::exit;

/// The default range.
const RANGE: &str = "5000-6000";

/// Runs `rum init`.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn run(args: &InitArgs) -> Result<u8, RumError> {
    let path = args.config.as_deref().unwrap_or(Path::new(FILE_NAME));
    let text = text(args.name.as_deref(), args.range.as_ref(), args.kind);
    create(path, &text).map_err(|error| refused(path, error))?;
    let shown = path.display();
    let option = match &args.config {
        Some(_) => format!(" -c {shown}"),
        None => String::new(),
    };
    let first = match args.kind.map_or("", needed) {
        "" => String::new(),
        needed => format!("set `{}` in it, then ", key(needed)),
    };
    super::print(&format!(
        "Wrote {shown}\nnext: {first}rum check{option}, then rum up{option}\n"
    ))?;
    Ok(exit::OK)
}

/// Creates a new file (O_EXCL).
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes()).inspect_err(|_| {
        // Remove our incomplete file.
        let _ = std::fs::remove_file(path);
    })
}

fn refused(path: &Path, error: io::Error) -> RumError {
    let shown = path.display();
    if error.kind() == io::ErrorKind::AlreadyExists {
        return RumError::new(format!("{shown} is there already")).hint(
            "remove it first, or write another with `rum init -c FILE`; \
             `rum check` says what is in it",
        );
    }
    RumError::new(format!("cannot write {shown}"))
        .caused_by(error)
        .hint("name a file that you may write with `-c FILE`")
}

/// The line that a guest of this kind needs beside the kind, with an example's value; empty: none.
fn needed(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "",
        Kind::Qemu => "image = \"debian.qcow2\"",
        Kind::Libvirt => "domain = \"debian\"",
        Kind::Vsock => "cid = 3",
        Kind::Unix => "socket = \"/run/vm/vsock.sock\"",
    }
}

fn key(line: &str) -> &str {
    line.split(' ').next().unwrap_or(line)
}

/// `template` with the lines that make the guest one of this kind no longer commented out.
fn of_kind(template: &str, kind: Kind) -> String {
    let value = kind.to_possible_value();
    let name = value.as_ref().map_or("", |value| value.get_name());
    let start = format!("\n# kind = \"{name}\"\n");
    let Some((before, block)) = template.split_once(&start) else {
        return template.to_owned();
    };
    let needed = needed(kind);
    let block = match needed {
        "" => block.to_owned(),
        line => block.replacen(&format!("# {line}\n"), &format!("{line}\n"), 1),
    };
    format!("{before}\nkind = \"{name}\"\n{block}")
}

/// The file.
fn text(name: Option<&str>, range: Option<&PortRanges>, kind: Option<Kind>) -> String {
    let name = match name {
        Some(name) => format!("name = \"{name}\""),
        None => format!("# name = \"{DEFAULT_NAME}\""),
    };
    let range = range.map_or(RANGE.to_owned(), ToString::to_string);
    let text = TEMPLATE.replace("{name}", &name).replace("{range}", &range);
    match kind {
        Some(kind) => of_kind(&text, kind),
        None => text,
    }
}

/// What is commented out is optional and shows its default, or an example.
const TEMPLATE: &str = r#"# What `rum up` forwards from a Linux guest to this machine. `rum check` checks it.

# Tells guests apart, as in `rum exec --name NAME`.
{name}

# How long open connections may go on when rum ends their forward: "500ms", "10s", "2m"; "0" cuts.
# drain = "10s"
# After how much silence a client is asked whether it is still there; gone without an answer within
# as much again. Without it, the system's times hold (hours).
# keepalive = "30s"

# Where programs run. The default is a network namespace of this machine, made by rum. It is no
# security boundary: its programs have your files and your rights.
[guest]
# kind = "namespace"
# A /tmp and a /var/tmp of its own, empty at the start and gone at the end.
# private_tmp = false
# Terminals of its own: sshd of an ordinary user can give one only then. Yours has no name (tty) inside then.
# private_pts = false
# An ordinary user is root in it, as in `podman unshare`: chown, setpriv and the like work.
# root = false
# All of root's capabilities for root's programs, not only those that root has in a container.
# privileged = false

# A running VM with rum-agent in it, by its context id:
# kind = "vsock"
# cid = 3

# A running VM whose vsock is a Unix socket on this machine (Firecracker, Cloud Hypervisor):
# kind = "unix"
# socket = "/run/vm/vsock.sock"

# A VM that rum boots (QEMU) from a disk image with cloud-init, to which nothing is written:
# kind = "qemu"
# image = "debian.qcow2"
# user_data = "user-data.yaml"
# ssh_key = "~/.ssh/id_ed25519.pub"
# cpus = 2
# memory = "512M"
# What the VM's disk has at least: the image's own size otherwise. The guest grows into it.
# disk = "20G"
# Boots by UEFI firmware (package ovmf) and not by a BIOS: images for it alone need that.
# uefi = true
# By the processor if that can be, else by translation: "auto", "kvm" or "tcg".
# accel = "auto"
# More arguments for QEMU.
# args = ["-nic", "none"]

# The same from a Linux kernel:
# kind = "qemu"
# kernel = "vmlinuz"
# initrd = "initrd.img"
# append = "quiet"

# A domain of libvirt; rum starts it if it is shut off, and ends what it started:
# kind = "libvirt"
# domain = "debian"
# uri = "qemu:///system"

# Forward whatever listens in the guest, as long as it does.
[auto_ports]
# Ports and ranges, separated by commas: "3000-3999,8080".
range = "{range}"
# Addresses of this machine: "localhost" is 127.0.0.1 and ::1, "0.0.0.0" lets the whole network in,
# and there may be several: ["127.0.0.1", "192.0.2.1"].
# bind = "localhost"
# When the host port is taken: "wait" until it is free, or take the "next" free one.
# on_conflict = "wait"
# Instead of `drain` above, and also when the program in the guest closes its port. Without it,
# such connections go on for as long as the program and its client want.
# drain = "10s"
# Ports of the range to leave alone.
# exclude = "5900-5999"

# What differs for some of these ports; the first rule that matches counts. One of `guest`, `process`
# and `command` is enough, `action` may be "ignore", and `host` is where the first port of `guest` goes.
# `process` is the short name (ps -o comm), or the file name of the executable or of the script;
# `command` is the whole command line.
# [[auto_ports.rule]]
# guest = "5432-5439"
# process = "postgres*"
# command = "*vite*"
# action = "forward"
# host = 15432
# bind = "localhost"
# label = "database"
# drain = "10s"

# A port that is forwarded at all times; as many of these as wanted.
# [[ports]]
# host = 8080
# guest = 80
# bind = "localhost"
# label = "web"
"#;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use facet::{Def, Facet, Field, Shape, Type, UserType};

    use super::*;
    use crate::config::{self, Config};
    use crate::plan::Policy;

    #[test]
    fn the_file() {
        insta::assert_snapshot!(text(Some("dev"), None, None));
    }

    #[test]
    fn it_parses_and_says_what_was_asked_for() {
        let settings = config::parse(&text(None, None, None), "rum.toml").unwrap();
        assert_eq!(settings.name, DEFAULT_NAME);
        assert_eq!(settings.policy.auto.unwrap().ranges.to_string(), RANGE);
        let range = "3000-3999,8080".parse().unwrap();
        let settings = config::parse(&text(Some("dev"), Some(&range), None), "rum.toml").unwrap();
        assert_eq!(settings.name, "dev");
        assert_eq!(settings.policy.auto.unwrap().ranges, range);
    }

    #[test]
    fn each_kind_is_what_it_says_and_the_rest_stays_a_comment() {
        let plain = text(None, None, None);
        for kind in Kind::value_variants() {
            let text = text(None, None, Some(*kind));
            let settings = config::parse(&text, "rum.toml").unwrap();
            let name = kind.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(settings.guest.name(), name);
            let lines = plain.lines().zip(text.lines());
            let changed: Vec<_> = lines.filter(|(before, after)| before != after).collect();
            assert_eq!(
                changed.len(),
                1 + usize::from(!needed(*kind).is_empty()),
                "{name}"
            );
            for (before, after) in changed {
                assert_eq!(before, format!("# {after}"));
            }
        }
    }

    /// Each line `# key = value` as if it were not commented out.
    fn uncommented(text: &str) -> String {
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn what_is_commented_out_is_the_default_or_right() {
        let text = text(None, None, None);
        // One kind of guest at a time.
        let start = text.find("# A running VM with").unwrap();
        let end = text.find("# Forward whatever").unwrap();
        let (others, rest) = (&text[start..end], text[..start].to_owned() + &text[end..]);
        let all = config::parse(&uncommented(&rest), "rum.toml").unwrap();
        let mut policy = config::parse(&text, "rum.toml").unwrap().policy;
        assert_eq!(all.policy.statics.len(), 1, "the example");
        policy.statics = all.policy.statics.clone();
        if let (Some(auto), Some(all)) = (&mut policy.auto, &all.policy.auto) {
            assert_eq!(
                (all.rules.len(), all.exclude.is_empty()),
                (1, false),
                "examples"
            );
            auto.rules = all.rules.clone();
            auto.exclude = all.exclude.clone();
            auto.drain = all.drain;
        }
        policy.keepalive = all.policy.keepalive;
        assert_eq!(all.policy, policy);
        assert_eq!(policy.drain, Policy::default().drain);
        for kind in uncommented(others).split("kind").skip(1) {
            let kind: String = kind
                .lines()
                .take_while(|l| !l.is_empty())
                .collect::<Vec<_>>()
                .join("\n");
            config::parse(&format!("[guest]\nkind{kind}"), "rum.toml").unwrap();
        }
    }

    fn fields(shape: &'static Shape) -> &'static [Field] {
        match (&shape.ty, &shape.def) {
            (_, Def::Option(option)) => fields(option.t),
            (_, Def::List(list)) => fields(list.t),
            (Type::User(UserType::Struct(this)), _) => this.fields,
            _ => &[],
        }
    }

    /// All keys of a section and of those below it, as `section.key`.
    fn keys(section: &str, shape: &'static Shape, found: &mut Vec<(String, &'static str)>) {
        for field in fields(shape) {
            let name = field.effective_name();
            match fields(field.shape()) {
                [] => found.push((section.to_owned(), name)),
                _ => keys(name, field.shape(), found),
            }
        }
    }

    #[test]
    fn every_key_is_mentioned_in_its_section() {
        let mut all = Vec::new();
        keys("", Config::SHAPE, &mut all);
        assert!(all.len() > 10);
        let text = uncommented(TEMPLATE).replace("{name}", "name = \"\"");
        for (section, key) in all {
            let mut here = "";
            let found = text.lines().any(|line| {
                if line.starts_with('[') {
                    here = line.trim_matches(['[', ']']).rsplit('.').next().unwrap();
                }
                here == section && line.starts_with(&format!("{key} = "))
            });
            assert!(found, "`{key}` of [{section}] is not in the file");
        }
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rum.toml");
        create(&path, "old").unwrap();
        let error = create(&path, "new").unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        let error = refused(Path::new("rum.toml"), error);
        insta::assert_snapshot!(crate::commands::plain(&crate::ui::render::render(
            &error, 80
        )));
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(create(&dir.path().join("link"), "new").is_err(), "O_EXCL");
        assert!(create(&dir.path().join("no/rum.toml"), "new").is_err());
    }
}
