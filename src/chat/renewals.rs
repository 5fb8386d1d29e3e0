//! The order of a connection's `auth` frames, and who keeps sending bad ones.
//!
//! Judging a token may take until a key set is fetched. Frames that come meanwhile wait for it, so that the last one that
//! was sent is the last that counts. Connections without such a frame take no memory.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::writer::ConnectionWriter;

/// How many frames of a connection may wait for the one before them.
const MAX_WAITING: usize = 4;
/// How many tokens over `AUTH_FAILURES_PER_MINUTE` a connection may send before it is closed.
const MAX_STRIKES: u32 = 10;
/// After this time without another one they are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// A connection, by its writer's place in memory, which is not used again while there is an entry: that holds the writer
/// weakly.
type Key = usize;

/// The connections whose frames wait or were refused. `T` is what waits.
pub struct Renewals<T> {
    connections: Mutex<HashMap<Key, Connection<T>>>,
}

struct Connection<T> {
    writer: Weak<ConnectionWriter>,
    /// Whether a frame is being judged.
    is_busy: bool,
    waiting: VecDeque<T>,
    strikes: u32,
    last_strike: Moment,
}

impl<T> Default for Renewals<T> {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
        }
    }
}

/// Where a frame stands.
pub enum Turn<T> {
    /// It can be judged at once.
    Now(T),
    /// It waits for the one before it.
    Waits,
    /// Too many wait.
    Full,
}

impl<T> Connection<T> {
    fn new(writer: Weak<ConnectionWriter>) -> Self {
        Self {
            writer,
            is_busy: false,
            waiting: VecDeque::new(),
            strikes: 0,
            last_strike: Moment::default(),
        }
    }
}

impl<T> Renewals<T> {
    /// A frame has come.
    pub fn turn(&self, writer: &Weak<ConnectionWriter>, frame: T) -> Turn<T> {
        let mut connections = self.connections.lock();
        match connections.get_mut(&key(writer)) {
            Some(connection) if connection.is_busy => {
                if connection.waiting.len() >= MAX_WAITING {
                    return Turn::Full;
                }
                connection.waiting.push_back(frame);
                Turn::Waits
            }
            _ => Turn::Now(frame),
        }
    }

    /// A frame takes longer: later ones wait until the guard is dropped.
    pub fn wait(self: &Arc<Self>, writer: &Weak<ConnectionWriter>) -> Waiting<T> {
        let mut connections = self.connections.lock();
        let connection = connections.entry(key(writer));
        connection
            .or_insert_with(|| Connection::new(writer.clone()))
            .is_busy = true;
        Waiting {
            renewals: Arc::clone(self),
            key: key(writer),
        }
    }

    /// A token was refused, and too many were before it: whether the connection is to be closed.
    pub fn strike(&self, writer: &Weak<ConnectionWriter>, now: Moment) -> bool {
        let mut connections = self.connections.lock();
        let connection = connections
            .entry(key(writer))
            .or_insert_with(|| Connection::new(writer.clone()));
        connection.strikes += 1;
        connection.last_strike = now;
        connection.strikes > MAX_STRIKES
    }

    /// A token was accepted.
    pub fn forgive(&self, writer: &Weak<ConnectionWriter>) {
        let mut connections = self.connections.lock();
        if let Entry::Occupied(mut connection) = connections.entry(key(writer)) {
            connection.get_mut().strikes = 0;
            if !connection.get().is_busy {
                connection.remove();
            }
        }
    }

    /// Forgets connections that have gone, and old strikes.
    pub fn purge(&self, now: Moment) {
        let mut connections = self.connections.lock();
        if !connections.is_empty() {
            connections.retain(|_, connection| {
                let is_recent = connection.last_strike + FORGIVEN_AFTER > now;
                let has_struck = connection.strikes > 0 && is_recent && connection.writer.strong_count() > 0;
                connection.is_busy || has_struck
            });
        }
    }
}

fn key(writer: &Weak<ConnectionWriter>) -> Key {
    writer.as_ptr() as Key
}

/// Held while a connection's frames are judged one after the other.
pub struct Waiting<T> {
    renewals: Arc<Renewals<T>>,
    key: Key,
}

impl<T> Waiting<T> {
    /// The next frame. If there is none, later ones do not wait any more.
    pub fn next(&self) -> Option<T> {
        let mut connections = self.renewals.connections.lock();
        let connection = connections.get_mut(&self.key)?;
        let is_open = connection.writer.strong_count() > 0;
        let next = connection.waiting.pop_front().filter(|_| is_open);
        connection.is_busy = next.is_some();
        next
    }
}

/// However the task ends, nothing waits for it forever.
impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        let mut connections = self.renewals.connections.lock();
        if let Entry::Occupied(mut connection) = connections.entry(self.key) {
            connection.get_mut().is_busy = false;
            connection.get_mut().waiting.clear();
            if connection.get().strikes == 0 {
                connection.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::session::testing::members;

    async fn writers<const N: usize>() -> [Arc<ConnectionWriter>; N] {
        let (members, _sockets) = members(N, &Arc::new(Metrics::default())).await;
        std::array::from_fn(|at| Arc::clone(&members[at].writer))
    }

    #[tokio::test]
    async fn later_frames_wait_for_the_first() {
        let renewals = Arc::new(Renewals::default());
        let [one, other] = writers().await;
        let (one, other) = (Arc::downgrade(&one), Arc::downgrade(&other));
        assert!(matches!(renewals.turn(&one, 1), Turn::Now(1)));
        let waiting = renewals.wait(&one);
        for number in 2..2 + MAX_WAITING {
            assert!(matches!(renewals.turn(&one, number), Turn::Waits));
        }
        assert!(matches!(renewals.turn(&one, 9), Turn::Full));
        assert!(matches!(renewals.turn(&other, 1), Turn::Now(1)));
        drop(waiting);
        assert!(matches!(renewals.turn(&one, 9), Turn::Now(9)));
        assert!(renewals.connections.lock().is_empty());
    }

    #[tokio::test]
    async fn frames_that_wait_have_their_turn_in_order() {
        let renewals = Arc::new(Renewals::default());
        let [writer] = writers().await;
        let weak = Arc::downgrade(&writer);
        let waiting = renewals.wait(&weak);
        for number in [1, 2] {
            assert!(matches!(renewals.turn(&weak, number), Turn::Waits));
        }
        assert_eq!(waiting.next(), Some(1));
        assert!(matches!(renewals.turn(&weak, 3), Turn::Waits));
        assert_eq!(
            [waiting.next(), waiting.next(), waiting.next()],
            [Some(2), Some(3), None]
        );
        assert!(matches!(renewals.turn(&weak, 4), Turn::Now(4)));
        drop(waiting);
        let waiting = renewals.wait(&weak);
        assert!(matches!(renewals.turn(&weak, 5), Turn::Waits));
        drop(writer);
        assert_eq!(waiting.next(), None, "nobody wants to know");
    }

    #[tokio::test]
    async fn who_goes_on_is_closed_and_who_stops_is_forgiven() {
        let renewals = Arc::new(Renewals::<()>::default());
        let [writer, other] = writers().await;
        let (weak, now) = (Arc::downgrade(&writer), Moment::now());
        for _ in 0..MAX_STRIKES {
            assert!(!renewals.strike(&weak, now));
        }
        renewals.purge(now + FORGIVEN_AFTER / 2);
        assert!(renewals.strike(&weak, now));
        assert!(
            !renewals.strike(&Arc::downgrade(&other), now),
            "another connection"
        );
        renewals.forgive(&weak);
        assert!(!renewals.strike(&weak, now));
        renewals.purge(now + FORGIVEN_AFTER);
        assert!(renewals.connections.lock().is_empty());
        renewals.strike(&weak, now);
        drop(writer);
        renewals.purge(now);
        assert!(renewals.connections.lock().is_empty(), "it has gone");
    }
}
