//! A stand-in for `rum` that knows guests only: what the tests of namespace guests drive.
//!
//! ```text
//! up NAME [CMD…]     hold a guest until standard input ends, the guest ends or CMD ends
//! exec NAME CMD…     run CMD in it
//! stop DIR           ask the `rum up` of the runtime directory DIR to end, alive or not
//! probe              say what things look like from where this runs
//! linger             leave a daemon behind that ignores every polite signal
//! ```
//! Its agent answers each RPC connection with its process id and arguments.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rum_host::commands::exec;
use rum_host::control::client::Control;
use rum_host::guest::process;
use rum_host::guest::{Guest, GuestKind, GuestSpec, Link};
use rum_host::runtime_dir::isolation::Isolation;
use rum_host::runtime_dir::{RunningGuest, RuntimeDir};

/// Long enough for anything that does end, short enough for a test of what does not.
const DEADLINE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if let Some(code) = process::dispatch_internal(agent) {
        return code;
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let result = match words.as_slice() {
        ["up", name, ..] => up(name, &args[2..]),
        ["exec", name, ..] => {
            let error = exec::exec(Some(name), Path::new(""), &args[2..]);
            eprintln!("error: {error}");
            Ok(ExitCode::from(process::EXIT_FAILED))
        }
        ["stop", dir] => stop(dir.into()),
        ["probe"] => probe(),
        ["linger"] => linger(),
        _ => Err("see the source for the arguments".into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn agent(args: Vec<OsString>) -> ExitCode {
    let args: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let fd = args
        .iter()
        .find_map(|arg| arg.strip_prefix("fd:")?.parse().ok());
    let Some(fd) = fd else {
        return ExitCode::FAILURE;
    };
    // SAFETY: inherited for this, and used by nobody else in this process.
    let listener = unsafe { UnixListener::from_raw_fd(fd) };
    for stream in listener.incoming().flatten() {
        let _ = writeln!(&stream, "{} {}", std::process::id(), args.join(" "));
    }
    ExitCode::SUCCESS
}

#[tokio::main]
async fn up(name: &str, command: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let dir = Arc::new(RuntimeDir::create(name)?);
    let spec = GuestSpec {
        name: name.to_owned(),
        kind: GuestKind::Namespace(Isolation::default()),
        reset: false,
    };
    let link = Link::unheard(vec!["--hint".to_owned(), "poll".to_owned()]);
    let mut guest = match Guest::start(&spec, &dir, &link).await {
        Ok(guest) => guest,
        Err(error) => {
            eprintln!("error: {error}");
            eprintln!("hint: {}", error.hint().unwrap_or_default());
            return Ok(ExitCode::from(process::EXIT_FAILED));
        }
    };
    if !command.is_empty() {
        let status = guest.spawn(command, Path::new(""))?.wait().await?;
        guest.stop(DEADLINE).await;
        return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(255))?));
    }
    println!("init {}", guest.init_pid().unwrap_or(0));
    // A thread, since it cannot be cancelled: main's return ends it.
    let (sender, stdin_ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    tokio::select! {
        end = guest.ended() => say(&end.reason),
        _ = stdin_ended => say(&format!("{:?}", guest.stop(DEADLINE).await)),
    }
    drop(dir);
    // Not through the runtime's end: the thread above may wait for ever.
    std::process::exit(0)
}

/// As println, but a test that does not listen any more is no reason to panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[tokio::main(flavor = "current_thread")]
async fn stop(path: PathBuf) -> Result<ExitCode, Box<dyn Error>> {
    let guest = RunningGuest {
        name: "it".to_owned(),
        path,
        rum: None,
        kind: None,
        init: None,
        isolation: Isolation::default(),
    };
    Control::connect(&guest).await?.stop(true).await?;
    Ok(ExitCode::SUCCESS)
}

fn probe() -> Result<ExitCode, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    for key in ["Uid", "Gid", "CapEff", "SigBlk"] {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let value = line.unwrap_or_default().trim_start_matches(':').trim();
        println!("{key} {}", value.split('\t').next().unwrap_or_default());
    }
    for pid in pids()? {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        println!("process {pid} {}", line.replace('\0', " ").trim());
    }
    for fd in fs::read_dir("/proc/self/fd")? {
        let path = fd?.path();
        if let Ok(target) = fs::read_link(&path) {
            println!("fd {} {}", path.display(), target.display());
        }
    }
    println!("cwd {}", std::env::current_dir()?.display());
    println!("guest {}", std::env::var("RUM_GUEST")?);
    let listener = TcpListener::bind("127.0.0.1:80")?;
    let _client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    println!("peer {}", server.peer_addr()?.ip());
    Ok(ExitCode::SUCCESS)
}

fn pids() -> std::io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

fn linger() -> Result<ExitCode, Box<dyn Error>> {
    Command::new("setsid")
        .args(["--fork", "sh", "-c"])
        .arg("trap '' HUP INT TERM; echo lingering; exec >/dev/null 2>&1; while :; do sleep 1000; done")
        .stdin(Stdio::null())
        .status()?;
    Ok(ExitCode::SUCCESS)
}
