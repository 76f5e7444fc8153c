//! Two sockets of this kernel, with nothing between them but the relay.

use super::*;

/// Two connections with a direct relay between them: the client's end, the guest program's, and the relay.
async fn direct() -> (TcpStream, TcpStream, AbortOnDropHandle<Outcome>) {
    let (client, near) = connected().await;
    let (far, program) = connected().await;
    prepare(&near);
    let relay = async move {
        let run = |turn: Arc<Turn>| async move {
            let (counters, cut) = (Counters::default(), CancellationToken::new());
            relay_direct(near, far, &counters, &turn, &cut).await
        };
        Bulk::default().run(run).await
    };
    (client, program, AbortOnDropHandle::new(tokio::spawn(relay)))
}

/// More than the sockets hold, so that reads find full buffers and pipes are used.
const BULK: usize = 32 * MEGA;

#[tokio::test]
async fn bulk_arrives_both_ways_and_ends_on_each() {
    let (mut client, mut program, relay) = direct().await;
    let (mut client_in, mut client_out) = client.split();
    let (mut program_in, mut program_out) = program.split();
    tokio::join!(
        send(&mut client_out, BULK),
        send(&mut program_out, BULK),
        check(&mut program_in, BULK),
        check(&mut client_in, BULK),
    );
    assert_eq!(relay.await.unwrap(), Outcome::Finished);
}

#[tokio::test]
async fn urgent_data_in_bulk_stops_nothing() {
    let (mut client, mut program, _relay) = direct().await;
    let pattern: Vec<u8> = (0..BULK).map(|n| (n % 251) as u8).collect();
    let (first, second) = pattern.split_at(BULK / 2);
    let sending = async {
        client.write_all(first).await.unwrap();
        // Not in the stream, but in its way. Only one: a second makes the first a byte like others.
        let urgent = || Ok(rustix::net::send(&client, b"!", SendFlags::OOB)?);
        client.async_io(Interest::WRITABLE, urgent).await.unwrap();
        client.write_all(second).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let checking = check(&mut program, BULK);
    tokio::time::timeout(PATIENCE, async { tokio::join!(sending, checking) })
        .await
        .unwrap();
}

/// Framed or not: a read ends before the urgent byte, and nothing else tells that there is more.
#[tokio::test]
async fn what_follows_urgent_data_need_not_wait_for_more() {
    let (client, program, _relay) = direct().await;
    let (asks, answers) = Rig::two().await;
    for (from, mut to) in [(&client, program), (&asks.tcp, answers.tcp)] {
        // The relay does not run before all of it is there.
        from.try_write(b"abc").unwrap();
        rustix::net::send(from, b"!", SendFlags::OOB).unwrap();
        from.try_write(b"def").unwrap();
        let mut read = [0; 6];
        let reading = tokio::time::timeout(PATIENCE, to.read_exact(&mut read));
        reading.await.unwrap().unwrap();
        assert_eq!(&read, b"abcdef");
    }
}

#[tokio::test]
async fn a_reset_amid_bulk_is_a_reset_on_the_other_side() {
    for client_resets in [true, false] {
        let (client, program, relay) = direct().await;
        let (mut sender, mut reader) = if client_resets {
            (client, program)
        } else {
            (program, client)
        };
        let mut half = vec![0; BULK / 2];
        let sending = async {
            loop {
                sender.write_all(&[0; 4096]).await.unwrap();
            }
        };
        tokio::select! {
            () = sending => {}
            read = reader.read_exact(&mut half) => drop(read.unwrap()),
        }
        reset(sender);
        // What was under way is delivered first.
        read_to_reset(&mut reader).await;
        let outcome = if client_resets {
            Outcome::TcpReset
        } else {
            Outcome::ChannelReset
        };
        assert_eq!(relay.await.unwrap(), outcome);
    }
}

/// The kernel tells an error of a socket once: whoever reads after a write that was told sees an end.
#[tokio::test]
async fn a_reset_that_a_write_is_told_of_is_no_end() {
    let (mut client, guest, relay) = direct().await;
    push(&mut client).await;
    reset(guest);
    assert_eq!(read_to_reset(&mut client).await, b"");
    assert_eq!(relay.await.unwrap(), Outcome::ChannelReset);
}

#[tokio::test]
async fn a_reset_is_seen_while_nobody_reads() {
    for client_resets in [true, false] {
        let (client, program, relay) = direct().await;
        let (mut sender, mut reader, outcome) = if client_resets {
            (client, program, Outcome::TcpReset)
        } else {
            (program, client, Outcome::ChannelReset)
        };
        push(&mut sender).await;
        reset(sender);
        let ended = tokio::time::timeout(PATIENCE, relay).await;
        assert_eq!(ended.expect("it is not seen").unwrap(), outcome);
        assert!(!read_to_reset(&mut reader).await.is_empty());
    }
}
