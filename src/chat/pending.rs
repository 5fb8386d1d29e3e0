//! Messages whose senders wait for the outcome: each is answered exactly once, by the log or at the deadline.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

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

/// The outstanding answer to a `send_message`.
pub struct PendingAnswer {
    is_answered: AtomicBool,
    /// Weak, so that an outstanding answer does not keep a closing connection open: the log may take half a minute.
    writer: Weak<ConnectionWriter>,
    correlation: OwnedCorrelation,
    metrics: Arc<Metrics>,
}

impl PendingAnswer {
    pub fn new(
        writer: &Arc<ConnectionWriter>,
        correlation: Correlation<'_>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            is_answered: AtomicBool::new(false),
            writer: Arc::downgrade(writer),
            correlation: correlation.to_owned(),
            metrics,
        })
    }

    /// Answers the sender, unless that was done before: the message is in the log, or not.
    pub fn answer(&self, outcome: Result<&Sent, PublishError>) {
        if self.is_answered.swap(true, Ordering::AcqRel) {
            return;
        }
        let frame = match outcome {
            Ok(sent) => {
                let (message_id, timestamp) = (sent.message_id(), sent.timestamp());
                server::message_sent(&message_id, &timestamp, self.correlation.as_ref())
            }
            Err(PublishError::Unknown) => return self.answer_unknown(),
            Err(error) => {
                let code = match error {
                    PublishError::TooLarge => ErrorCode::RecordTooLarge,
                    PublishError::Full | PublishError::Unavailable => ErrorCode::BusUnavailable,
                    PublishError::Unknown => ErrorCode::OutcomeUnknown,
                };
                self.metrics.publish_failures.inc();
                self.metrics.frame_error(code);
                server::error(
                    &WireError::new(code, error.to_string()),
                    self.correlation.as_ref(),
                )
            }
        };
        self.send(&frame);
    }

    /// Answers the sender after [`PATIENCE`]; false if that was done before.
    fn expire(&self) -> bool {
        if self.is_answered.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.answer_unknown();
        true
    }

    fn answer_unknown(&self) {
        self.metrics.outcomes_unknown.inc();
        self.metrics.frame_error(ErrorCode::OutcomeUnknown);
        let text = "No answer from the message log in time: the message may still appear";
        let error = WireError::new(ErrorCode::OutcomeUnknown, text);
        self.send(&server::error(&error, self.correlation.as_ref()));
    }

    fn send(&self, frame: &Bytes) {
        if let Some(writer) = self.writer.upgrade() {
            writer.send_required(frame);
        }
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
