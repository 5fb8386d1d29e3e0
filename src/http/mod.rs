//! HTTP on raw hyper: listeners and their limits, the router, the upgrade's checks, CORS, health and REST.

mod cors;
mod framing;
pub mod limits;
pub mod listener;
mod response;
mod rest;
pub mod router;
mod upgrade;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

use crate::chat::Chat;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::ws::connection;
use cors::Cors;
use limits::Limits;

/// How long a start may wait for its dependencies before it says ready without them.
const MAX_STARTING: Duration = Duration::from_secs(10);

/// What a request is answered from.
pub struct Http {
    pub config: Arc<Config>,
    pub chat: Arc<Chat>,
    pub metrics: Arc<Metrics>,
    pub limits: Arc<Limits>,
    pub connections: Arc<connection::Shared>,
    /// WebSocket connections: upgraded sockets escape hyper's graceful shutdown.
    pub tracker: TaskTracker,
    pub life: Life,
    pub cors: Cors,
    /// The bound port, as health shows it.
    pub port: u16,
    /// `NODE_ID` and the boot id.
    pub node: String,
}

/// Where the process is between its start and its end.
pub struct Life {
    started: Instant,
    has_started: AtomicBool,
    is_draining: AtomicBool,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            has_started: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
        }
    }
}

impl Life {
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the start is over: once every dependency has answered, or has been waited for long enough.
    fn has_started(&self, is_connecting: impl FnOnce() -> bool) -> bool {
        if self.has_started.load(Ordering::Relaxed) {
            return true;
        }
        let has_started = self.started.elapsed() >= MAX_STARTING || !is_connecting();
        self.has_started.store(has_started, Ordering::Relaxed);
        has_started
    }
}

pub use cors::Cors as CorsPolicy;
