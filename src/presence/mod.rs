//! Announces to everyone in a session who is connected. The message path never waits for it.
//!
//! Joins and leaves mark their session in [`dirty_sessions`]; one task collects the changes of a window, folds them
//! into net changes and sends one status frame per session. Who is connected is kept in the node's own sessions
//! ([`embedded`]) or, for all nodes together, in [`redis`]. Both send frames by the same rules: [`status_frames`].
//! Agents who watch all sessions are in the [`lobby`].

pub mod dirty_sessions;
mod embedded;
mod grace;
pub mod lobby;
mod newest_receipts;
mod parts;
mod receipts;
mod redis;
mod status_frames;
mod unavailable;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::auth::Sessions;
use crate::bus::Health;
use crate::config::Config;
use crate::error::StartError;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::lobby::{Position, SessionPage, StateFilter};
use crate::protocol::receipt::Receipt;
use crate::protocol::status::ConnectionStatus;
use crate::session::Registry;
use crate::session::disconnects::Disconnects;
use crate::supervise;
use crate::writer::ConnectionWriter;
use dirty_sessions::DirtySessions;
use lobby::Lobby;
pub use parts::Parts;
use parts::Times;
use receipts::Receipts;
pub use redis::ControlStream;
pub use unavailable::Unavailable;

pub struct Presence {
    dirty: Arc<DirtySessions>,
    registry: Arc<Registry>,
    receipts: Receipts,
    pub lobby: Arc<Lobby>,
    store: Store,
    /// Where disconnects are kept without Kafka.
    pub control: Option<Arc<ControlStream>>,
    task: Mutex<Option<JoinHandle<()>>>,
    lobby_task: JoinHandle<()>,
}

/// Where presence is kept.
enum Store {
    Embedded,
    Redis(Arc<redis::Store>),
}

impl Presence {
    /// Starts the presence task on the current runtime.
    ///
    /// # Errors
    ///
    /// The client library refuses the Redis address.
    pub fn start(parts: Parts, config: &Config, disconnects: &Arc<Disconnects>) -> Result<Self, StartError> {
        let (dirty, registry) = (Arc::clone(&parts.dirty), Arc::clone(&parts.registry));
        let receipts = Receipts::new(&parts);
        let lobby = Arc::clone(&parts.lobby);
        let times = Times {
            window: config.presence_flush,
            grace: config.presence_grace,
            ttl: config.presence_ttl,
        };
        let mut control = None;
        let (store, task) = match &config.redis {
            None => {
                let task = supervise::spawn("presence", move || {
                    let (dirty, registry) = (Arc::clone(&parts.dirty), Arc::clone(&parts.registry));
                    let (lobby, metrics) = (Arc::clone(&parts.lobby), Arc::clone(&parts.metrics));
                    embedded::run(dirty, registry, lobby, times, metrics)
                });
                (Store::Embedded, task)
            }
            Some(settings) => {
                let (is_shared, metrics) = (parts.bus.is_shared(), Arc::clone(&parts.metrics));
                let (store, task) = redis::start(parts, settings, times)?;
                control = (!is_shared).then(|| redis::start_control(&store, disconnects, metrics));
                (Store::Redis(store), task)
            }
        };
        let of_task = Arc::clone(&lobby);
        Ok(Self {
            dirty,
            registry,
            receipts,
            lobby,
            store,
            control,
            task: Mutex::new(Some(task)),
            lobby_task: supervise::spawn("lobby", move || Arc::clone(&of_task).run()),
        })
    }

    /// A connection was opened. If that changes nothing, because its user was here already or is back within the
    /// window, the connection gets its own snapshot. It also gets how far the session's users have read.
    pub fn connection_opened(
        &self,
        session_id: &SessionId,
        user_id: &UserId,
        writer: &Arc<ConnectionWriter>,
    ) {
        if matches!(self.store, Store::Embedded) {
            self.receipts.send_state(session_id, writer);
        }
        self.dirty.connection_opened(session_id, user_id, writer);
    }

    /// A user has read their session's messages up to one of them. With Redis, the others see it once it is stored: it
    /// knows what users have read by way of other nodes.
    pub fn mark_read(&self, receipt: Receipt) {
        match self.store {
            Store::Embedded => drop(self.receipts.show(&receipt)),
            Store::Redis(_) => self.dirty.receipt(receipt),
        }
    }

    /// A connection was closed. If it was its user's last, the grace starts.
    pub fn connection_closed(&self, session_id: &SessionId, user_id: &UserId, is_last: bool) {
        self.dirty.connection_closed(session_id, user_id, is_last);
    }

    /// A user has started or stopped typing.
    pub fn typing(&self, session_id: &SessionId, user_id: &UserId, is_typing: bool) {
        if matches!(self.store, Store::Redis(_)) {
            self.dirty.typing(session_id, user_id, is_typing);
        }
    }

    /// Everyone connected to a session; an unknown session is empty.
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
                        self.dirty.request_check(session_id);
                    }
                }
                Ok(status)
            }
        }
    }

    /// A page of the sessions of all nodes with somebody connected, as far as `scope` covers them.
    pub async fn sessions(
        &self,
        filter: StateFilter,
        scope: &Sessions,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<SessionPage, Unavailable> {
        match &self.store {
            Store::Embedded => self.lobby.page(filter, scope, after, limit).await,
            Store::Redis(store) => store.session_page(filter, scope, after, limit).await,
        }
    }

    /// Whether Redis says who is refused, and will soon be read for the first time.
    pub fn awaits_refusals(&self, uptime: Duration) -> bool {
        /// As long as clients of a starting node wait for it: it may be down.
        const FIRST_ANSWER: Duration = Duration::from_secs(3);
        match &self.store {
            Store::Embedded => false,
            Store::Redis(store) => uptime < FIRST_ANSWER && store.is_control_unread(),
        }
    }

    pub fn health(&self) -> Health {
        match &self.store {
            Store::Embedded => Health::embedded(),
            Store::Redis(store) => store.health(),
        }
    }

    /// Removes this node's users from the store, within `timeout`.
    pub async fn stop(&self, timeout: Duration) {
        self.lobby_task.abort();
        self.dirty.stop(timeout);
        let task = self.task.lock().take();
        if let Some(task) = task
            && tokio::time::timeout(timeout, task).await.is_err()
        {
            tracing::warn!(
                "presence could not be removed in time: other nodes will remove it within PRESENCE_TTL"
            );
        }
    }
}
