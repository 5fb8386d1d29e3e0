//! Presence of all nodes in Redis.
//!
//! - [`store`]: the one connection and its scripts; [`answers`]: what they say; [`keys`]: what is in Redis
//! - [`cause`]: why it does not do what it should, in words
//! - [`standing`]: this node's name and lease, and whether Redis knows all that it should
//! - [`pipeline`]: the task that owns all writes: folds a window's marks ([`pending`]) and sends them ([`writing`])
//! - [`checks`]: whether what was written is still there
//! - [`audience`]: the clients here; [`shown`]: what one session was shown, and so what is news to it
//! - [`news`]: the other nodes, and what is still to be told
//! - [`reaper`]: takes back what dead nodes held, ourselves before included
//!
//! Writes are absolute ("this node holds k connections of this user"), so that a repeat after a timeout changes
//! nothing. Records on the status topic only say that a session has changed: the truth is asked of Redis, and
//! what clients are told is the difference to what they were shown. So whatever is repeated, by a reaper that
//! took over from a dead reaper or by a retry, is told once.

mod answers;
mod audience;
mod cause;
mod checks;
mod keys;
mod listing;
mod news;
mod pending;
mod pipeline;
mod reaper;
mod shown;
mod standing;
mod store;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Parts;
use crate::config::RedisConfig;
use crate::error::StartError;
use crate::presence;
use crate::supervise;
use pipeline::Pipeline;
pub use store::Store;

/// A lease is renewed at least so often, and Redis looked after.
const MAX_HEARTBEAT: Duration = Duration::from_secs(1);

/// The times of a lease. A node that dies just after a heartbeat, and a reaper that dies having just claimed it,
/// still let the last leave be told within `PRESENCE_TTL`.
#[derive(Clone, Copy)]
struct Times {
    window: Duration,
    heartbeat: Duration,
    lease: Duration,
    /// How long a reaper has a dead node for itself without another heartbeat.
    claim: Duration,
    ttl: Duration,
    /// `PRESENCE_GRACE`.
    grace: Duration,
}

impl Times {
    fn of(times: presence::Times) -> Self {
        let presence::Times { window, grace, ttl } = times;
        let heartbeat = MAX_HEARTBEAT.min(ttl / 12);
        Self {
            window,
            heartbeat,
            lease: ttl / 2,
            claim: 3 * heartbeat,
            ttl,
            grace,
        }
    }
}

/// Starts the pipeline task. A Redis that is down is no error.
pub fn start(
    parts: Parts,
    settings: &RedisConfig,
    times: presence::Times,
) -> Result<(Arc<Store>, JoinHandle<()>), StartError> {
    let store = Arc::new(Store::new(settings).map_err(|_| StartError::RedisUrl)?);
    let for_task = Arc::clone(&store);
    let (parts, times) = (Arc::new(parts), Times::of(times));
    let task = supervise::spawn("presence", move || {
        Pipeline::new(Arc::clone(&for_task), Arc::clone(&parts), times).run()
    });
    Ok((store, task))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn times(ttl: Duration) -> Times {
        Times::of(presence::Times {
            window: Duration::from_millis(10),
            grace: Duration::from_secs(2),
            ttl,
        })
    }

    #[test]
    fn a_leave_is_told_within_the_ttl_also_when_the_reaper_dies() {
        for ttl in [1, 3, 10, 60, 3600].map(Duration::from_secs) {
            let times = times(ttl);
            // The lease, the heartbeat that finds it, the claim of a reaper that dies, the heartbeat that finds that.
            let longest = times.lease + times.heartbeat + times.claim + times.heartbeat;
            assert!(longest < ttl, "{longest:?} of {ttl:?}");
            assert!(times.claim > 2 * times.heartbeat && times.lease > 5 * times.heartbeat);
        }
    }
}
