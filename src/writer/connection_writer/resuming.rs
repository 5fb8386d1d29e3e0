//! A connection that is owed older frames before it takes part in live delivery.
//!
//! They are pulled from their source whenever the socket has taken what was queued, so that a slow reader's replay waits
//! where it is, not in the send queue. Live records wait there, too: the source is told how far they go. Frames that are
//! no records, such as answers, are sent in between.

use std::sync::Arc;

use bytes::Bytes;

use super::{BacklogPolicy, ConnectionWriter, Phase, State};
use crate::protocol::code::CloseCode;
use crate::protocol::frame;

/// Frames that a connection is owed.
pub trait Replay: Send {
    /// Passes the next frames to `push`, some tens of kilobytes. `live_end`: the position up to which live records wait
    /// for this connection; 0: none does.
    fn pull(&mut self, live_end: u64, push: &mut dyn FnMut(Bytes)) -> Pulled;

    /// Everything of the session before this position has been passed on; `None`: frames without a position come first.
    fn position(&self) -> Option<u64>;
}

/// What a source has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    More,
    /// Nothing: live records follow directly.
    CaughtUp,
    /// Frames that this connection is owed are gone.
    Lost,
}

/// How a new connection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With live records.
    Live,
    /// With a replay, which [`ConnectionWriter::replay`] begins: live records wait where it takes its frames from.
    Replay,
}

/// Up to which position of the log records have been sent to a connection, or queued for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentUpTo {
    /// That of the last record; everything delivered meanwhile counts, too.
    Live(u64),
    /// Exactly this one, in a replay.
    Replay(u64),
    /// Not known: a replay that has not begun, or of frames that are older than what has positions.
    Unknown,
}

pub(super) struct Resuming {
    /// `None` until it is known what to replay.
    source: Option<Box<dyn Replay>>,
    live_end: u64,
}

impl Resuming {
    /// `None` for a connection that starts with live records.
    pub(super) fn starting(start: Start) -> Option<Box<Self>> {
        (start == Start::Replay).then(|| {
            Box::new(Self {
                source: None,
                live_end: 0,
            })
        })
    }

    /// Live records up to this position wait for the replay.
    pub(super) fn hold(&mut self, live_end: u64) {
        self.live_end = live_end;
    }

    fn sent_up_to(&self) -> SentUpTo {
        let position = self.source.as_ref().and_then(|source| source.position());
        position.map_or(SentUpTo::Unknown, SentUpTo::Replay)
    }
}

impl ConnectionWriter {
    /// Begins the replay of a connection that started with [`Start::Replay`].
    pub fn replay(self: &Arc<Self>, source: Box<dyn Replay>) {
        let mut state = self.state.lock();
        if let Some(resuming) = &mut state.resuming {
            resuming.source = Some(source);
            self.flush_or_spawn(state);
        }
    }

    /// Sends a frame that says how far this connection has got: `frame` is made under the lock that orders it among the
    /// records. The queue may exceed its limit for it, as in [`ConnectionWriter::send_required`].
    pub fn send_stamped(self: &Arc<Self>, frame: impl FnOnce(SentUpTo) -> Bytes) {
        let state = self.state.lock();
        let frame = frame(state.sent_up_to());
        self.send_required_locked(state, &frame);
    }

    /// Queues the next frames of a replay; false if there are none.
    pub(super) fn pull(&self, state: &mut State) -> bool {
        let State {
            resuming,
            write_queue,
            phase: Phase::Open,
            ..
        } = state
        else {
            return false;
        };
        let Some((source, live_end)) = resuming
            .as_mut()
            .and_then(|resuming| Some((resuming.source.as_mut()?, resuming.live_end)))
        else {
            return false;
        };
        match source.pull(live_end, &mut |frame| write_queue.push(frame)) {
            Pulled::More => {}
            Pulled::CaughtUp => {
                state.sent_up_to = source.position().unwrap_or(live_end);
                state.resuming = None;
            }
            Pulled::Lost => {
                let code = CloseCode::SlowConsumer;
                let close = frame::close(code, "too slow for the messages to replay");
                self.close_locked(state, code.code(), close, BacklogPolicy::Discard);
                self.context.metrics.closed(code);
            }
        }
        !state.write_queue.is_empty()
    }
}

impl State {
    fn sent_up_to(&self) -> SentUpTo {
        match &self.resuming {
            Some(resuming) => resuming.sent_up_to(),
            None => SentUpTo::Live(self.sent_up_to),
        }
    }
}

#[cfg(test)]
#[path = "resuming_tests.rs"]
mod tests;
