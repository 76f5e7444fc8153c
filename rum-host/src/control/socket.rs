//! A Unix socket of `rum up` in its runtime directory, which can be recreated if it is removed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rum_shared::transport::{Acceptor, ListenAddr, Stream};

/// See the module.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// The file that was created at the path.
    place: Option<Place>,
    acceptor: Acceptor,
}

/// The file at a path: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u64, u64);

impl Place {
    fn of(path: &Path) -> Option<Self> {
        let meta = path.symlink_metadata().ok()?;
        Some(Self(meta.dev(), meta.ino()))
    }
}

impl Socket {
    /// Binds the socket at `path`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse if another live socket is there.
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        let acceptor = ListenAddr::Unix(path.clone()).bind()?;
        Ok(Self {
            place: Place::of(&path),
            path,
            acceptor,
        })
    }

    /// The next client. Cancel-safe.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&mut self) -> io::Result<Stream> {
        self.acceptor.accept().await.map(|(stream, _)| stream)
    }

    /// Whether the path still leads to this socket.
    pub fn is_there(&self) -> bool {
        self.place.is_some() && Place::of(&self.path) == self.place
    }

    /// Recreates the socket, and removes whatever is at its path: the socket of a dead process, or
    /// another file. The owner of the directory's lock may do so.
    ///
    /// # Errors
    /// As bind(2).
    pub fn make_anew(&mut self) -> io::Result<()> {
        let _ = std::fs::remove_file(&self.path);
        self.acceptor = ListenAddr::Unix(self.path.clone()).bind()?;
        self.place = Place::of(&self.path);
        Ok(())
    }
}
