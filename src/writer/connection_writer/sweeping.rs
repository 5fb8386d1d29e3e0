//! What the periodic sweep does with a connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::{BacklogPolicy, CLOSE_TIMEOUT, ConnectionWriter, Phase, State};
use crate::clock;
use crate::protocol::code::CloseCode;
use crate::writer::expiry::Due;
use crate::writer::kernel;

impl ConnectionWriter {
    /// Periodic work: sends pings, and closes a connection whose client doesn't answer, read or close, or whose token has
    /// ended. `now` is in seconds since 1970.
    pub fn sweep(self: &Arc<Self>, now: i64) {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open => {
                let due = state.expiry.due(now);
                if due == Due::Nothing {
                    self.check_liveness(state);
                } else {
                    drop(state);
                    self.act_on(due);
                }
            }
            Phase::Closing { since, .. } if clock::since(since) > CLOSE_TIMEOUT => {
                drop(state);
                self.abort();
            }
            Phase::Closing { .. } | Phase::Dead => {}
        }
    }

    fn check_liveness(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let is_awaiting = self.awaiting_pong.load(Ordering::Relaxed);
        let is_behind = !state.write_queue.is_empty();
        if is_awaiting || is_behind {
            state.liveness.update(kernel::stream(self.socket()));
        }
        // The queue shrinks in large steps, since the kernel accepts more only in large steps.
        let stalled = state
            .write_queue
            .stalled_for()
            .min(state.liveness.unacknowledged_for());
        if is_behind && stalled > self.context.queue.send_timeout {
            drop(state);
            let reason = "no progress within the send timeout";
            self.close(CloseCode::SlowConsumer, reason, BacklogPolicy::Discard);
        } else if is_awaiting {
            let silent = state
                .liveness
                .silent_for()
                .min(state.write_queue.since_progress());
            // For a ping that has not been written yet, the send timeout applies.
            if !state.write_queue.has_ping() && silent > self.context.pong_timeout {
                drop(state);
                self.close(CloseCode::NoPong, "no pong in time", BacklogPolicy::Discard);
            }
        } else if state.liveness.is_ping_due(self.context.ping_interval) {
            state.liveness.ping_requested();
            state.write_queue.set_ping();
            // Before writing: the pong may arrive before the write returns.
            self.awaiting_pong.store(true, Ordering::Relaxed);
            self.flush_or_spawn(state);
        }
    }
}
