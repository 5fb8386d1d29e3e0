//! Closing a connection: the close frame follows what is queued, or replaces it.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{BacklogPolicy, ConnectionWriter, NO_STATUS, Phase, State};
use crate::clock;
use crate::protocol::code::CloseCode;
use crate::protocol::frame;

/// Connections that close once their clients have taken what is queued. They no longer belong to a session.
#[derive(Default)]
pub struct ClosingWriters(Mutex<Vec<Weak<ConnectionWriter>>>);

impl ClosingWriters {
    fn note(&self, writer: &Arc<ConnectionWriter>) {
        let mut writers = self.0.lock();
        if writers.len() == writers.capacity() {
            writers.retain(|writer| writer.upgrade().is_some_and(|writer| writer.backlog() > 0));
        }
        writers.push(Arc::downgrade(writer));
    }

    /// Those that still exist.
    pub fn all(&self) -> Vec<Arc<ConnectionWriter>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl ConnectionWriter {
    /// Sends a close frame and nothing after it. Returns whether this call was the first to close.
    pub fn close(self: &Arc<Self>, code: CloseCode, reason: &str, backlog: BacklogPolicy) -> bool {
        let first = self.close_with(code.code(), frame::close(code, reason), backlog);
        if first {
            self.context.metrics.closed(code);
        }
        first
    }

    /// Sends the client to another node, after what is queued.
    pub fn close_for_drain(self: &Arc<Self>) {
        self.close(
            CloseCode::GoingAway,
            "this node is going away",
            BacklogPolicy::Deliver,
        );
    }

    /// Echoes the client's close frame.
    pub fn echo_close(self: &Arc<Self>, code: Option<u16>) {
        let shown = code.unwrap_or(NO_STATUS);
        if self.close_with(shown, frame::close_echo(code), BacklogPolicy::Discard) {
            self.context.metrics.closed(CloseCode::Normal);
        }
    }

    fn close_with(self: &Arc<Self>, code: u16, close: Bytes, backlog: BacklogPolicy) -> bool {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return false;
        }
        self.close_locked(&mut state, code, close, backlog);
        self.flush_or_spawn(state);
        if backlog == BacklogPolicy::Deliver && self.backlog() > 0 {
            self.context.closing.note(self);
        }
        true
    }

    /// Queues the close frame; what is still to be replayed is left to the client's next connection.
    pub(super) fn close_locked(&self, state: &mut State, code: u16, close: Bytes, backlog: BacklogPolicy) {
        state.resuming = None;
        if backlog == BacklogPolicy::Discard {
            state.write_queue.discard(&self.context.queue);
        }
        state.write_queue.push(close);
        state.close_code = code;
        state.phase = Phase::Closing {
            since: clock::now_ms(),
            backlog,
        };
        state.wake_reader();
    }

    /// Discards what still precedes the close frame; false if there is nothing to discard.
    pub fn discard_backlog(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        let Phase::Closing { backlog, .. } = &mut state.phase else {
            return false;
        };
        let was_delivering = std::mem::replace(backlog, BacklogPolicy::Discard) == BacklogPolicy::Deliver;
        if was_delivering {
            state.write_queue.discard_but_last(&self.context.queue);
            self.flush_or_spawn(state);
        }
        was_delivering
    }
}
