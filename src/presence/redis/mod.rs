//! Presence of all nodes in Redis.
//!
//! - [`store`]: keys, scripts, and the one connection
//! - [`pipeline`]: the task that owns all writes: folds, sends, shows, publishes
//! - [`shown`]: what clients here were shown, and so what is news to them
//!
//! Writes are absolute ("this node holds k connections of this user"), so that a repeat after a timeout changes
//! nothing. Records on the status topic only say that a session has changed: the truth is asked of Redis, and
//! what clients are told is the difference to what they were shown. So whatever is repeated, by a reaper that
//! took over from a dead reaper or by a retry, is told once.

mod pipeline;
mod shown;
mod store;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Parts;
use crate::error::StartError;
use crate::supervise;
use pipeline::Pipeline;
pub use store::Store;

/// A lease is renewed at least so often, and Redis looked after.
const MAX_HEARTBEAT: Duration = Duration::from_secs(1);

/// Starts the pipeline task. A Redis that is down is no error.
pub fn start(
    parts: Parts,
    url: &str,
    window: Duration,
    ttl: Duration,
) -> Result<(Arc<Store>, JoinHandle<()>), StartError> {
    // A dead node's lease ends, and then some node's heartbeat finds it: both within the TTL.
    let (lease, heartbeat) = (ttl * 2 / 3, MAX_HEARTBEAT.min(ttl / 6));
    let store = Arc::new(Store::new(url, parts.node.clone(), lease).map_err(|_| StartError::RedisUrl)?);
    let for_task = Arc::clone(&store);
    let parts = Arc::new(parts);
    let task = supervise::spawn("presence", move || {
        Pipeline::new(Arc::clone(&for_task), Arc::clone(&parts), window, heartbeat, ttl).run()
    });
    Ok((store, task))
}
