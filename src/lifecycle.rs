//! The phases of the process: starting, running, draining.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the start waits for dependencies before the node reports ready without them.
const MAX_STARTING: Duration = Duration::from_secs(10);

pub struct Lifecycle {
    started: Instant,
    has_started: AtomicBool,
    is_draining: AtomicBool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            has_started: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
        }
    }
}

impl Lifecycle {
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the start is over: every dependency has answered, or [`MAX_STARTING`] has passed.
    pub fn has_started(&self, is_connecting: impl FnOnce() -> bool) -> bool {
        if self.has_started.load(Ordering::Relaxed) {
            return true;
        }
        let has_started = self.started.elapsed() >= MAX_STARTING || !is_connecting();
        self.has_started.store(has_started, Ordering::Relaxed);
        has_started
    }
}
