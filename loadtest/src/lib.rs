//! The load generator's parts, and what the bare loop (`src/bin/floor`) shares with it.
//!
//! - [`crowd`]: thousands of clients on one epoll; [`ws`] has their frames
//! - [`message`]: messages to all of them (workloads A, B, C); [`template`] says what they look like
//! - [`idle`]: connections that do nothing (D)
//! - [`presence`]: connect storms (E), and what presence adds to them
//! - [`resume`]: clients that come back to another node, all at once (F)
//! - [`foreign`]: records of sessions that a node does not have
//! - [`scale`]: what all of that comes to for a cluster; computed, not measured
//! - [`node`]: the server or bare loop under test; [`process`], [`services`], [`kafka`]: what that takes
//! - [`feed`]: how the bare loop gets messages
//! - [`wrong_tokens`]: thousands of wrong tokens, beside clients with good ones; [`tokens`] makes both
//! - [`timing`]: how often and how long messages are measured
//! - [`report`]: tables and JSON; [`targets`]: the ratios that matter
//! - [`remote`]: other servers

pub mod crowd;
pub mod feed;
pub mod foreign;
pub mod idle;
pub mod kafka;
pub mod message;
pub mod node;
pub mod presence;
pub mod process;
pub mod remote;
pub mod report;
pub mod resume;
pub mod scale;
pub mod services;
pub mod targets;
pub mod template;
pub mod timing;
pub mod tokens;
pub mod wrong_tokens;
pub mod ws;
