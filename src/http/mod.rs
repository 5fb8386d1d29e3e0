//! HTTP on raw hyper: listeners and their limits, the router, the upgrade's checks, CORS, health and REST.

pub mod cors;
pub mod limits;
pub mod listener;
pub mod refusal;
mod response;
mod rest;
pub mod router;
mod upgrade;
mod watched;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio_util::task::TaskTracker;

use crate::chat::Chat;
use crate::config::Config;
use crate::life::Life;
use crate::metrics::Metrics;
use crate::ws::connection;
use cors::Cors;
use limits::Limits;

/// What a request is answered from.
pub struct Http {
    pub config: Arc<Config>,
    pub chat: Arc<Chat>,
    pub metrics: Arc<Metrics>,
    pub limits: Arc<Limits>,
    pub connections: Arc<connection::Shared>,
    /// WebSocket connections: upgraded sockets escape hyper's graceful shutdown.
    pub tracker: TaskTracker,
    pub life: Arc<Life>,
    /// Sockets that speak plain HTTP, on all ports.
    pub plain: AtomicUsize,
    pub cors: Cors,
    /// The bound port, as health shows it.
    pub port: u16,
}
