//! What happens when all outbound queues together are over `SEND_MEMORY_BYTES`: the largest is closed with 4008.
//!
//! Readers that take nothing are closed first, the largest before the others; one that is already closing behind a
//! backlog loses that backlog. Readers that drain, and are only behind because of a burst of ours, are closed when that
//! is not enough within [`PATIENCE`]. Meanwhile no queue may go over `SEND_QUEUE_BYTES`: delivery waits a little for
//! such readers (`fanout::slow_readers`), and the log is not read.

use std::cmp::Reverse;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Registry;
use crate::logging::LogLimit;
use crate::protocol::code::CloseCode;
use crate::writer::{BacklogPolicy, ConnectionWriter, WriterContext};

/// How long readers that drain have to make room.
const PATIENCE: Duration = Duration::from_millis(100);
/// The pause between two checks: each visits every connection.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// The least time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Closes connections whenever there is too little room. Never returns.
pub async fn keep_within_limit(registry: Arc<Registry>, context: Arc<WriterContext>) {
    let mut log = LogLimit::new(LOG_INTERVAL);
    let mut evicted = Evicted::default();
    let (mut over_since, mut closed) = (None, 0);
    loop {
        context.queue.memory.exceeded().await;
        let since = *over_since.get_or_insert_with(Instant::now);
        closed += close_largest(&registry, &context, &mut evicted, since.elapsed() >= PATIENCE);
        if closed > 0 && log.allows() {
            tracing::warn!(
                closed,
                limit = context.queue.memory.limit(),
                "outbound queues are over SEND_MEMORY_BYTES: the largest were closed"
            );
            closed = 0;
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
        if evicted.excess(&context) == 0 {
            over_since = None;
        }
    }
}

/// Connections that were closed to make room and whose sockets have not taken what is in flight: their memory counts as
/// free.
#[derive(Default)]
struct Evicted(Vec<Weak<ConnectionWriter>>);

impl Evicted {
    /// By how much the queues of the other connections exceed the limit.
    fn excess(&mut self, context: &WriterContext) -> usize {
        let mut evicted = 0;
        self.0.retain(|writer| {
            let bytes = writer.upgrade().map_or(0, |writer| writer.backlog());
            evicted += bytes;
            bytes > 0
        });
        let memory = &context.queue.memory;
        memory
            .used()
            .saturating_sub(evicted)
            .saturating_sub(memory.limit())
    }
}

/// Closes the connections with the largest queues until the rest is within the limit, and returns how many. Readers
/// that drain are only closed with `includes_draining`.
fn close_largest(
    registry: &Registry,
    context: &WriterContext,
    evicted: &mut Evicted,
    includes_draining: bool,
) -> usize {
    if evicted.excess(context) == 0 {
        return 0;
    }
    let mut queues = Vec::new();
    let mut add = |writer: &Arc<ConnectionWriter>| {
        let (bytes, drains) = (writer.discardable_backlog(), writer.is_worth_waiting_for());
        if bytes > 0 && (includes_draining || !drains) {
            queues.push((drains, Reverse(bytes), Arc::clone(writer)));
        }
    };
    for session in registry.everywhere() {
        session.members().iter().for_each(|member| add(&member.writer));
    }
    context.closing.all().iter().for_each(add);
    queues.sort_unstable_by_key(|&(drains, bytes, _)| (drains, bytes));
    let mut closed = 0;
    for (_, _, writer) in queues {
        if evicted.excess(context) == 0 {
            break;
        }
        let reason = "outbound queues are full";
        let is_closed = writer.close(CloseCode::SlowConsumer, reason, BacklogPolicy::Discard);
        closed += usize::from(is_closed);
        if is_closed || writer.discard_backlog() {
            evicted.0.push(Arc::downgrade(&writer));
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::metrics::Metrics;
    use crate::protocol::frame;
    use crate::protocol::ids::{SessionId, UserType};
    use crate::session::testing::{context, members_of};
    use crate::writer::{SendOutcome, Start};

    /// More than a socket takes at once.
    const LARGE: usize = 16 << 20;

    /// Nobody reads: only the largest queue is closed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_the_largest_queue_is_closed() {
        let metrics = Arc::new(Metrics::default());
        let mut context = context(&metrics, 3 * LARGE);
        context.queue.queue_bytes = 1 << 30;
        let context = Arc::new(context);
        let (members, _clients) = members_of(&context, 3).await;
        let registry = Registry::default();
        for (number, member) in members.iter().enumerate() {
            let session_id = SessionId::parse(&format!("s{number}")).unwrap();
            registry.join(&session_id, member, UserType::Customer, Start::Live, |_| {
                Bytes::new()
            });
            // Some bytes are in flight, and stay so.
            assert_eq!(
                member.writer.send_chunk(&Bytes::from(vec![0; LARGE / 2])),
                SendOutcome::Queued
            );
        }
        let mut evicted = Evicted::default();
        assert_eq!(close_largest(&registry, &context, &mut evicted, true), 0);
        members[1].writer.send_chunk(&Bytes::from(vec![0; LARGE / 2]));
        members[2].writer.send_chunk(&Bytes::from(vec![0; LARGE]));
        members[1].writer.send_chunk(&Bytes::from(vec![0; LARGE / 4]));
        assert!(context.queue.memory.is_exceeded());
        // Until the kernel takes no more.
        while members.iter().any(|member| member.writer.is_worth_waiting_for()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(close_largest(&registry, &context, &mut evicted, false), 1);
        let open: Vec<_> = members.iter().map(|member| member.writer.is_open()).collect();
        assert_eq!(open, [true, true, false]);
        // What the closed one has in flight is not counted again.
        assert_eq!(close_largest(&registry, &context, &mut evicted, true), 0);
        drop(members);
    }

    /// A closing connection loses its large backlog before another is closed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closing_connection_gives_up_its_backlog_first() {
        let metrics = Arc::new(Metrics::default());
        let mut context = context(&metrics, 2 * LARGE);
        context.queue.queue_bytes = 1 << 30;
        let context = Arc::new(context);
        let (members, mut clients) = members_of(&context, 2).await;
        let registry = Registry::default();
        let session_id = SessionId::parse("s").unwrap();
        registry.join(&session_id, &members[0], UserType::Customer, Start::Live, |_| {
            Bytes::new()
        });
        for (member, large) in members.iter().zip([LARGE / 8, LARGE + LARGE / 4]) {
            assert_eq!(
                member.writer.send_chunk(&Bytes::from(vec![b'a'; LARGE / 2])),
                SendOutcome::Queued
            );
            assert_eq!(
                member.writer.send_chunk(&Bytes::from(vec![b'b'; large])),
                SendOutcome::Queued
            );
        }
        members[1].writer.close_for_drain();
        assert!(context.queue.memory.is_exceeded());
        let mut evicted = Evicted::default();
        assert_eq!(close_largest(&registry, &context, &mut evicted, true), 0);
        assert!(members[0].writer.is_open());
        assert_eq!(
            close_largest(&registry, &context, &mut evicted, true),
            0,
            "that was enough"
        );
        // The frame in flight is completed, and the close frame follows.
        let mut got = Vec::new();
        clients[1].read_to_end(&mut got).await.unwrap();
        let close = frame::close(CloseCode::GoingAway, "this node is going away");
        assert!(got[..LARGE / 2].iter().all(|&byte| byte == b'a') && got[LARGE / 2..] == close[..]);
    }
}
