//! Messages whose senders wait for the outcome: each is answered exactly once, by the log or at the deadline.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::bus::PublishError;
use crate::history::Sent;
use crate::metrics::Metrics;
use crate::protocol::code::{ErrorCode, WireError};
use crate::protocol::correlation::{Correlation, OwnedCorrelation};
use crate::protocol::server;
use crate::writer::ConnectionWriter;

/// How long to wait for the log before the sender gets `outcome_unknown`: within five seconds, including the tick that
/// checks it.
const PATIENCE: Duration = Duration::from_millis(4_600);

/// What became of a message that a backend publishes.
pub type Outcome = Result<Sent, PublishError>;

/// The outstanding answer to a `send_message`, or to a backend.
pub struct PendingAnswer {
    is_answered: AtomicBool,
    asker: Asker,
    metrics: Arc<Metrics>,
}

/// Who waits for an answer.
enum Asker {
    Connection {
        /// Weak, so that an outstanding answer does not keep a closing connection open: the log may take half a minute.
        writer: Weak<ConnectionWriter>,
        correlation: OwnedCorrelation,
    },
    /// Taken by the answer.
    Backend(Mutex<Option<oneshot::Sender<Outcome>>>),
}

impl PendingAnswer {
    pub fn new(
        writer: &Arc<ConnectionWriter>,
        correlation: Correlation<'_>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let asker = Asker::Connection {
            writer: Arc::downgrade(writer),
            correlation: correlation.to_owned(),
        };
        Self::of(asker, metrics)
    }

    /// The answer to a backend's request.
    pub fn to_backend(metrics: Arc<Metrics>) -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let asker = Asker::Backend(Mutex::new(Some(sender)));
        (Self::of(asker, metrics), receiver)
    }

    fn of(asker: Asker, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            is_answered: AtomicBool::new(false),
            asker,
            metrics,
        })
    }

    /// Answers the sender, unless that was done before: the message is in the log, or not.
    pub fn answer(&self, outcome: Result<&Sent, PublishError>) {
        if self.is_answered.swap(true, Ordering::AcqRel) {
            return;
        }
        self.give(outcome);
    }

    /// Answers the sender after [`PATIENCE`]; false if that was done before.
    fn expire(&self) -> bool {
        if self.is_answered.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.give(Err(PublishError::Unknown));
        true
    }

    fn give(&self, outcome: Result<&Sent, PublishError>) {
        match outcome {
            Ok(_) => {}
            Err(PublishError::Unknown) => _ = self.metrics.outcomes_unknown.inc(),
            Err(_) => _ = self.metrics.publish_failures.inc(),
        }
        match &self.asker {
            Asker::Connection { writer, correlation } => {
                let frame = self.frame(outcome, correlation.as_ref());
                if let Some(writer) = writer.upgrade() {
                    writer.send_required(&frame);
                }
            }
            Asker::Backend(sender) => {
                if let Some(sender) = sender.lock().take() {
                    // The backend may have gone.
                    let _ = sender.send(outcome.cloned());
                }
            }
        }
    }

    fn frame(&self, outcome: Result<&Sent, PublishError>, correlation: Correlation<'_>) -> Bytes {
        let error = match outcome {
            Ok(sent) => {
                let (message_id, timestamp) = (sent.message_id(), sent.timestamp());
                return server::message_sent(&message_id, &timestamp, correlation);
            }
            Err(PublishError::Unknown) => WireError::new(
                ErrorCode::OutcomeUnknown,
                "No answer from the message log in time: the message may still appear",
            ),
            Err(error @ PublishError::TooLarge) => {
                WireError::new(ErrorCode::RecordTooLarge, error.to_string())
            }
            Err(error @ (PublishError::Full | PublishError::Unavailable)) => {
                WireError::new(ErrorCode::BusUnavailable, error.to_string())
            }
        };
        self.metrics.frame_error(error.code);
        server::error(&error, correlation)
    }

    pub fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Acquire)
    }
}

/// All outstanding answers, in the order of their deadlines; the bus bounds their number.
#[derive(Default)]
pub struct PendingAnswers {
    queue: Mutex<VecDeque<(Instant, Arc<PendingAnswer>)>>,
}

impl PendingAnswers {
    /// Watches an answer until it is given.
    pub fn watch(&self, pending: Arc<PendingAnswer>) {
        if pending.is_answered() {
            return;
        }
        let mut queue = self.queue.lock();
        while queue.front().is_some_and(|(_, first)| first.is_answered()) {
            queue.pop_front();
        }
        queue.push_back((Instant::now() + PATIENCE, pending));
    }

    /// Answers those that have waited too long; returns whether there were any.
    pub fn expire(&self, now: Instant) -> bool {
        let mut has_expired = false;
        loop {
            let expired = {
                let mut queue = self.queue.lock();
                match queue.front() {
                    Some((deadline, first)) if *deadline <= now || first.is_answered() => queue.pop_front(),
                    _ => return has_expired,
                }
            };
            if let Some((_, pending)) = expired {
                has_expired |= pending.expire();
            }
        }
    }
}
