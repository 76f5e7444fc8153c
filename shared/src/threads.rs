//! Whether there can be more threads. tokio panics where it cannot start one (RLIMIT_NPROC, `pids.max` of
//! a cgroup, no memory), so whoever makes a runtime asks first.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

/// The stack of a thread of a runtime: std's default, which the environment can change (RUST_MIN_STACK).
pub const STACK: usize = 2 * 1024 * 1024;

/// Starts `count` threads at a time, which end at once, and waits until they no longer count.
///
/// # Errors
/// EAGAIN, as of pthread_create(3): that many cannot be had.
pub fn can_start(count: usize) -> io::Result<()> {
    let mut started = Vec::new();
    let mut all = Ok(());
    for _ in 0..count {
        let (go, wait) = mpsc::channel::<()>();
        let id = move || {
            let id = rustix::thread::gettid();
            // Until its other end is dropped, below.
            let _ = wait.recv();
            id
        };
        match thread::Builder::new().stack_size(STACK).spawn(id) {
            Ok(thread) => started.push((go, thread)),
            Err(error) => {
                all = Err(error);
                break;
            }
        }
    }
    for (go, thread) in started {
        drop(go);
        let Ok(id) = thread.join() else { continue };
        // The kernel has the one who joins go on a moment before it counts the thread as ended.
        let task = format!("/proc/self/task/{}", id.as_raw_nonzero());
        while Path::new(&task).exists() {
            thread::yield_now();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn they_can_be_had_and_have_ended() {
        let mine = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names =
                tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            names.filter(|name| name == "probe-of-test\n").count()
        };
        // Threads have the name of the one that starts them.
        rustix::thread::set_name(c"probe-of-test").unwrap();
        super::can_start(3).unwrap();
        assert_eq!(mine(), 1);
    }
}
