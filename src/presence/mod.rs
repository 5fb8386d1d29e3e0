//! Who is connected, told to everyone in the session: beside the message path, which never waits for it.
//!
//! Joins and leaves mark their session in the [`inbox`]; one task takes the marks of a window, folds them into net
//! changes and sends one status frame per session. The store behind this door is the node's own sessions
//! ([`embedded`]) or, for all nodes together, [`redis`].

mod embedded;
mod grace;
pub mod inbox;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::bus::{Bus, Health};
use crate::config::Config;
use crate::error::StartError;
use crate::metrics::Metrics;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::ConnectionStatus;
use crate::session::Registry;
use crate::supervise;
use crate::writer::ConnectionWriter;
use inbox::Inbox;

/// A session with more than [`crate::protocol::status::MAX_LISTED_USERS`] users gets at most one status frame in this
/// time: else n joins cost n squared bytes.
const LARGE_SESSION_INTERVAL: Duration = Duration::from_secs(1);

/// How long things take.
#[derive(Clone, Copy)]
struct Times {
    /// `PRESENCE_FLUSH`.
    window: Duration,
    /// `PRESENCE_GRACE`.
    grace: Duration,
    /// `PRESENCE_TTL`.
    ttl: Duration,
}

/// The presence store can't be asked now.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the presence store is not available")]
pub struct Unavailable;

pub struct Presence {
    inbox: Arc<Inbox>,
    registry: Arc<Registry>,
    store: Store,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Two closed variants, as with the bus.
enum Store {
    Embedded,
    Redis(Arc<redis::Store>),
}

/// What presence is made of.
pub struct Parts {
    pub inbox: Arc<Inbox>,
    pub registry: Arc<Registry>,
    pub bus: Arc<Bus>,
    pub metrics: Arc<Metrics>,
    /// `NODE_ID` and the boot id.
    pub node: String,
}

impl Presence {
    /// Starts the pipeline task on the current runtime.
    ///
    /// # Errors
    ///
    /// A Redis address that the client library refuses.
    pub fn start(parts: Parts, config: &Config) -> Result<Self, StartError> {
        let (inbox, registry) = (Arc::clone(&parts.inbox), Arc::clone(&parts.registry));
        let times = Times {
            window: config.presence_flush,
            grace: config.presence_grace,
            ttl: config.presence_ttl,
        };
        let (store, task) = match &config.redis {
            None => {
                let task = supervise::spawn("presence", move || {
                    let (inbox, registry) = (Arc::clone(&parts.inbox), Arc::clone(&parts.registry));
                    embedded::run(inbox, registry, times, Arc::clone(&parts.metrics))
                });
                (Store::Embedded, task)
            }
            Some(settings) => {
                let (store, task) = redis::start(parts, settings, times)?;
                (Store::Redis(store), task)
            }
        };
        Ok(Self {
            inbox,
            registry,
            store,
            task: Mutex::new(Some(task)),
        })
    }

    /// A connection has come. Where that changes nothing, because its user was here already or is back within the
    /// window, it gets a snapshot of its own.
    pub fn joined(&self, session_id: &SessionId, user_id: &UserId, writer: &Arc<ConnectionWriter>) {
        self.inbox.joined(session_id, user_id, writer);
    }

    /// A connection has gone, maybe its user's last: then the grace begins.
    pub fn left(&self, session_id: &SessionId, user_id: &UserId, is_last: bool) {
        self.inbox.left(session_id, user_id, is_last);
    }

    /// A user here types, or has stopped.
    pub fn typing(&self, session_id: &SessionId, user_id: &UserId, is_typing: bool) {
        if matches!(self.store, Store::Redis(_)) {
            self.inbox.typing(session_id, user_id, is_typing);
        }
    }

    /// Everyone connected to a session; an unknown one is empty.
    pub async fn status(&self, session_id: &SessionId) -> Result<ConnectionStatus, Unavailable> {
        match &self.store {
            Store::Embedded => {
                let session = self.registry.get(session_id.as_str());
                let connected = session.map(|session| session.with_users(|users| users.connected()));
                Ok(connected.map(|connected| connected.status()).unwrap_or_default())
            }
            Store::Redis(store) => {
                let status = store.status(session_id).await?;
                if let Some(session) = self.registry.get(session_id.as_str()) {
                    let held = session.with_users(|users| users.ids());
                    if held.iter().any(|user_id| !status.users.contains_key(user_id)) {
                        self.inbox.doubt(session_id);
                    }
                }
                Ok(status)
            }
        }
    }

    pub fn health(&self) -> Health {
        match &self.store {
            Store::Embedded => Health::embedded(),
            Store::Redis(store) => store.health(),
        }
    }

    /// Takes this node's users out of the store, as far as `patience` allows.
    pub async fn stop(&self, patience: Duration) {
        self.inbox.stop(patience);
        let task = self.task.lock().take();
        if let Some(task) = task
            && tokio::time::timeout(patience, task).await.is_err()
        {
            tracing::warn!("presence could not be removed in time: other nodes will, within PRESENCE_TTL");
        }
    }
}
