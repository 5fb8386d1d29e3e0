//! Chat messages from a publisher to every socket of their session: the cost of a delivery, and how long it takes.
//!
//! - [`marker`]: what a message carries to be measured
//! - [`publisher`]: sends by a clock; [`http`] for servers that take messages so
//! - [`readers`]: counts, checks and times what arrives
//! - [`sequences`]: whether each message came once
//! - [`slow`]: a client that reads too slowly
//! - [`workload`]: A, B and C
//! - [`run`]: one round of one arm

pub mod http;
pub mod marker;
pub mod publisher;
pub mod readers;
pub mod run;
pub mod sequences;
pub mod slow;
pub mod workload;
