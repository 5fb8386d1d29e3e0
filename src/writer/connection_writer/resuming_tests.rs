//! Replays: their order among live chunks and other frames, and what happens to those that are lost.

use std::cell::OnceCell;

use tokio::io::AsyncReadExt;

use super::*;
use crate::writer::testing::{context, writers};
use crate::writer::{BorrowedChunk, SendOutcome};

/// Frames of one byte: those at these positions are in the log.
struct Letters {
    next: u64,
    end: u64,
    is_lost: bool,
}

impl Replay for Letters {
    fn pull(&mut self, live_end: u64, push: &mut dyn FnMut(Bytes)) -> Pulled {
        let end = self.end.max(live_end);
        if self.is_lost {
            return Pulled::Lost;
        }
        if self.next >= end {
            return Pulled::CaughtUp;
        }
        push(Bytes::copy_from_slice(&[b'a' + self.next as u8]));
        self.next += 1;
        Pulled::More
    }

    fn position(&self) -> Option<u64> {
        Some(self.next)
    }
}

fn letters(next: u64, end: u64) -> Box<Letters> {
    Box::new(Letters {
        next,
        end,
        is_lost: false,
    })
}

/// A live chunk of the letters at these positions.
fn live(writer: &Arc<ConnectionWriter>, positions: std::ops::Range<u64>) -> SendOutcome {
    let copy = OnceCell::new();
    let bytes: Vec<_> = positions.clone().map(|at| b'a' + at as u8).collect();
    writer.send_chunk(&BorrowedChunk::new(&bytes, positions.end, &copy))
}

fn sent_up_to(writer: &Arc<ConnectionWriter>) -> SentUpTo {
    let mut seen = None;
    writer.send_stamped(|sent_up_to| {
        seen = Some(sent_up_to);
        Bytes::from_static(b"#")
    });
    seen.unwrap()
}

async fn starting(start: Start) -> (Arc<ConnectionWriter>, tokio::net::TcpStream) {
    let mut context = context(&Arc::default(), 1 << 30);
    context.queue.queue_bytes = 4;
    let (mut writers, mut clients) = writers(&Arc::new(context), 1).await;
    let (writer, client) = (writers.remove(0), clients.remove(0));
    writer.send_first(&Bytes::from_static(b"!"), start, 2, || {});
    (writer, client)
}

/// What the client gets before the connection's end.
async fn received(writer: Arc<ConnectionWriter>, mut client: tokio::net::TcpStream) -> String {
    drop(writer);
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_chunks_follow_the_replay() {
    let (writer, client) = starting(Start::Replay).await;
    assert_eq!(sent_up_to(&writer), SentUpTo::Unknown);
    assert_eq!(live(&writer, 2..3), SendOutcome::Queued);
    assert_eq!(live(&writer, 3..5), SendOutcome::Queued);
    assert_eq!(writer.backlog(), 0, "they do not wait in the queue");
    writer.replay(letters(0, 2));
    assert_eq!(sent_up_to(&writer), SentUpTo::Live(5));
    assert_eq!(live(&writer, 5..6), SendOutcome::Written);
    assert_eq!(sent_up_to(&writer), SentUpTo::Live(6));
    assert_eq!(received(writer, client).await, "!#abcde#f#");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_replay_counts_what_it_was_sent() {
    let (writer, client) = starting(Start::Live).await;
    assert_eq!(sent_up_to(&writer), SentUpTo::Live(2));
    writer.replay(letters(0, 2));
    live(&writer, 2..4);
    writer.send_chunk(&Bytes::from_static(b"?"));
    assert_eq!(sent_up_to(&writer), SentUpTo::Live(4));
    assert_eq!(received(writer, client).await, "!#cd?#");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_replay_is_lost_is_closed_as_too_slow() {
    let (writer, client) = starting(Start::Replay).await;
    writer.replay(Box::new(Letters {
        next: 0,
        end: 1,
        is_lost: true,
    }));
    assert!(!writer.is_open());
    assert_eq!(writer.close_code(), CloseCode::SlowConsumer.code());
    let got = received(writer, client).await;
    assert!(got.starts_with('!') && got.contains("too slow"), "{got}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_closes_replays_no_more() {
    let (writer, client) = starting(Start::Replay).await;
    live(&writer, 2..3);
    writer.close_for_drain();
    writer.replay(letters(0, 2));
    let got = received(writer, client).await;
    assert!(
        got.starts_with('!') && !got.contains("ab") && !got.contains('c'),
        "{got}"
    );
}
