//! Carries out what control records ask for: closes a user's connections in a session, and refuses the user there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::refusals::Refusals;
use super::{Member, Registry};
use crate::clock;
use crate::logging::LogLimit;
use crate::metrics::Metrics;
use crate::protocol::code::CloseCode;
use crate::protocol::control::{self, Disconnect, Refusal};
use crate::protocol::ids::SessionId;
use crate::writer::{BacklogPolicy, ConnectionWriter};

const LOG_INTERVAL: Duration = Duration::from_secs(10);

pub struct Disconnects {
    registry: Arc<Registry>,
    refusals: Refusals,
    /// Those who wait until this node has read what they wrote.
    waiting: Mutex<HashMap<Uuid, oneshot::Sender<Option<i64>>>>,
    /// When this node started, in milliseconds since 1970: nobody was connected before.
    started: i64,
    metrics: Arc<Metrics>,
    full_log: Mutex<LogLimit>,
}

/// Ends when this node has read a record.
pub struct InForce<'a> {
    id: Uuid,
    of: &'a Disconnects,
    read: oneshot::Receiver<Option<i64>>,
}

impl InForce<'_> {
    /// Returns until when the user was refused then, in milliseconds since 1970.
    pub async fn wait(mut self) -> Option<i64> {
        // The sender is only dropped with this.
        (&mut self.read).await.ok().flatten()
    }
}

impl Drop for InForce<'_> {
    fn drop(&mut self) {
        self.of.waiting.lock().remove(&self.id);
    }
}

impl Disconnects {
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            refusals: Refusals::default(),
            waiting: Mutex::default(),
            started: clock::unix_ms(),
            metrics,
            full_log: Mutex::new(LogLimit::new(LOG_INTERVAL)),
        }
    }

    /// To be called before the record is written.
    pub fn expect(&self, id: Uuid) -> InForce<'_> {
        let (sender, read) = oneshot::channel();
        self.waiting.lock().insert(id, sender);
        InForce { id, of: self, read }
    }

    /// Until when a user is refused in a session, in milliseconds since 1970.
    pub fn refused_until(&self, session_id: &SessionId, user_id: &str) -> Option<i64> {
        let key = || control::key(session_id.as_str(), user_id);
        self.refusals.until(key, clock::unix_ms())
    }

    pub fn is_refused(&self, session_id: &SessionId, user_id: &str) -> bool {
        self.refused_until(session_id, user_id).is_some()
    }

    /// Closes a connection that has joined while its user was being refused: either this sees the refusal, or the
    /// refusal saw the connection. Returns whether it did.
    pub fn close_if_refused(&self, session_id: &SessionId, member: &Member) -> bool {
        let is_refused = self.is_refused(session_id, member.user_id.as_str());
        if is_refused {
            close(&member.writer);
        }
        is_refused
    }

    /// This node has read a record. The refusal is set before connections are looked for: see
    /// [`Self::close_if_refused`].
    pub fn read(&self, disconnect: &Disconnect) {
        let now = clock::unix_ms();
        let until = disconnect.refusal.until();
        let dropped = match disconnect.refusal {
            Refusal::Stays => 0,
            Refusal::Ends | Refusal::Until(_) => self.refusals.set(&disconnect.user_key(), until, now),
        };
        if dropped > 0 {
            self.metrics.disconnects.refusals_dropped.inc_by(dropped);
            if self.full_log.lock().allows() {
                tracing::error!(
                    "too many users are refused: those whose refusal ends soonest are let in again"
                );
            }
        }
        // What was asked for before this node started was about connections of other nodes.
        if until.is_some_and(|until| until > now) || disconnect.at >= self.started {
            self.close_all(disconnect);
        }
        self.metrics.disconnects.read.inc();
        self.answer(disconnect);
    }

    /// Tells who waits for this record that it has been read, also if it changes nothing.
    pub fn answer(&self, disconnect: &Disconnect) {
        let waiting = self.waiting.lock().remove(&disconnect.id);
        if let Some(waiting) = waiting {
            let until = self.refused_until(&disconnect.session_id, disconnect.user_id.as_str());
            let _ = waiting.send(until);
        }
    }

    fn close_all(&self, disconnect: &Disconnect) {
        let Some(session) = self.registry.get(disconnect.session_id.as_str()) else {
            return;
        };
        let mut closed = 0;
        for member in session.members().iter() {
            if member.user_id == disconnect.user_id {
                closed += usize::from(close(&member.writer));
            }
        }
        if closed > 0 {
            let (session, user) = (&disconnect.session_id, disconnect.user_id.in_log());
            tracing::info!("Disconnected {user} from session {session} for a backend: {closed} connections");
        }
    }

    /// Forgets what has ended.
    pub fn tick(&self) {
        let count = self.refusals.expire(clock::unix_ms());
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.disconnects.refusals.set(count);
    }
}

/// Whether this was the first to close it.
fn close(writer: &Arc<ConnectionWriter>) -> bool {
    let reason = "disconnected by the backend";
    writer.close(CloseCode::Forbidden, reason, BacklogPolicy::Discard)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::protocol::ids::{UserId, UserType};
    use crate::session::testing::{Start, member};

    const HOUR: i64 = 3_600_000;

    fn session() -> SessionId {
        SessionId::parse("s").unwrap()
    }

    fn disconnect(user: &str, at: i64, refusal: Refusal) -> Disconnect {
        Disconnect::new(&session(), &UserId::parse(user).unwrap(), at, refusal)
    }

    fn join(registry: &Registry, member: &Member) {
        registry.join(&session(), member, UserType::Agent, Start::Live, |_| {
            Bytes::from_static(b"hi")
        });
    }

    #[tokio::test]
    async fn a_users_connections_are_closed_and_nobody_elses() {
        let (registry, metrics) = (Arc::new(Registry::default()), Arc::new(Metrics::default()));
        let disconnects = Disconnects::new(Arc::clone(&registry), metrics);
        let (first, mut client) = member("u").await;
        let (second, _client) = member("u").await;
        let (other, _other_client) = member("v").await;
        for member in [&first, &second, &other] {
            join(&registry, member);
        }
        let now = clock::unix_ms();
        disconnects.read(&disconnect("u", now - HOUR, Refusal::Stays));
        assert!(first.writer.is_open(), "from before this node started");
        disconnects.read(&disconnect("u", now - HOUR, Refusal::Until(now - 1)));
        assert!(first.writer.is_open(), "and over");
        disconnects.read(&disconnect("u", now + 1, Refusal::Stays));
        assert!(!first.writer.is_open() && !second.writer.is_open());
        assert!(other.writer.is_open());
        assert!(!disconnects.is_refused(&session(), "u"));
        let mut got = Vec::new();
        drop((first, second));
        let _ = tokio::time::timeout(Duration::from_millis(200), client.read_to_end(&mut got)).await;
        assert!(got.starts_with(&[b'h', b'i', 0x88]), "{got:?}");
        assert_eq!(u16::from_be_bytes([got[4], got[5]]), 4403);
    }

    #[tokio::test]
    async fn who_is_refused_is_known_until_it_ends() {
        let registry = Arc::new(Registry::default());
        let disconnects = Disconnects::new(Arc::clone(&registry), Arc::default());
        let now = clock::unix_ms();
        let (joined, _client) = member("u").await;
        join(&registry, &joined);
        let written = disconnect("u", now - HOUR, Refusal::Until(now + HOUR));
        let in_force = disconnects.expect(written.id);
        disconnects.read(&written);
        assert_eq!(in_force.wait().await, Some(now + HOUR));
        assert!(disconnects.waiting.lock().is_empty());
        assert!(!joined.writer.is_open(), "refused, whenever that was asked for");
        assert_eq!(disconnects.refused_until(&session(), "u"), Some(now + HOUR));
        let (late, _client) = member("u").await;
        assert!(disconnects.close_if_refused(&session(), &late) && !late.writer.is_open());
        // A record without a time was written by a node that does not know the refusal yet.
        let closes = disconnect("u", now, Refusal::Stays);
        let in_force = disconnects.expect(closes.id);
        disconnects.read(&closes);
        assert_eq!(in_force.wait().await, Some(now + HOUR));
        assert!(disconnects.is_refused(&session(), "u"));
        disconnects.read(&disconnect("u", now, Refusal::Ends));
        assert!(!disconnects.is_refused(&session(), "u"));
        drop(disconnects.expect(Uuid::now_v7()));
        assert!(disconnects.waiting.lock().is_empty(), "nobody waits any more");
    }

    /// While the refusal waits for the session's members, it is in force already: who joins after that sees it.
    #[tokio::test]
    async fn a_refusal_is_in_force_before_connections_are_looked_for() {
        let registry = Arc::new(Registry::default());
        let disconnects = Disconnects::new(Arc::clone(&registry), Arc::default());
        let (joined, _client) = member("v").await;
        join(&registry, &joined);
        let session = registry.get("s").unwrap();
        let refuses = disconnect("u", 0, Refusal::Until(clock::unix_ms() + HOUR));
        std::thread::scope(|scope| {
            // The session's lock is held.
            session.with_users(|_| {
                scope.spawn(|| disconnects.read(&refuses));
                let until = std::time::Instant::now() + Duration::from_secs(5);
                while !disconnects.is_refused(&session.id, "u") {
                    assert!(std::time::Instant::now() < until, "it waits for the members");
                    std::thread::yield_now();
                }
            });
        });
    }

    /// A join and a refusal at the same time: the connection never survives.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_connection_that_joins_during_a_refusal_is_closed() {
        let registry = Arc::new(Registry::default());
        let disconnects = Disconnects::new(Arc::clone(&registry), Arc::default());
        for round in 0..200 {
            let (joins, _client) = member("u").await;
            let until = clock::unix_ms() + HOUR;
            let refuses = disconnect("u", 0, Refusal::Until(until));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..round % 20 {
                        std::hint::spin_loop();
                    }
                    disconnects.read(&refuses);
                });
                join(&registry, &joins);
                disconnects.close_if_refused(&session(), &joins);
            });
            assert!(!joins.writer.is_open(), "round {round}");
            registry.leave(&registry.get("s").unwrap(), &joins);
            disconnects.read(&disconnect("u", 0, Refusal::Ends));
        }
    }
}
