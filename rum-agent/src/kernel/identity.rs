//! Details for step 2: the names of a process, from /proc (man 5 proc_pid).
//!
//! Four texts, since none alone is what people call a program. The kernel's short name is that of
//! the thread that called execve(2), until the program changes it (Node.js calls itself
//! `MainThread`). The executable of a script is its interpreter. And the monitors of containers,
//! which hold the containers' ports, all have the same name: for those, the container's name
//! replaces the script.
//!
//! Invariants: every text is valid UTF-8 and bounded; an unreadable one is empty.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rum_shared::listener::{MAX_COMMAND, MAX_NAME, MONITOR, Process};

/// Most bytes of a command line that are read. A longer one ends there: programs with so many
/// arguments have lists of files in them.
const MAX_ARGUMENTS: u64 = 64 * 1024;
/// More bytes than a `status`, a `comm` and most command lines have.
const USUAL: usize = 4096;
/// Replaces the middle of a command line that is too long.
const CUT: &str = "…";
/// The option that gives a [`MONITOR`] the name of its container.
const CONTAINER: &str = "-n";

/// The names of the process `pid`.
pub fn read(proc: &Path, pid: u32) -> Process {
    let dir = proc.join(pid.to_string());
    let arguments = arguments(&dir);
    let program = program(proc, pid);
    let container = match &*program {
        MONITOR => container(&arguments),
        _ => None,
    };
    let plain = |argument: &&Vec<u8>| !argument.is_empty() && !argument.starts_with(b"-");
    let script = || arguments.iter().skip(1).find(plain);
    // A monitor's command line is long, and its distinguishing part is in the middle.
    let kept = container.map(|name| format!("{CONTAINER} {}", file_name(name)));
    Process {
        pid,
        name: short_name(proc, pid),
        program,
        script: container
            .or_else(script)
            .map(|path| file_name(path))
            .unwrap_or_default(),
        command: command(&arguments, kept.as_deref()),
    }
}

/// The name of the container in the command line of a [`MONITOR`].
fn container(arguments: &[Vec<u8>]) -> Option<&Vec<u8>> {
    let mut arguments = arguments.iter();
    arguments.find(|argument| *argument == CONTAINER.as_bytes())?;
    arguments.next()
}

/// The kernel's short name of a process, empty when it cannot be read. Any bytes may be in it.
pub fn short_name(proc: &Path, pid: u32) -> String {
    let bytes = start(&proc.join(format!("{pid}/comm")));
    head(&text(bytes.strip_suffix(b"\n").unwrap_or(&bytes)), MAX_NAME).to_owned()
}

/// The file name of the executable of a process, which may have been replaced or removed since.
pub fn program(proc: &Path, pid: u32) -> String {
    let link = rustix::fs::readlink(proc.join(format!("{pid}/exe")), Vec::new());
    let path = link.map(|link| link.into_bytes()).unwrap_or_default();
    // Appended by the kernel (d_path, fs/d_path.c).
    file_name(path.strip_suffix(b" (deleted)").unwrap_or(&path))
}

/// The process that the thread `id` belongs to; itself, if it is one.
pub fn process_of(proc: &Path, id: u32) -> Option<u32> {
    let status = start(&proc.join(format!("{id}/status")));
    let mut lines = status.split(|byte| *byte == b'\n');
    let group = lines.find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(group).ok()?.trim().parse().ok()
}

/// The first [`MAX_ARGUMENTS`] bytes of a file of /proc, empty if it cannot be read.
fn start(file: &Path) -> Vec<u8> {
    // Capacity for a usual file: these files do not report their length, and growing the buffer
    // takes eight reads.
    let mut bytes = Vec::with_capacity(USUAL);
    if let Ok(file) = File::open(file) {
        // What was read before an error is kept, as the beginning of the file.
        let _ = file.take(MAX_ARGUMENTS).read_to_end(&mut bytes);
    }
    bytes
}

fn arguments(dir: &Path) -> Vec<Vec<u8>> {
    let bytes = start(&dir.join("cmdline"));
    // A program that writes its state there may leave the rest of the space empty.
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let arguments = bytes[..end].split(|byte| *byte == 0);
    arguments.map(<[u8]>::to_vec).filter(|_| end > 0).collect()
}

/// The command line; if it is too long its two ends, with `kept` between them.
fn command(arguments: &[Vec<u8>], kept: Option<&str>) -> String {
    let whole = text(&arguments.join(&b' '));
    if whole.len() <= MAX_COMMAND {
        return whole;
    }
    let cut = match kept {
        Some(kept) => format!("{CUT} {kept} {CUT}"),
        None => CUT.to_owned(),
    };
    let half = (MAX_COMMAND - cut.len()) / 2;
    let mut start = whole.len() - half;
    while !whole.is_char_boundary(start) {
        start += 1;
    }
    format!("{}{cut}{}", head(&whole, half), &whole[start..])
}

fn file_name(path: &[u8]) -> String {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    head(&text(name), MAX_NAME).to_owned()
}

/// Line breaks and similar characters separate words, as spaces do.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.replace(|c: char| c.is_ascii_control() && c.is_whitespace(), " ")
}

/// At most `most` bytes of `text`, whole characters.
fn head(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is read of a process with this command line and executable.
    fn of(comm: &[u8], cmdline: &[u8], exe: &str) -> Process {
        let proc = tempfile::tempdir().unwrap();
        let dir = proc.path().join("7");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("comm"), comm).unwrap();
        fs::write(dir.join("cmdline"), cmdline).unwrap();
        if !exe.is_empty() {
            symlink(exe, dir.join("exe")).unwrap();
        }
        read(proc.path(), 7)
    }

    #[test]
    fn interpreters_scripts_and_options() {
        for (cmdline, exe, program, script, command) in [
            (
                "node\0--inspect\0/srv/node_modules/.bin/vite\0--host\0",
                "/usr/bin/node",
                "node",
                "vite",
                "node --inspect /srv/node_modules/.bin/vite --host",
            ),
            (
                "python3\0-m\0http.server\x005000\0",
                "/usr/bin/python3.13",
                "python3.13",
                "http.server",
                "python3 -m http.server 5000",
            ),
            ("./web\0", "/srv/web (deleted)", "web", "", "./web"),
            // As setproctitle(3) of the BSDs leaves it.
            (
                "nginx: master process nginx\0\0\0\0",
                "/usr/sbin/nginx",
                "nginx",
                "",
                "nginx: master process nginx",
            ),
            (
                "sh\0-c\0a\nb\tc\0",
                "/bin/dash",
                "dash",
                "a b c",
                "sh -c a b c",
            ),
            // A kernel thread.
            ("", "", "", "", ""),
        ] {
            let read = of(b"comm\n", cmdline.as_bytes(), exe);
            let found = (&*read.name, &*read.program, &*read.script, &*read.command);
            assert_eq!(found, ("comm", program, script, command));
        }
    }

    #[test]
    fn texts_are_bounded_and_keep_both_ends() {
        let class_path = "ü".repeat(5000);
        let cmdline = format!("java\0-cp\0{class_path}\0com.example.Main\0");
        let exe = format!("/{}", "x".repeat(200));
        let read = of(&[0xff; 200], cmdline.as_bytes(), &exe);
        assert!(read.command.starts_with("java -cp ü"));
        assert!(read.command.ends_with(" com.example.Main") && read.command.contains(CUT));
        assert!(read.command.len() <= MAX_COMMAND && read.command.len() > MAX_COMMAND - 8);
        for text in [&read.name, &read.program, &read.script] {
            assert!((MAX_NAME - 3..=MAX_NAME).contains(&text.len()), "{text}");
        }
        let endless = vec![b'x'; 2 * MAX_ARGUMENTS as usize];
        assert!(of(b"", &endless, "").command.len() <= MAX_COMMAND);
    }

    #[test]
    fn a_monitor_is_told_by_its_container() {
        // As podman 4.3 starts it, shortened at both ends.
        let id = "292a562e143b00afa21658e3bd64259a1491a2afb4e32b7aefa0ade78c0fac6a";
        let begin = format!("/usr/bin/conmon\0--api-version\x001\0-c\0{id}\0-u\0{id}\0");
        let end = format!("--exit-command-arg\0cleanup\0--exit-command-arg\0{id}\0");
        let cmdline = format!("{begin}-r\0/usr/bin/crun\0-n\0web\0--full-attach\0{end}");
        let monitor = of(b"conmon\n", cmdline.as_bytes(), "/usr/bin/conmon");
        assert_eq!(monitor.script, "web");
        let command = &monitor.command;
        assert!(command.starts_with("/usr/bin/conmon --api-version 1 -c 292a"));
        assert!(
            command.contains("… -n web …") && command.ends_with(id),
            "{command}"
        );
        assert!(command.len() <= MAX_COMMAND);
        let long = format!("{begin}-n\0{}\0{end}", "ü".repeat(5000));
        let monitor = of(b"conmon\n", long.as_bytes(), "/usr/bin/conmon");
        assert_eq!(monitor.script, "ü".repeat(MAX_NAME / 2));
        assert!(monitor.command.len() <= MAX_COMMAND);
        // Without it, and of another program, nothing is special.
        for (cmdline, exe, script) in [
            ("conmon\0--version\0x\0-n\0", "/usr/bin/conmon", "x"),
            ("echo\0hello\0-n\0web\0", "/usr/bin/echo", "hello"),
        ] {
            assert_eq!(of(b"comm\n", cmdline.as_bytes(), exe).script, script);
        }
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let own = std::process::id();
        let (tx, rx) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                tx.send(process_of(Path::new("/proc"), id as u32)).unwrap();
            });
        });
        assert_eq!(rx.recv().unwrap(), Some(own));
        assert_eq!(process_of(Path::new("/proc"), own), Some(own));
        assert_eq!(process_of(Path::new("/proc"), u32::MAX), None);
    }
}
