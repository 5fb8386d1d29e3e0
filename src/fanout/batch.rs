//! Groups a batch of records by session and delivers it.
//!
//! The frames of one session in a batch become one contiguous write, cut into chunks (see [`chunks`](super::chunks)).

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::backend::{ChunkSender, Delivered, FanoutBackend};
use super::broadcast::SLICE;
use super::chunks::{BufferPool, ChunkBuffer};
use super::slow_readers::WaitBudget;
use crate::metrics::Metrics;
use crate::session::{Member, Session};
use crate::supervise::catch_panic;

/// The batch of one delivery thread. Its buffers are reused for the next one, so that a batch allocates nothing.
pub struct Batch {
    sessions: Vec<SessionChunks>,
    pool: BufferPool,
    /// The outcome for each session.
    delivered: Vec<Delivered>,
    /// The index of each session in `sessions`, by its address: the batch keeps it alive.
    index: HashMap<usize, usize, RandomState>,
    wait_budget: WaitBudget,
    backend: FanoutBackend,
    metrics: Arc<Metrics>,
}

/// A batch's frames for one session.
struct SessionChunks {
    session: Arc<Session>,
    records: u64,
    chunks: ChunkBuffer,
    /// The recipients, once sealed.
    members: Option<Arc<Vec<Member>>>,
}

impl SessionChunks {
    /// Ends the last chunk and takes a snapshot of the members; nothing more is added.
    fn seal(&mut self) {
        self.chunks.cut();
        self.members = Some(self.session.recipients(self.chunks.position()));
    }

    fn members(&self) -> &[Member] {
        self.members.as_ref().map_or(&[], |members| members)
    }
}

impl Batch {
    pub fn new(backend: FanoutBackend, metrics: Arc<Metrics>) -> Self {
        Self {
            sessions: Vec::new(),
            pool: BufferPool::default(),
            delivered: Vec::new(),
            index: HashMap::default(),
            wait_budget: WaitBudget::default(),
            backend,
            metrics,
        }
    }

    /// Sets up the backend, on the thread that will use it.
    pub fn prepare(&mut self) {
        self.backend.prepare();
    }

    /// Adds a frame with this payload for a session; see [`Chunks::push`].
    pub fn add(&mut self, session: Arc<Session>, payload: &[u8], position: u64) {
        let address = Arc::as_ptr(&session) as usize;
        let at = *self.index.entry(address).or_insert_with(|| {
            self.sessions.push(SessionChunks {
                session,
                records: 0,
                chunks: self.pool.take(),
                members: None,
            });
            self.sessions.len() - 1
        });
        let session_chunks = &mut self.sessions[at];
        session_chunks.records += 1;
        session_chunks.chunks.push(payload, position);
    }

    /// Delivers the batch to the current members of its sessions; false if there is nothing to deliver. If that panics,
    /// the rest of the batch is counted and abandoned.
    pub fn deliver(&mut self) -> bool {
        if self.sessions.is_empty() {
            return false;
        }
        if catch_panic(|| self.deliver_to_sessions()).is_none() {
            let records = self
                .sessions
                .drain(..)
                .map(|session_chunks| session_chunks.records)
                .sum();
            tracing::error!(records, "delivery has failed: please report this bug");
            self.metrics.records_abandoned(records);
        }
        self.index.clear();
        true
    }

    /// Small sessions are served first; large ones take turns, one slice of members each.
    fn deliver_to_sessions(&mut self) {
        self.backend.prepare();
        self.sessions.iter_mut().for_each(SessionChunks::seal);
        self.delivered.clear();
        self.delivered.resize(self.sessions.len(), Delivered::default());
        let mut chunk_sender =
            ChunkSender::new(&mut self.backend, &mut self.wait_budget, &mut self.delivered);
        let sized = |is_large: bool| {
            let sessions = self.sessions.iter().enumerate();
            sessions.filter(move |(_, session_chunks)| (session_chunks.members().len() > SLICE) == is_large)
        };
        for (slot, session_chunks) in sized(false) {
            send_chunks_in_order(
                &mut chunk_sender,
                slot,
                session_chunks.members(),
                &session_chunks.chunks,
            );
        }
        let largest = sized(true)
            .map(|(_, session_chunks)| session_chunks.members().len())
            .max();
        for start in (0..largest.unwrap_or(0)).step_by(SLICE) {
            for (slot, session_chunks) in sized(true) {
                let members = session_chunks.members().get(start..).unwrap_or_default();
                send_chunks_in_order(
                    &mut chunk_sender,
                    slot,
                    &members[..members.len().min(SLICE)],
                    &session_chunks.chunks,
                );
            }
        }
        chunk_sender.send_reserved();
        drop(chunk_sender);
        let (mut total, mut records) = (Delivered::default(), 0);
        for (session_chunks, delivered) in self.sessions.drain(..).zip(&self.delivered) {
            log_broadcast(&session_chunks, *delivered);
            total += *delivered;
            records += session_chunks.records;
            self.pool.give_back(session_chunks.chunks);
        }
        self.metrics.batch_delivered(records, total.written, total.queued);
    }
}

/// Sends the chunks of one session in their order.
fn send_chunks_in_order<'a>(
    chunk_sender: &mut ChunkSender<'a>,
    slot: usize,
    members: &'a [Member],
    chunks: &'a ChunkBuffer,
) {
    for (number, chunk) in chunks.iter().enumerate() {
        if number > 0 {
            chunk_sender.send_reserved();
        }
        chunk_sender.send_to_members(slot, members, chunk);
    }
}

fn log_broadcast(session_chunks: &SessionChunks, delivered: Delivered) {
    tracing::debug!(
        "Broadcasted message to session {}: {}/{} clients received",
        session_chunks.session.id,
        delivered.received() / session_chunks.chunks.iter().count(),
        session_chunks.members().len()
    );
}
