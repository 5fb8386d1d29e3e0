//! The bus: an append-only log of records that every node reads whole, in the process or in Kafka.
//!
//! Both variants append, acknowledge and hand what they read to the same [`router`], on a thread of their own.

pub mod embedded;
pub mod kafka;
pub mod router;

pub use router::Router;

use crate::protocol::record::{Outgoing, Topic};

/// A batch ends when there is nothing more at hand, or here, so that a flood does not hold back its own first record.
const MAX_BATCH: usize = 1_024;
const MAX_BATCH_BYTES: usize = 1 << 20;

fn is_full_batch(records: usize, bytes: usize) -> bool {
    records >= MAX_BATCH || bytes >= MAX_BATCH_BYTES
}

/// Called once with the outcome of a publish, from a thread of the bus: it must not block.
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
    /// It may be there all the same.
    #[error("no answer from the message log: the message may still appear")]
    Unknown,
}

/// How a dependency is, as health shows it.
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
    /// What is wrong, in a few words for the operator.
    pub detail: Option<String>,
}

impl Health {
    /// A part that is in the process: it is there when the process is.
    pub fn embedded() -> Self {
        Self {
            mode: "embedded",
            status: Status::Ok,
            detail: None,
        }
    }
}

/// Two closed variants and one predictable branch: no trait object.
pub enum Bus {
    Embedded(embedded::Embedded),
    Kafka(kafka::Kafka),
}

impl Bus {
    /// Appends a record; `ack` hears when the log has it.
    pub fn publish(&self, record: Outgoing, ack: Ack) {
        match self {
            // Other nodes, for whom the other topics are, there are none.
            Self::Embedded(_) if record.topic != Topic::Messages => ack(Ok(())),
            Self::Embedded(bus) => bus.publish(record, ack),
            Self::Kafka(bus) => bus.publish(&record, Some(ack)),
        }
    }

    /// Tells other nodes something that is worth nothing later: no acknowledgement, no retry.
    pub fn announce(&self, record: Outgoing) {
        match self {
            // There are no other nodes.
            Self::Embedded(_) => drop(record),
            Self::Kafka(bus) => bus.publish(&record, None),
        }
    }

    /// A sender has waited in vain for an acknowledgement.
    pub fn unanswered(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Kafka(bus) => bus.unanswered(),
        }
    }

    pub fn health(&self) -> Health {
        match self {
            Self::Embedded(_) => Health::embedded(),
            Self::Kafka(bus) => bus.health(),
        }
    }

    /// Waits until everything published has its outcome, or for `patience`, and ends the bus's threads.
    /// Blocks: call it outside the runtime's workers.
    pub fn stop(&self, patience: std::time::Duration) {
        match self {
            Self::Embedded(bus) => bus.stop(),
            Self::Kafka(bus) => bus.stop(patience),
        }
    }
}
