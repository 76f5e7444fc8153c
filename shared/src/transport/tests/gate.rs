//! What holds back while the guest may be away.

use std::path::PathBuf;

use super::*;

/// A device that lets the test play it: the host's end, behind `transport`, and the device's.
async fn gated(
    transport: &Transport,
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
    let (host, device) = tokio::join!(transport.dial(service), serve);
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
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = transport.gate.clone();
    let mut knocks = transport.knocks();
    assert!(knocks.listen());
    let (mut rpc, mut rpc_device) = gated(&transport, &device, Service::Rpc).await;
    let (mut channel, mut channel_device) = gated(&transport, &device, Service::Channel).await;

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
    let mut next = Box::pin(knocks.ready());
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
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = &transport.gate;
    let mut dial = Box::pin(transport.dial(Service::Channel));
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
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = &transport.gate;
    let (mut host, _device) = gated(&transport, &device, Service::Rpc).await;
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
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = &transport.gate;
    let (mut host, _device) = gated(&transport, &device, Service::Rpc).await;
    gate.heard();
    tokio::time::pause();
    tokio::time::advance(SILENCE * 2).await;
    gate.guard(false);
    host.write_all(b"x").await.unwrap();
    gate.guard(true);
    let mut write = Box::pin(host.write_all(b"x"));
    assert!(futures_poll(write.as_mut()).await.is_pending());
}

#[tokio::test]
async fn an_agent_that_should_have_been_heard_is_not_dialled() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = &transport.gate;
    tokio::time::pause();
    let asked = async || {
        let mut dial = Box::pin(transport.dial(Service::Channel));
        assert!(futures_poll(dial.as_mut()).await.is_pending());
        (dial, rustix::net::accept(&device).is_ok())
    };
    assert!(asked().await.1, "nothing was heard yet");
    gate.heard();
    tokio::time::advance(SILENCE).await;
    assert!(asked().await.1);
    tokio::time::advance(Duration::from_millis(1)).await;
    let (mut waits, was_asked) = asked().await;
    assert!(!was_asked);
    // The next sign of life lets it go on.
    gate.heard();
    assert!(futures_poll(waits.as_mut()).await.is_pending());
    assert!(rustix::net::accept(&device).is_ok());
    tokio::time::advance(SILENCE * 2).await;
    gate.guard(false);
    assert!(asked().await.1, "its silence means nothing");
}

#[tokio::test(start_paused = true)]
async fn what_can_wait_is_sent_right_after_a_sign_of_life() {
    let socket = PathBuf::from("v.sock");
    let transport = Transport::from(Endpoint::Connect { socket });
    let gate = &transport.gate;
    let second = Duration::from_secs(1);
    // Nothing was heard yet: nothing is waited for.
    transport.ready().await;
    let start = tokio::time::Instant::now();
    transport.pause(second).await;
    assert_eq!(start.elapsed(), second);

    gate.heard();
    transport.ready().await;
    tokio::time::advance(Duration::from_millis(101)).await;
    let mut ready = Box::pin(transport.ready());
    let mut pause = Box::pin(transport.pause(second));
    assert!(futures_poll(ready.as_mut()).await.is_pending());
    assert!(futures_poll(pause.as_mut()).await.is_pending());
    gate.heard();
    assert!(futures_poll(ready.as_mut()).await.is_ready());
    // Another sign so soon after the last poll is no reason for the next.
    assert!(futures_poll(pause.as_mut()).await.is_pending());
    tokio::time::advance(second * 10).await;
    assert!(futures_poll(pause.as_mut()).await.is_pending());
    gate.heard();
    assert!(futures_poll(pause.as_mut()).await.is_ready());
    gate.guard(false);
    tokio::time::advance(second).await;
    assert!(futures_poll(pin!(transport.ready())).await.is_ready());
}

#[tokio::test(start_paused = true)]
async fn many_channels_that_wait_for_an_answer_leave_room_for_the_rpc() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let transport = Transport::from(Endpoint::Connect { socket });
    let asked = async || {
        let mut stream = device.accept().await.unwrap().0;
        let mut word = [0; "CONNECT 2223\n".len()];
        stream.read_exact(&mut word).await.unwrap();
        (stream, String::from_utf8_lossy(&word).into_owned())
    };
    let mut dials: Vec<_> = (0..100)
        .map(|_| Box::pin(transport.dial(Service::Channel)))
        .collect();
    for dial in &mut dials {
        assert!(futures_poll(dial.as_mut()).await.is_pending());
    }
    let mut rpc = Box::pin(transport.dial(Service::Rpc));
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
