//! What has been said lately, for clients that come back and for messages that are sent again.
//!
//! - [`recent_log`]: what this node has read lately from the messages topic, in [`segment`]s
//! - [`range`]: which of it follows what a client has
//! - [`message_id`]: whether a record has the message with some id
//! - [`query`]: what is older, as the reader of the log collects it
//! - [`page`]: the same, a page at a time
//! - [`replay`]: passes it to the client's writer, as fast as the socket takes it
//! - [`sent`]: what clients have sent lately, by which repeats are recognized
//! - [`partitioner`]: the partition of a session's keyed records

mod message_id;
pub mod page;
#[cfg(test)]
mod page_tests;
mod partitioner;
pub mod query;
pub mod range;
pub mod recent_log;
pub mod replay;
mod segment;
pub mod sent;
#[cfg(test)]
mod tests;

pub use page::Page;
pub use range::{Limits, NotHere, find, find_message, is_quick};
pub use recent_log::RecentLog;
pub use replay::LogReplay;
pub use segment::LogRecord;
pub use sent::{Sent, SentMessages};
