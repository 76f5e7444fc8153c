#![allow(clippy::unwrap_used)]
use super::*;
use roam::Link as _;
use tokio::io::{DuplexStream, duplex};
use tokio::time::Instant;

/// More than any test here sends.
const BYTES: u64 = 1 << 30;
const LIMIT: usize = 1 << 20;

/// A receiver and the other end of its stream.
fn receiver(limit: usize) -> (Receiver<DuplexStream>, DuplexStream) {
    let (far, near) = duplex(1 << 16);
    let (link, _) = pair(near, tokio::io::sink(), limit, Arc::new(Usage::new(BYTES)));
    (link.split().1, far)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes(), payload].concat()
}

async fn next(receiver: &mut Receiver<DuplexStream>) -> Result<Option<Vec<u8>>, LinkError> {
    Ok(receiver.recv().await?.map(|b| b.as_bytes().to_vec()))
}

#[tokio::test]
async fn a_receive_cancelled_at_every_byte_loses_nothing() {
    let (mut receiver, mut far) = receiver(LIMIT);
    let expected = [&b"one"[..], b"", &[7; 5000]];
    let mut got = vec![];
    for byte in expected.map(frame).concat() {
        // Polled once and dropped between any two bytes.
        let mut poll = Box::pin(next(&mut receiver));
        std::future::poll_fn(|cx| {
            if let std::task::Poll::Ready(frame) = poll.as_mut().poll(cx) {
                got.push(frame.unwrap().unwrap());
            }
            std::task::Poll::Ready(())
        })
        .await;
        drop(poll);
        far.write_all(&[byte]).await.unwrap();
    }
    got.push(next(&mut receiver).await.unwrap().unwrap());
    assert_eq!(got, expected);
    drop(far);
    assert_eq!(next(&mut receiver).await.unwrap(), None);
}

#[tokio::test]
async fn a_claimed_length_allocates_nothing() {
    let (mut receiver, mut far) = receiver(LIMIT);
    far.write_all(&(LIMIT as u32).to_le_bytes()).await.unwrap();
    far.write_all(&[0; 100]).await.unwrap();
    drop(far);
    assert!(matches!(next(&mut receiver).await, Err(LinkError::Cut)));
    assert!(receiver.buffer.capacity() <= 4 * READ);
}

#[tokio::test]
async fn lengths_have_a_limit() {
    let (mut receiver, mut far) = receiver(10);
    far.write_all(&frame(&[1; 10])).await.unwrap();
    far.write_all(&frame(&[1; 11])).await.unwrap();
    assert_eq!(next(&mut receiver).await.unwrap().unwrap(), [1; 10]);
    let error = next(&mut receiver).await.unwrap_err().to_string();
    assert_eq!(error, "a frame of 11 bytes, more than 10");
}

#[tokio::test]
async fn the_memory_of_a_large_frame_is_given_back() {
    let (mut receiver, mut far) = receiver(LIMIT);
    let large = frame(&vec![1; LIMIT]);
    let (sent, got) = tokio::join!(far.write_all(&large), next(&mut receiver));
    sent.unwrap();
    assert_eq!(got.unwrap().unwrap().len(), LIMIT);
    far.write_all(&frame(b"x")).await.unwrap();
    next(&mut receiver).await.unwrap();
    assert!(receiver.buffer.capacity() <= 4 * READ);
}

#[tokio::test]
async fn a_session_receives_a_bounded_number_of_frames() {
    let (mut receiver, mut far) = receiver(LIMIT);
    let usage = receiver.usage.clone();
    let flood = async move {
        let batch = frame(b"").repeat(1024);
        while far.write_all(&batch).await.is_ok() {}
    };
    let count = async {
        for n in 0..MAX_SESSION_FRAMES {
            assert_eq!(usage.is_worn(), n > MAX_SESSION_FRAMES / 2);
            next(&mut receiver).await.unwrap();
        }
        assert!(matches!(next(&mut receiver).await, Err(LinkError::Spent)));
        drop(receiver);
    };
    tokio::join!(flood, count);
}

#[tokio::test]
async fn a_session_receives_a_bounded_number_of_bytes() {
    let usage = Arc::new(Usage::new(100));
    let (near, mut far) = duplex(4 * LIMIT);
    let (link, _) = pair(near, tokio::io::sink(), LIMIT, usage.clone());
    let mut receiver = link.split().1;
    far.write_all(&frame(&[1; 20]).repeat(5)).await.unwrap();
    for worn in [false, false, true, true] {
        next(&mut receiver).await.unwrap();
        assert_eq!(usage.is_worn(), worn);
    }
    assert!(matches!(next(&mut receiver).await, Err(LinkError::Spent)));
}

#[tokio::test]
async fn frames_arrive_as_they_were_sent() {
    let (near, far) = duplex(64);
    let (link, writer) = pair(tokio::io::empty(), near, LIMIT, Arc::new(Usage::new(BYTES)));
    let (sender, _) = link.split();
    let (link, _) = pair(far, tokio::io::sink(), LIMIT, Arc::new(Usage::new(BYTES)));
    let mut receiver = link.split().1;
    let send = async move {
        for n in 0..200 {
            let mut slot = sender.reserve().await.unwrap().alloc(n).unwrap();
            slot.as_mut_slice().fill(n as u8);
            slot.commit();
        }
    };
    let check = async {
        for n in 0..200 {
            assert_eq!(
                next(&mut receiver).await.unwrap().unwrap(),
                vec![n as u8; n]
            );
        }
        assert_eq!(next(&mut receiver).await.unwrap(), None);
    };
    let (written, (), ()) = tokio::join!(writer.run(), send, check);
    written.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_ends_the_writer() {
    let (near, _far) = duplex(64);
    let (link, writer) = pair(tokio::io::empty(), near, LIMIT, Arc::new(Usage::new(BYTES)));
    let (sender, _) = link.split();
    let stuck = async {
        for _ in 0..2 {
            sender.reserve().await.unwrap().alloc(100).unwrap().commit();
        }
        assert!(sender.reserve().await.is_err());
    };
    let start = Instant::now();
    let (written, ()) = tokio::join!(writer.run(), stuck);
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(start.elapsed(), WRITE_STALL);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_now_and_then_keeps_the_writer() {
    let (near, mut far) = duplex(1);
    let (link, writer) = pair(tokio::io::empty(), near, LIMIT, Arc::new(Usage::new(BYTES)));
    let (sender, _) = link.split();
    let mut slot = sender.reserve().await.unwrap().alloc(8).unwrap();
    slot.as_mut_slice().fill(7);
    slot.commit();
    drop(sender);
    let slow = async {
        for _ in 0..LENGTH + 8 {
            tokio::time::sleep(WRITE_STALL - Duration::from_millis(1)).await;
            far.read_u8().await.unwrap();
        }
    };
    let (written, ()) = tokio::join!(writer.run(), slow);
    written.unwrap();
}
