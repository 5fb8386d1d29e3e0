//! Presence of all nodes in Redis.
//!
//! - [`store`]: the connection and its scripts; [`answers`]: their replies; [`keys`]: what is stored
//! - [`cause`]: failures of Redis in words for the operator
//! - [`node_lease`]: this node's name and lease; [`sync_state`]: whether Redis knows everything it should
//! - [`presence_task`]: the task that owns all writes. It connects and renews the lease ([`lease_renewal`]), folds the
//!   changes of a window ([`pending`]) and writes them ([`writing`])
//! - [`checks`]: which sessions to compare with Redis next
//! - [`client_notifier`]: notifies the clients of this node; [`client_view`]: what was announced to those of a session
//! - [`reads`]: how far users have read
//! - [`session_index`]: what has to be written to the index of all sessions; [`session_entry`]: one session in it;
//!   [`index_store`]: its commands and pages; [`indexing`]: the task writes it, and follows it for the lobby
//!   ([`lobby_feed`])
//! - [`status_publisher`]: publishes to the other nodes, and tracks what the log has not acknowledged
//! - [`control`]: whom backends disconnect, where there is no Kafka; [`control_state`]: whether that is known;
//!   [`control_ledger`]: which records are newer than others
//! - [`reaper`]: removes users of dead nodes, and of this node's retired names
//!
//! Writes are absolute ("this node holds k connections of this user"), so that repeating one after a timeout changes
//! nothing. A record on the status topic only says that a session has changed: the state itself is read from Redis, and
//! clients are sent the difference to what was announced before. So whatever is repeated, by a reaper that takes over
//! from a dead reaper or by a retry, is announced once.

mod answers;
mod cause;
mod checks;
mod client_notifier;
mod client_view;
mod control;
mod control_ledger;
mod control_state;
mod index_store;
mod indexing;
mod keys;
mod lease_renewal;
mod listing;
mod lobby_feed;
mod node_lease;
mod pending;
mod presence_task;
mod reads;
mod reaper;
mod session_entry;
mod session_index;
mod status_publisher;
mod store;
#[cfg(test)]
#[path = "sync_simulation_tests.rs"]
mod sync_simulation;
mod sync_state;
mod timings;
mod writing;

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::parts::{Parts, Times};
use crate::config::RedisConfig;
use crate::error::StartError;
use crate::metrics::Metrics;
use crate::session::disconnects::Disconnects;
use crate::supervise;
pub use control::ControlStream;
use presence_task::PresenceTask;
pub use store::Store;
use timings::Timings;

/// Starts the presence task. It is no error if Redis is unavailable.
pub fn start(
    parts: Parts,
    settings: &RedisConfig,
    times: Times,
) -> Result<(Arc<Store>, JoinHandle<()>), StartError> {
    let store = Arc::new(Store::new(settings).map_err(|_| StartError::RedisUrl)?);
    let for_task = Arc::clone(&store);
    let (parts, timings) = (Arc::new(parts), Timings::of(times));
    let task = supervise::spawn("presence", move || {
        PresenceTask::new(Arc::clone(&for_task), Arc::clone(&parts), timings).run()
    });
    Ok((store, task))
}

/// Starts to read whom backends disconnect, where there is no Kafka.
pub fn start_control(
    store: &Arc<Store>,
    disconnects: &Arc<Disconnects>,
    metrics: Arc<Metrics>,
) -> Arc<ControlStream> {
    let stream = ControlStream::new(Arc::clone(store), Arc::clone(disconnects), metrics);
    let stream = Arc::new(stream);
    let for_task = Arc::clone(&stream);
    // It ends with the process.
    drop(supervise::spawn("control", move || Arc::clone(&for_task).run()));
    stream
}
