//! Where a server listens, and where its clients find it.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};

use rum_tests::client::{dial, host};
use rum_tests::netns;
use rum_tests::wait::until;

/// A port, and the network namespace that it is in.
pub struct Place<'a> {
    namespace: Option<&'a File>,
    at: SocketAddr,
}

impl<'a> Place<'a> {
    /// A port of this namespace.
    pub fn here(port: u16) -> Self {
        let (namespace, at) = (None, host(port));
        Self { namespace, at }
    }

    /// A port of `namespace`, which clients reach at the same port of this one.
    pub fn inside(namespace: &'a File, port: u16) -> Self {
        let (namespace, at) = (Some(namespace), host(port));
        Self { namespace, at }
    }

    /// Listens there; accepting does not wait.
    pub fn listen(&self) -> TcpListener {
        let listen = || {
            let listener = TcpListener::bind(self.at).expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            listener
        };
        match self.namespace {
            Some(namespace) => netns::inside(namespace, listen),
            None => listen(),
        }
    }

    /// A client.
    pub fn dial(&self) -> TcpStream {
        dial(self.at).expect("it accepts")
    }

    /// The first client that is accepted again.
    pub fn dial_again(&self) -> TcpStream {
        until("a listener", || dial(self.at).ok())
    }

    /// How a client fails, once one does.
    pub fn until_closed(&self) -> String {
        until("the listener to be gone", || {
            let error = dial(self.at).err()?;
            Some(format!("{:?}", error.kind()))
        })
    }
}
