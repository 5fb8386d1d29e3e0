//! What happens to a chunk that is being sent while other tasks close, ping or abort.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::*;
use crate::writer::testing::{context, writers};

const CHUNK: Bytes = Bytes::from_static(b"a chunk ");

async fn one() -> (Arc<ConnectionWriter>, TcpStream) {
    let context = Arc::new(context(&Arc::default(), 1 << 30));
    let (mut writers, mut clients) = writers(&context, 1).await;
    (writers.remove(0), clients.remove(0))
}

/// Reserves a socket, calls `meanwhile`, completes the send with `written` bytes, and returns what the client gets.
async fn send_while(
    written: usize,
    meanwhile: impl FnOnce(&Arc<ConnectionWriter>),
) -> (SendOutcome, Vec<u8>) {
    let (writer, mut client) = one().await;
    assert_eq!(writer.reserve(&CHUNK), Reservation::Reserved);
    assert_eq!(
        writer.reserve(&CHUNK),
        Reservation::Done(SendOutcome::Queued),
        "behind the first"
    );
    meanwhile(&writer);
    let result = match written {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        written => writer.send_syscall(&CHUNK.slice(..written)),
    };
    let sent = writer.complete(&CHUNK, result);
    // A flusher, if there is one, keeps it alive until it is done.
    drop(writer);
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got).await;
    (sent, got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_follows_the_chunk_being_sent_and_replaces_the_queued_ones() {
    let close = frame::close(CloseCode::SlowConsumer, "why");
    let closing = |queued| {
        move |writer: &Arc<ConnectionWriter>| {
            assert!(writer.close(CloseCode::SlowConsumer, "why", queued));
        }
    };
    for (written, queued, chunks) in [
        (0, BacklogPolicy::Discard, 0),
        (3, BacklogPolicy::Discard, 1),
        (CHUNK.len(), BacklogPolicy::Discard, 1),
        (0, BacklogPolicy::Deliver, 2),
        (3, BacklogPolicy::Deliver, 2),
    ] {
        let (sent, got) = send_while(written, closing(queued)).await;
        let expected = [&CHUNK.repeat(chunks), &close[..]].concat();
        assert_eq!(got, expected, "{written} bytes were written");
        assert_eq!(sent == SendOutcome::Closed, chunks == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pong_follows_the_chunk_being_sent_and_precedes_the_queued_ones() {
    for written in [3, CHUNK.len()] {
        let (_, got) = send_while(written, |writer| {
            writer.pong(b"older");
            writer.pong(b"newer");
        })
        .await;
        assert_eq!(got, [&CHUNK[..], &frame::pong(b"newer"), &CHUNK].concat());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_more_is_sent_on_a_socket_that_was_aborted_meanwhile() {
    for give_up in [ConnectionWriter::peer_gone, ConnectionWriter::abort] {
        for written in [0, 3] {
            let (sent, got) = send_while(written, |writer| give_up(writer)).await;
            assert_eq!((sent, &got[..]), (SendOutcome::Closed, &b""[..]));
        }
    }
}

/// An idle connection's ping is sent at once, and the next one only after something was received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_ping_is_sent_only_after_something_was_received() {
    let (writer, mut client) = one().await;
    let ask = || {
        writer.state.lock().liveness = Liveness::requested_long_ago();
        writer.sweep(0);
    };
    ask();
    ask();
    writer.note_received();
    ask();
    writer.send_chunk(&CHUNK);
    drop(writer);
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, [frame::PING_BYTES, frame::PING_BYTES, &CHUNK].concat());
}
