//! Who is connected, told to everyone in the session: beside the message path, which never waits for it.
//!
//! Joins and leaves mark their session; one task takes the marks of a window, folds them into net changes and
//! sends one status frame per session. The store behind this door is the node's own rosters ("embedded").

mod pipeline;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::bus::Health;
use crate::metrics::Metrics;
use crate::protocol::ids::SessionId;
use crate::protocol::status::ConnectionStatus;
use crate::session::Registry;
use crate::supervise;
use crate::ws::Outbox;

/// The presence store can't be asked now.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the presence store is not available")]
pub struct Unavailable;

pub struct Presence {
    registry: Arc<Registry>,
    inbox: Arc<Inbox>,
}

/// Sessions with something to tell. It holds at most one entry per session that has or had a connection within
/// the window, so it is bounded by the connections themselves.
#[derive(Default)]
struct Inbox {
    changed: Mutex<HashMap<SessionId, Change, RandomState>>,
    wake: Notify,
}

#[derive(Default)]
struct Change {
    /// Connections that have come: where nothing has changed, each gets a snapshot of its own.
    snapshot_for: Vec<Arc<Outbox>>,
}

impl Presence {
    /// Starts the pipeline task on the current runtime.
    pub fn start(registry: Arc<Registry>, window: Duration, metrics: Arc<Metrics>) -> Self {
        let inbox = Arc::new(Inbox::default());
        let (marks, sessions) = (Arc::clone(&inbox), Arc::clone(&registry));
        supervise::spawn("presence", move || {
            pipeline::run(
                Arc::clone(&marks),
                Arc::clone(&sessions),
                window,
                Arc::clone(&metrics),
            )
        });
        Self { registry, inbox }
    }

    /// A connection has come. Where that changes nothing, because its user was here already or is back within the
    /// window, it gets a snapshot of its own.
    pub fn joined(&self, session_id: &SessionId, outbox: &Arc<Outbox>) {
        self.inbox.mark(session_id, Some(outbox));
    }

    /// The last connection of a user has gone.
    pub fn left(&self, session_id: &SessionId) {
        self.inbox.mark(session_id, None);
    }

    /// Everyone connected to a session; an unknown one is empty.
    pub async fn status(&self, session_id: &SessionId) -> Result<ConnectionStatus, Unavailable> {
        let session = self.registry.get(session_id.as_str());
        Ok(session
            .map(|session| session.with_roster(|roster| roster.connected()).status())
            .unwrap_or_default())
    }

    pub fn health(&self) -> Health {
        Health::embedded()
    }
}

impl Inbox {
    fn mark(&self, session_id: &SessionId, outbox: Option<&Arc<Outbox>>) {
        let is_first = {
            let mut changed = self.changed.lock();
            let is_first = changed.is_empty();
            let change = changed.entry(session_id.clone()).or_default();
            change.snapshot_for.extend(outbox.cloned());
            is_first
        };
        // One wake per window, not per join.
        if is_first {
            self.wake.notify_one();
        }
    }
}
