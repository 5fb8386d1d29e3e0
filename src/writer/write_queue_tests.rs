use proptest::prelude::*;

use super::*;

const LARGE: usize = 1 << 30;

fn limits(queue_bytes: usize, send_timeout: Duration) -> QueueLimits {
    QueueLimits::new(queue_bytes, send_timeout, SendMemory::new(LARGE))
}

/// What would be written if the socket took it all.
fn waiting(queue: &WriteQueue) -> Vec<u8> {
    let mut waiting = Vec::new();
    let _ = queue.write_to(|slices| {
        slices.iter().for_each(|slice| waiting.extend_from_slice(slice));
        Ok(0)
    });
    waiting
}

#[test]
fn a_draining_reader_may_overdraw_but_a_stalled_one_may_not() {
    let chunk = Bytes::from(vec![0; 60]);
    let patient = limits(100, Duration::from_secs(10));
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(chunk.clone(), 0);
    for _ in 0..10 {
        assert!(queue.try_push(&chunk, &patient));
    }
    assert_eq!(queue.overdrawn, 11 * 60 - 100);
    queue.advance(600, &patient);
    assert_eq!(queue.overdrawn, 0);
    queue.progress_at = clock::now_ms().wrapping_sub(2_000);
    assert!(
        !queue.try_push(&chunk, &patient),
        "nothing has been written for two seconds"
    );
    // Over the limit for longer than the timeout, draining or not: no more.
    let strict = limits(100, Duration::ZERO);
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(chunk.clone(), 30);
    assert!(queue.try_push(&chunk, &strict));
    assert!(queue.try_push(&chunk, &strict));
    assert!(!queue.try_push(&chunk, &strict));
    queue.clear(&strict);
    assert_eq!(strict.memory.used(), 0);
}

#[test]
fn an_overdraft_has_bounds() {
    let limits = limits(100, Duration::from_secs(10));
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(chunk.clone(), 0);
    while queue.try_push(&chunk, &limits) {}
    assert!(queue.overdrawn <= MAX_OVERDRAFT && queue.overdrawn > MAX_OVERDRAFT / 2);
}

/// Above the limit of all queues together, no queue may overdraw; far above it, only small queues grow, and at twice
/// the limit none.
#[test]
fn all_queues_together_have_a_limit() {
    const LIMIT: usize = 1 << 20;
    let memory = SendMemory::new(LIMIT);
    let limits = QueueLimits::new(LIMIT / 2, Duration::from_secs(10), Arc::clone(&memory));
    let chunk = Bytes::from(vec![0; LIMIT / 4]);
    let little = Bytes::from_static(b"little");
    let (mut queue, mut small) = (WriteQueue::default(), WriteQueue::default());
    assert!(queue.try_push(&chunk, &limits) && small.try_push(&little, &limits));
    let elsewhere = memory.count(Bytes::from(vec![0; LIMIT]));
    assert!(memory.is_exceeded());
    assert!(
        !queue.try_push(&Bytes::from(vec![0; LIMIT / 2]), &limits),
        "it would overdraw"
    );
    assert!(memory.is_scarce() && !memory.is_exhausted());
    assert!(!queue.try_push(&little, &limits), "it is large");
    assert!(!queue.push_required(&little, &limits), "it is large");
    assert!(small.try_push(&little, &limits), "it is small");
    assert!(small.push_required(&little, &limits), "it is small");
    let more = memory.count(Bytes::from(vec![0; LIMIT]));
    assert!(memory.is_exhausted());
    assert!(!small.push_required(&little, &limits));
    drop((elsewhere, more));
    small.discard(&limits);
    queue.clear(&limits);
    assert_eq!(memory.used(), 0);
}

#[test]
fn the_handshake_answer_comes_first_and_is_never_discarded() {
    let limits = limits(100, Duration::from_secs(10));
    let mut queue = WriteQueue::default();
    queue.push_handshake_answer(Bytes::from_static(b"101 "));
    queue.push(Bytes::from_static(b"greeting"));
    queue.set_pong(Bytes::from_static(b"pong "));
    assert_eq!(waiting(&queue), b"101 pong greeting");
    queue.discard(&limits);
    queue.push(Bytes::from_static(b"close"));
    assert_eq!(waiting(&queue), b"101 close");
    // Once it is sent there is nothing to keep.
    queue.advance(4, &limits);
    queue.discard(&limits);
    assert!(queue.is_empty());
}

/// While a chunk is being written, only the newest of several pongs waits.
#[test]
fn only_the_newest_pong_waits() {
    let limits = limits(100, Duration::from_secs(10));
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(Bytes::from_static(b"a chunk"), 1);
    queue.push(Bytes::from_static(b" more"));
    for pong in [" one", " two", " three"] {
        queue.set_pong(Bytes::from(pong));
        assert_eq!(queue.advance(1, &limits), None);
    }
    assert_eq!(waiting(&queue), b"unk three more");
    // A partly sent pong is finished; the next one waits behind it.
    queue.advance(5, &limits);
    queue.set_pong(Bytes::from(" four"));
    assert_eq!(waiting(&queue), b"hree four more");
}

/// A full queue takes a ping and reports when it was written.
#[test]
fn a_full_queue_takes_a_ping() {
    let limits = limits(10, Duration::ZERO);
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(Bytes::from_static(b"more than is allowed"), 5);
    queue.progress_at = clock::now_ms().wrapping_sub(2_000);
    assert!(!queue.try_push(&frame::PING, &limits));
    queue.set_ping();
    assert!(queue.has_ping());
    assert_eq!(queue.advance(15, &limits), None, "not yet");
    assert_eq!(queue.advance(1, &limits), Some(1), "its first byte is written");
    assert!(!queue.has_ping());
    assert_eq!(waiting(&queue), frame::PING_BYTES[1..]);
    assert_eq!(queue.advance(1, &limits), None);
    assert!(queue.is_empty());
}

/// What follows a ping in the same write is not ahead of it.
#[test]
fn advance_counts_the_bytes_from_the_ping_on() {
    let limits = limits(100, Duration::from_secs(10));
    let mut queue = WriteQueue::default();
    queue.push_partly_sent(Bytes::from_static(b"a chunk"), 1);
    queue.push(Bytes::from_static(b" more"));
    queue.set_ping();
    assert_eq!(waiting(&queue).len(), 6 + frame::PING.len() + 5);
    let behind = queue.advance(6 + frame::PING.len() + 4, &limits);
    assert_eq!(behind, Some(frame::PING.len() + 4));
}

/// A pong that waits alone is a new backlog, of which nothing has been written.
#[test]
fn a_pong_alone_starts_a_backlog() {
    let limits = limits(100, Duration::from_secs(10));
    let mut queue = WriteQueue::default();
    queue.push(Bytes::from_static(b"before"));
    queue.advance(6, &limits);
    assert!(queue.is_worth_waiting_for(&limits));
    queue.progress_at = clock::now_ms().wrapping_sub(2_000);
    queue.set_pong(Bytes::from_static(b"pong"));
    assert!(queue.stalled_for() < Duration::from_secs(1));
    queue.push(Bytes::from_static(b"behind"));
    assert!(!queue.is_worth_waiting_for(&limits), "nothing has been written");
}

proptest! {
    /// However the queue is written: frames stay whole, chunks stay in order, a pong is the newest of its time, and the
    /// counts are right.
    #[test]
    fn the_queue_keeps_frames_whole(steps in prop::collection::vec((0u8..6, 1usize..40), 1..60)) {
        const PONG: u8 = 250;
        let limits = limits(200, Duration::from_secs(10));
        let mut queue = WriteQueue::default();
        let (mut sent, mut queued) = (Vec::new(), Vec::new());
        let (mut pings, mut pongs, mut stamped) = (0, 0u8, 0);
        for (step, size) in steps {
            match step {
                0 | 1 => {
                    let chunk = frame::text(&vec![queued.len() as u8; size]);
                    if step == 0 && queue.is_empty() {
                        queue.push_partly_sent(chunk.clone(), 0);
                    } else {
                        prop_assert!(queue.try_push(&chunk, &limits));
                    }
                    queued.push(chunk);
                }
                2 => {
                    pongs += 1;
                    queue.set_pong(frame::pong(&[PONG, pongs]));
                }
                3 => {
                    pings += usize::from(!queue.has_ping());
                    queue.set_ping();
                }
                _ => {
                    let waiting = waiting(&queue);
                    let size = size.min(waiting.len());
                    sent.extend_from_slice(&waiting[..size]);
                    if size > 0 {
                        stamped += usize::from(queue.advance(size, &limits).is_some());
                    }
                }
            }
            let control: usize = queue.control.frames().map(<[u8]>::len).sum();
            prop_assert_eq!(waiting(&queue).len(), queue.bytes() + control);
            prop_assert!(queue.counted as usize <= queue.queue.len());
        }
        let rest = waiting(&queue);
        sent.extend_from_slice(&rest);
        stamped += usize::from(queue.advance(rest.len(), &limits).is_some());
        prop_assert!(queue.is_empty());
        prop_assert_eq!(limits.memory.used(), 0);
        // What a client would read.
        let (mut at, mut chunks, mut last_pong, mut read_pings) = (0, Vec::new(), 0, 0);
        while at < sent.len() {
            let end = at + 2 + usize::from(sent[at + 1]);
            match sent[at] {
                0x89 => read_pings += 1,
                0x8A => {
                    prop_assert_eq!(sent[at + 2], PONG);
                    prop_assert!(sent[at + 3] > last_pong, "an older pong behind a newer one");
                    last_pong = sent[at + 3];
                }
                _ => chunks.push(Bytes::copy_from_slice(&sent[at..end])),
            }
            at = end;
        }
        prop_assert_eq!(chunks, queued);
        prop_assert_eq!(last_pong, pongs, "the newest is sent");
        prop_assert_eq!((read_pings, stamped), (pings, pings));
    }
}
