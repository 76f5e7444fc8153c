//! What holds back while the guest may be away.

use super::*;

/// A device that lets the test play it: the host's end, behind `endpoint`, and the device's.
async fn gated(
    endpoint: &Endpoint,
    device: &UnixListener,
    service: Service,
) -> (Stream, UnixStream) {
    let serve = async {
        let mut stream = device.accept().await.unwrap().0;
        let request = format!("CONNECT {}\n", service.port());
        let mut read = vec![0; request.len()];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, request.as_bytes());
        stream.write_all(b"OK 1\n").await.unwrap();
        stream
    };
    let (host, device) = tokio::join!(endpoint.dial(service), serve);
    (host.unwrap(), device)
}

/// Whether nothing has come, neither a byte nor the end.
fn nothing_came(stream: &UnixStream) -> bool {
    let tried = rustix::io::read(stream, &mut [0; 1]);
    tried == Err(rustix::io::Errno::AGAIN)
}

#[tokio::test]
async fn nothing_moves_while_the_guest_may_be_away() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let endpoint = Endpoint::connect(&socket);
    let gate = endpoint.gate().unwrap().clone();
    let mut knocks = endpoint.knocks().unwrap();
    assert!(knocks.listen());
    let (mut rpc, mut rpc_device) = gated(&endpoint, &device, Service::Rpc).await;
    let (mut channel, mut channel_device) = gated(&endpoint, &device, Service::Channel).await;

    // Bytes of the RPC open it, for a while.
    rpc_device.write_all(b"x").await.unwrap();
    rpc.read_exact(&mut [0]).await.unwrap();
    channel.write_all(b"y").await.unwrap();
    channel_device.read_exact(&mut [0]).await.unwrap();

    tokio::time::pause();
    tokio::time::advance(SILENCE + Duration::from_millis(1)).await;
    let mut write = Box::pin(channel.write_all(b"z"));
    assert!(futures_poll(write.as_mut()).await.is_pending());
    // What arrives on a channel may be old.
    channel_device.write_all(b"old").await.unwrap();
    drop(rpc);
    assert_eq!(gate.parked(), 1);
    assert!(nothing_came(&rpc_device) && nothing_came(&channel_device));
    let mut next = Box::pin(knocks.next());
    assert!(futures_poll(next.as_mut()).await.is_pending());

    // A heartbeat on the session that the agent takes for one.
    tokio::time::resume();
    rpc_device.write_all(b"x").await.unwrap();
    tokio::time::timeout(PATIENCE, next).await.unwrap();
    tokio::time::timeout(PATIENCE, write)
        .await
        .unwrap()
        .unwrap();
    channel_device.read_exact(&mut [0]).await.unwrap();
    assert_eq!(rpc_device.read(&mut [0]).await.unwrap(), 0, "closed now");
    assert_eq!(gate.parked(), 0);
    channel.read_exact(&mut [0; 3]).await.unwrap();
    drop(channel);
    assert_eq!(
        channel_device.read(&mut [0]).await.unwrap(),
        0,
        "closed at once"
    );
}

#[tokio::test]
async fn a_dial_that_is_given_up_is_closed_only_when_it_was_answered() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let endpoint = Endpoint::connect(&socket);
    let gate = endpoint.gate().unwrap();
    let mut dial = Box::pin(endpoint.dial(Service::Channel));
    assert!(futures_poll(dial.as_mut()).await.is_pending());
    let mut asked = device.accept().await.unwrap().0;
    drop(dial);
    gate.heard();
    assert_eq!(gate.parked(), 1);
    asked.write_all(b"OK 1\n").await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while gate.parked() > 0 {
            gate.heard();
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_heartbeat_opens_the_gate_for_a_heartbeat_and_a_half() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let endpoint = Endpoint::connect(&socket);
    let gate = endpoint.gate().unwrap();
    let (mut host, _device) = gated(&endpoint, &device, Service::Rpc).await;
    tokio::time::pause();
    gate.heard();
    assert_eq!(SILENCE, Duration::from_millis(1500));
    tokio::time::advance(SILENCE).await;
    let mut write = Box::pin(host.write_all(b"x"));
    assert!(futures_poll(write.as_mut()).await.is_ready());
    drop(write);
    tokio::time::advance(Duration::from_millis(1)).await;
    let mut write = Box::pin(host.write_all(b"x"));
    assert!(futures_poll(write.as_mut()).await.is_pending());
}

#[tokio::test]
async fn without_heartbeats_silence_says_nothing() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let endpoint = Endpoint::connect(&socket);
    let gate = endpoint.gate().unwrap();
    let (mut host, _device) = gated(&endpoint, &device, Service::Rpc).await;
    gate.heard();
    tokio::time::pause();
    tokio::time::advance(SILENCE * 2).await;
    gate.guard(false);
    host.write_all(b"x").await.unwrap();
    gate.guard(true);
    let mut write = Box::pin(host.write_all(b"x"));
    assert!(futures_poll(write.as_mut()).await.is_pending());
}

#[tokio::test(start_paused = true)]
async fn many_channels_that_wait_for_an_answer_leave_room_for_the_rpc() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let endpoint = Endpoint::connect(&socket);
    let asked = async || {
        let mut stream = device.accept().await.unwrap().0;
        let mut word = [0; "CONNECT 2223\n".len()];
        stream.read_exact(&mut word).await.unwrap();
        (stream, String::from_utf8_lossy(&word).into_owned())
    };
    let mut dials: Vec<_> = (0..100)
        .map(|_| Box::pin(endpoint.dial(Service::Channel)))
        .collect();
    for dial in &mut dials {
        assert!(futures_poll(dial.as_mut()).await.is_pending());
    }
    let mut rpc = Box::pin(endpoint.dial(Service::Rpc));
    assert!(futures_poll(rpc.as_mut()).await.is_pending());
    let mut unanswered = vec![];
    let mut rpc_device = loop {
        let (stream, word) = asked().await;
        match word.as_str() {
            "CONNECT 2222\n" => break stream,
            _ => unanswered.push(stream),
        }
    };
    assert_eq!(unanswered.len(), 64);
    rpc_device.write_all(b"OK 1\n").await.unwrap();
    rpc.await.unwrap();
    // An answer lets the next one ask, and so does one that is given up.
    unanswered[0].write_all(b"OK 1\n").await.unwrap();
    dials.remove(0).await.unwrap();
    drop(dials.remove(0));
    for dial in &mut dials[62..64] {
        assert!(futures_poll(dial.as_mut()).await.is_pending());
        asked().await;
    }
}
