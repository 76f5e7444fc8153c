//! A socket is handed over to a host that has no descriptor left. The limit is the process's, so
//! this is the only test in it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rum_shared::bytes::handover::{receive, send};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream, UnixStream};

fn open() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fn fill() -> Vec<OwnedFd> {
    let copy = || rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0).ok();
    std::iter::from_fn(copy).collect()
}

#[tokio::test]
async fn a_full_table_is_no_broken_promise() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(64),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("below the hard limit");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let client = TcpStream::connect(address).await.expect("a listener");
    let (agent, host) = UnixStream::pair().expect("descriptors");
    let before = open();
    for _ in 0..3 {
        send(&agent, 7, client.as_fd()).await.expect("a peer");
        let full = fill();
        let error = receive(&host, None).await.expect_err("no room");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE), "{error}");
        drop(full);
        assert_eq!(open(), before, "nothing is left of it");
        // The stream is as good as before.
        send(&agent, 8, client.as_fd()).await.expect("a peer");
        let (byte, socket) = receive(&host, None).await.expect("room");
        assert_eq!(byte, 8);
        assert!(socket.is_some());
        drop(socket);
    }
    drop(agent);
    let error = receive(&host, None).await.expect_err("the end");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
