//! The bus: an append-only log of records, in the process or in Kafka. Every node reads all of it.
//!
//! Both variants append and acknowledge records, and pass what they read to the same [`router`] on a dedicated thread.

pub mod embedded;
pub mod kafka;
mod repeats;
pub mod router;

pub use repeats::{MessagesRead, ReadMessage, Repeats};
pub use router::Router;

use crate::history::query::LogQuery;
use crate::protocol::record::{Outgoing, Topic};
use crate::protocol::resume::{NotResumed, Resume};

/// A batch ends when no more records are ready, or at these limits, so that a flood does not delay its first record.
const MAX_BATCH: usize = 1_024;
const MAX_BATCH_BYTES: usize = 1 << 20;

fn is_full_batch(records: usize, bytes: usize) -> bool {
    records >= MAX_BATCH || bytes >= MAX_BATCH_BYTES
}

/// Called once with the outcome of a publish, on a bus thread: it must not block.
pub type Ack = Box<dyn FnOnce(Result<(), PublishError>) + Send + Sync>;

/// Why a record did not reach the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the message log is full, try again")]
    Full,
    #[error("the message log is not available, try again")]
    Unavailable,
    #[error("the message is larger than the log accepts")]
    TooLarge,
    /// The record may be in the log all the same.
    #[error("no answer from the message log: the message may still appear")]
    Unknown,
}

/// A dependency's status, as health shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Connecting,
    Ok,
    Degraded,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ok => "ok",
            Self::Degraded => "degraded",
        }
    }
}

/// A dependency as health shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub mode: &'static str,
    pub status: Status,
    /// A short description of what is wrong, for the operator.
    pub detail: Option<String>,
}

impl Health {
    /// An in-process part, which is up whenever the process is.
    pub fn embedded() -> Self {
        Self {
            mode: "embedded",
            status: Status::Ok,
            detail: None,
        }
    }
}

/// An enum rather than a trait object: there are only two variants, and the branch is predictable.
pub enum Bus {
    Embedded(embedded::Embedded),
    Kafka(kafka::Kafka),
}

impl Bus {
    /// Appends a record; `ack` is called with the outcome.
    pub fn publish(&self, record: Outgoing, ack: Ack) {
        match self {
            // The other topics are for other nodes, and there are none.
            Self::Embedded(_) if record.topic != Topic::Messages => ack(Ok(())),
            Self::Embedded(bus) => bus.publish(record, ack),
            Self::Kafka(bus) => bus.publish(&record, Some(ack)),
        }
    }

    /// Whether other nodes read it, too.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Kafka(_))
    }

    /// Sends other nodes something short-lived: no acknowledgement, no retry.
    pub fn publish_unacknowledged(&self, record: Outgoing) {
        match self {
            // There are no other nodes.
            Self::Embedded(_) => drop(record),
            Self::Kafka(bus) => bus.publish(&record, None),
        }
    }

    /// Notes how far this node has read, for the recent log.
    pub fn note_progress(&self) {
        match self {
            // It reads what it appends.
            Self::Embedded(_) => {}
            Self::Kafka(bus) => bus.note_progress(),
        }
    }

    /// Reads what is older than the recent log for a client that comes back.
    pub fn query_log(&self, query: LogQuery) {
        match self {
            // The recent log is all there is.
            Self::Embedded(_) => {
                let has_time = !matches!(query.resume, Resume::Message { time: None, .. });
                let why = if has_time {
                    NotResumed::TooOld
                } else {
                    NotResumed::UnknownMessage
                };
                (query.reply)(Err(why));
            }
            Self::Kafka(bus) => bus.query_log(query),
        }
    }

    /// A sender's wait for an acknowledgement has timed out.
    pub fn unanswered(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Kafka(bus) => bus.unanswered(),
        }
    }

    /// Whether it will soon be known who is refused: a starting node's clients wait for that.
    pub fn awaits_refusals(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Kafka(bus) => bus.awaits_refusals(),
        }
    }

    pub fn health(&self) -> Health {
        match self {
            Self::Embedded(_) => Health::embedded(),
            Self::Kafka(bus) => bus.health(),
        }
    }

    /// Waits at most `timeout` for the outcomes of everything published, then ends the bus's threads.
    /// Blocks: call it outside the runtime's workers.
    pub fn stop(&self, timeout: std::time::Duration) {
        match self {
            Self::Embedded(bus) => bus.stop(),
            Self::Kafka(bus) => bus.stop(timeout),
        }
    }
}
