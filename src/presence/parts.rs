//! What presence is started with.

use std::sync::Arc;
use std::time::Duration;

use super::dirty_sessions::DirtySessions;
use super::lobby::Lobby;
use crate::bus::Bus;
use crate::metrics::Metrics;
use crate::session::{Activity, Registry};

/// What presence needs.
pub struct Parts {
    pub dirty: Arc<DirtySessions>,
    pub registry: Arc<Registry>,
    pub activity: Arc<Activity>,
    pub bus: Arc<Bus>,
    pub metrics: Arc<Metrics>,
    pub lobby: Arc<Lobby>,
    /// `NODE_ID` and the boot id.
    pub node: String,
}

/// The configured durations.
#[derive(Clone, Copy)]
pub struct Times {
    /// `PRESENCE_FLUSH`.
    pub window: Duration,
    /// `PRESENCE_GRACE`.
    pub grace: Duration,
    /// `PRESENCE_TTL`.
    pub ttl: Duration,
}
