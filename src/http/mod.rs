//! HTTP, directly on hyper: listeners and their limits, the router, the checks of an upgrade, CORS, health and REST.

mod access;
pub mod addresses;
mod body;
pub mod cors;
mod demo;
mod disconnect;
mod forwarded;
mod framing;
mod framing_guard;
mod headers;
pub mod keep_alive;
pub mod key_set;
pub mod limits;
pub mod listener;
mod messages;
pub mod per_user;
mod places;
mod proxy_protocol;
mod publish;
pub mod refusal;
mod request_path;
mod response;
mod rest;
pub mod router;
mod sessions;
mod specification;
mod upgrade;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio_util::task::TaskTracker;

use crate::auth::Auth;
use crate::chat::Chat;
use crate::config::Config;
use crate::fanout::backend::RingInUse;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::ws::connection;
use addresses::Addresses;
use cors::Cors;
use keep_alive::Pool;
use limits::Limits;
use listener::SpareSockets;
use router::ListenerKind;

/// Everything that requests are answered from.
pub struct Http {
    pub config: Arc<Config>,
    pub auth: Arc<Auth>,
    pub chat: Arc<Chat>,
    pub metrics: Arc<Metrics>,
    pub limits: Arc<Limits>,
    pub addresses: Addresses,
    pub connections: Arc<connection::Shared>,
    /// WebSocket connections: upgraded sockets escape hyper's graceful shutdown.
    pub tracker: TaskTracker,
    pub lifecycle: Arc<Lifecycle>,
    /// Sockets that speak plain HTTP, on all ports.
    pub plain: AtomicUsize,
    pub spare_sockets: SpareSockets,
    /// Which of them may be closed for others, by listener: public sockets never displace the admin port's.
    pub pool: Arc<Pool>,
    pub admin_pool: Arc<Pool>,
    pub cors: Cors,
    pub ring_in_use: RingInUse,
    /// The bound port, as health shows it.
    pub port: u16,
}

impl Http {
    fn pool(&self, kind: ListenerKind) -> &Arc<Pool> {
        match kind {
            ListenerKind::Public => &self.pool,
            ListenerKind::Admin => &self.admin_pool,
        }
    }
}
