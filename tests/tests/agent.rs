//! `rum agent`, as a user runs it: the program that comes out is one, and installing over ssh
//! does what was shown. The ssh here is a script that runs the command on this machine, in a
//! directory that stands for the VM.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use rum_tests::rum::Setup;

/// Runs what it is told in `$VM/home`, with the VM's programs, files and processes.
const SSH: &str = r#"#!/bin/sh
echo "ssh $*" >>"$VM/log"
[ "$1" = -t ] && shift
[ "$1" = -- ] && [ "$2" = me@vm ] || exit 255
cd "$VM/home" && exec unshare --mount --pid --fork --mount-proc sh -euc '
    for dir in etc run usr/local/bin; do mount --bind "$VM/root/$dir" "/$dir"; done
    PATH=$VM/bin:$PATH
    sh -c "$0"' "$3"
"#;
/// Notes what it was told, and fails at what `$BROKEN` names. Of systemd it is the version that the file `version` has.
const TOLD: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo "systemd $(cat "$VM/version") (with more)"; exit; }
echo "$(basename "$0") $*" >>"$VM/log"
[ "$1" != "$BROKEN" ]
"#;
struct Vm {
    setup: Setup,
}

impl Vm {
    /// One with such an init, by the directory that it has.
    fn new(init: &str) -> Self {
        let setup = Setup::new();
        fs::create_dir_all(setup.path().join("root").join(init)).expect("a new directory");
        for dir in [
            "bin",
            "path",
            "home",
            "root/etc",
            "root/run",
            "root/usr/local/bin",
        ] {
            fs::create_dir_all(setup.path().join(dir)).expect("a new directory");
        }
        for (name, script) in [
            ("version", "252"),
            ("path/ssh", SSH),
            ("bin/systemctl", TOLD),
            ("bin/rc-update", TOLD),
            ("bin/rc-service", TOLD),
            ("bin/killall", TOLD),
            ("bin/modprobe", TOLD),
            ("bin/restorecon", TOLD),
            // Passwords are none of our business.
            ("bin/sudo", "#!/bin/sh\nexec \"$@\"\n"),
        ] {
            let file = setup.path().join(name);
            fs::write(&file, script).expect("a new file");
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("our own");
        }
        Self { setup }
    }

    fn rum(&self, args: &[&str], broken: &str) -> Output {
        let path = std::env::var("PATH").expect("a PATH");
        let own = self.setup.path().join("path");
        let mut command = self.setup.rum(args);
        command
            .env("PATH", format!("{}:{path}", own.display()))
            .env("VM", self.setup.path())
            .env("BROKEN", broken)
            .stdin(Stdio::null());
        command.output().expect("rum starts")
    }

    /// The content of a file of the VM.
    fn read(&self, file: &str) -> Vec<u8> {
        let root = self.setup.path().join("root");
        fs::read(root.join(file.trim_start_matches('/'))).expect(file)
    }

    /// What the VM's programs were told, without ssh.
    fn told(&self) -> Vec<String> {
        let log = fs::read_to_string(self.setup.path().join("log")).expect("a log");
        let lines = log.lines().filter(|line| !line.starts_with("ssh "));
        lines.map(str::to_owned).collect()
    }

    /// Installs, which has to work, and says so.
    fn install(&self) -> Output {
        let done = self.rum(&["agent", "install", "--ssh", "me@vm"], "");
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let agent = self.read(rum_host::guest::payload::AGENT_PATH);
        assert!(agent == rum_host::guest::payload::agent(), "another agent");
        let mut home = fs::read_dir(self.setup.path().join("home")).expect("it");
        assert!(home.next().is_none(), "something is left");
        done
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn the_program_that_comes_out_runs() {
    let setup = Setup::new();
    let rum = setup.rum(["agent", "binary"]);
    // Written by another process: nobody here can still have it open when it is executed.
    let mut sh = setup.command("sh");
    sh.args([
        "-euc",
        "\"$1\" agent binary >a; chmod +x a; ./a --version",
        "sh",
    ])
    .arg(rum.get_program());
    let output = sh.output().expect("a shell");
    let version = concat!("rum-agent ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&output.stdout), version, "{output:?}");
}

#[test]
fn no_program_is_written_to_a_terminal() {
    let setup = Setup::new();
    let rum = setup.rum(["agent", "binary"]);
    let mut command = setup.command("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(format!("{} agent binary", rum.get_program().display()))
        .arg("/dev/null")
        .stdin(Stdio::null());
    let output = command.output().expect("script, of bsdutils");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("rum agent binary > rum-agent"), "{said}");
    assert!(!said.contains("ELF"), "{said}");
}

#[test]
fn a_reader_that_goes_away_gets_an_exit_code() {
    let setup = Setup::new();
    let mut command = setup.rum(["agent", "binary"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut rum = command.spawn().expect("rum starts");
    let mut stdout = rum.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 4]).expect("the first bytes");
    drop(stdout);
    let output = rum.wait_with_output().expect("a child of ours");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn installing_over_ssh_does_what_it_shows() {
    let vm = Vm::new("run/systemd/system");
    let shown = vm.rum(&["agent", "install", "--print", "--ssh", "me@vm"], "");
    assert!(!vm.setup.path().join("log").exists(), "something was run");
    let done = vm.install();
    let unit = vm.read(rum_host::guest::payload::UNIT_PATH);
    assert_eq!(text(&unit), rum_host::guest::payload::unit());
    assert_eq!(
        vm.told(),
        [
            "restorecon /usr/local/bin/rum-agent",
            "restorecon /etc/systemd/system/rum-agent.service",
            "systemctl daemon-reload",
            "systemctl enable rum-agent.service",
            "systemctl restart rum-agent.service"
        ]
    );
    // What was run is what was shown, at the time and before.
    let (shown, done) = (text(&shown.stdout), text(&done.stdout));
    let steps: Vec<_> = done.lines().filter(|l| l.contains("ssh ")).collect();
    assert_eq!(steps.len(), 3, "{done}");
    assert!(shown.contains(&steps.join("\n")), "{shown}");
}

#[test]
fn an_old_systemd_gets_no_filter_that_it_does_not_know() {
    let vm = Vm::new("run/systemd/system");
    fs::write(vm.setup.path().join("version"), "237").expect("ours");
    vm.install();
    let unit = text(&vm.read(rum_host::guest::payload::UNIT_PATH));
    let filters = |line: &&str| !line.starts_with("SystemCallFilter=");
    let whole = rum_host::guest::payload::unit();
    let rest: Vec<_> = whole.lines().filter(filters).collect();
    assert_eq!(unit.lines().collect::<Vec<_>>(), rest);
    assert!(rest.len() < whole.lines().count());
}

#[test]
fn openrc_gets_a_service() {
    let vm = Vm::new("run/openrc");
    for _ in 0..2 {
        vm.install();
    }
    let service = text(&vm.read("etc/init.d/rum-agent"));
    assert!(service.starts_with("#!/sbin/openrc-run\n"), "{service}");
    let mut told = vm.told();
    told.retain(|line| line.starts_with("rc-"));
    let each = [
        "rc-update -q add rum-agent default",
        "rc-service rum-agent restart",
    ];
    assert_eq!(told, each.repeat(2));
}

#[test]
fn the_init_of_busybox_gets_a_line() {
    let vm = Vm::new("etc");
    let inittab = "# ::sysinit: of the distribution\n::sysinit:/bin/true\n";
    fs::write(vm.setup.path().join("root/etc/inittab"), inittab).expect("ours");
    for _ in 0..2 {
        vm.install();
    }
    let now = text(&vm.read("etc/inittab"));
    assert_eq!(
        now,
        format!("{inittab}::respawn:/usr/local/bin/rum-agent --quiet\n")
    );
}

#[test]
fn an_unknown_init_is_said() {
    let vm = Vm::new("run");
    let done = vm.install();
    let said = text(&done.stderr);
    assert!(
        said.contains("nothing starts it at the next boot.\nhint: "),
        "{said}"
    );
}

#[test]
fn a_step_that_fails_is_the_last() {
    let vm = Vm::new("run/systemd/system");
    let failed = vm.rum(&["agent", "install", "--ssh", "me@vm"], "enable");
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("failed") && said.contains("hint: "), "{said}");
    let told = vm.told();
    assert!(
        !told.iter().any(|line| line.contains("restart")),
        "went on: {told:?}"
    );

    let nowhere = vm.rum(&["agent", "install", "--ssh", "me@nowhere"], "");
    assert_eq!(nowhere.status.code(), Some(1));
    assert_eq!(
        text(&nowhere.stdout).matches("ssh ").count(),
        1,
        "{nowhere:?}"
    );
}
