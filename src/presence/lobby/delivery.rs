//! Sends a batch of snapshots and events to agents in the lobby.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::Sessions;
use crate::fanout::broadcast::SLICE;
use crate::protocol::code::CloseCode;
use crate::protocol::ids::SessionId;
use crate::protocol::lobby::{self, ListedSession, SessionPage};
use crate::writer::{BacklogPolicy, ConnectionWriter, SendOutcome, SharedChunk};

/// Events are sent together, up to so many bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// How long to wait for an agent whose queue is full: without any progress, and altogether. A burst must not cut off
/// who reads, and who does not must not hold up the others.
const MAX_STALL: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(1);
const WAIT_STEP: Duration = Duration::from_millis(1);

/// What is to be sent.
#[derive(Default)]
pub(super) struct Batch {
    pub events: Vec<ListedSession>,
    /// Whom the events are for.
    pub members: Vec<(Arc<ConnectionWriter>, Arc<Sessions>)>,
    /// Who gets a snapshot.
    pub joiners: Vec<(Arc<ConnectionWriter>, Snapshot)>,
}

pub(super) type Snapshot = Arc<SessionPage>;

pub(super) async fn send(batch: Batch) {
    let Batch {
        events,
        members,
        joiners,
    } = batch;
    send_snapshots(&joiners).await;
    if members.is_empty() {
        return;
    }
    let mut frames = Vec::new();
    let mut bytes = 0;
    for session in &events {
        let Some(frame) = lobby::event(session) else {
            continue;
        };
        bytes += frame.len();
        frames.push((&session.session_id, frame));
        if bytes >= CHUNK_BYTES {
            send_frames(&frames, &members).await;
            frames.clear();
            bytes = 0;
        }
    }
    send_frames(&frames, &members).await;
}

/// Agents with the same snapshot share its bytes.
async fn send_snapshots(joiners: &[(Arc<ConnectionWriter>, Snapshot)]) {
    let mut last: Option<(&Snapshot, SharedChunk)> = None;
    let mut round = Round::default();
    for (writer, snapshot) in joiners {
        let encoded = last.take().filter(|(of, _)| Arc::ptr_eq(of, snapshot));
        let encoded = encoded.or_else(|| {
            let frame = lobby::snapshot(&snapshot.sessions, snapshot.next.is_some())?;
            Some((snapshot, SharedChunk::new(frame)))
        });
        if let Some((_, chunk)) = &encoded {
            round.send(writer, chunk).await;
        }
        last = encoded;
    }
    round.finish().await;
}

async fn send_frames(frames: &[(&SessionId, Bytes)], members: &[(Arc<ConnectionWriter>, Arc<Sessions>)]) {
    let chunk_of = |scope: &Sessions| {
        let seen = frames.iter().filter(|(session_id, _)| scope.cover(session_id));
        let bytes: Vec<u8> = seen.flat_map(|(_, frame)| frame.iter().copied()).collect();
        (!bytes.is_empty()).then(|| SharedChunk::new(bytes.into()))
    };
    let of_all = chunk_of(&Sessions::All);
    let mut round = Round::default();
    for (writer, scope) in members {
        match &**scope {
            Sessions::All => {
                if let Some(chunk) = &of_all {
                    round.send(writer, chunk).await;
                }
            }
            listed => {
                if let Some(chunk) = chunk_of(listed) {
                    round.send(writer, &chunk).await;
                }
            }
        }
    }
    round.finish().await;
}

/// One chunk for each of many agents. Those whose queues are full are waited for together, at the end, so that their
/// number does not matter to the others.
#[derive(Default)]
struct Round {
    sent: usize,
    full: Vec<Full>,
}

/// An agent whose queue is full, and what is to be sent.
struct Full {
    writer: Arc<ConnectionWriter>,
    chunk: SharedChunk,
    stalled: Duration,
    backlog: usize,
}

impl Round {
    async fn send(&mut self, writer: &Arc<ConnectionWriter>, chunk: &SharedChunk) {
        if writer.send_chunk(chunk) == SendOutcome::Full {
            self.full.push(Full {
                writer: Arc::clone(writer),
                chunk: chunk.clone(),
                stalled: Duration::ZERO,
                backlog: writer.backlog(),
            });
        }
        self.sent += 1;
        if self.sent.is_multiple_of(SLICE) {
            tokio::task::yield_now().await;
        }
    }

    /// Like `fanout::slow_readers`, but without holding up anything else: this task may wait.
    async fn finish(mut self) {
        tokio::task::yield_now().await;
        let mut waited = Duration::ZERO;
        while !self.full.is_empty() {
            self.full.retain_mut(|full| !full.is_done(waited));
            if !self.full.is_empty() {
                tokio::time::sleep(WAIT_STEP).await;
                waited += WAIT_STEP;
            }
        }
    }
}

impl Full {
    /// Whether the chunk is sent, or the connection closed.
    fn is_done(&mut self, waited: Duration) -> bool {
        if self.writer.send_chunk(&self.chunk) != SendOutcome::Full {
            return true;
        }
        let backlog = self.writer.backlog();
        self.stalled = match backlog < self.backlog {
            true => Duration::ZERO,
            false => self.stalled + WAIT_STEP,
        };
        self.backlog = backlog;
        let is_hopeless = self.stalled >= MAX_STALL || waited >= MAX_WAIT;
        if is_hopeless || !self.writer.is_worth_waiting_for() {
            let reason = "outbound queue is full";
            self.writer
                .close(CloseCode::SlowConsumer, reason, BacklogPolicy::Discard);
            return true;
        }
        false
    }
}
