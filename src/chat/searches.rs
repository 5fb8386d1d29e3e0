//! Places for long searches.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::protocol::ids::SessionId;

/// How many search at once: each search keeps a core busy.
const MOST_SEARCHES: usize = 4;
/// And how many of one session: whoever asks about it again and again leaves places for those of other sessions.
const MOST_OF_SESSION: usize = 2;
/// Sessions of which nobody searches are forgotten when there are more than so many.
const SESSIONS: usize = 1_000;

/// Places for those who search the recent log through all of a session's records; all others wait.
#[derive(Clone)]
pub struct Searches(Arc<Places>);

struct Places {
    all: Arc<Semaphore>,
    sessions: Mutex<HashMap<SessionId, Weak<Semaphore>>>,
}

/// Until it is dropped.
pub(super) struct Place {
    _of_session: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Searches {
    fn default() -> Self {
        Self(Arc::new(Places {
            all: Arc::new(Semaphore::new(MOST_SEARCHES)),
            sessions: Mutex::default(),
        }))
    }
}

impl Searches {
    /// Waits for a place; `None` if none is free until then.
    pub(super) async fn place(&self, session_id: &SessionId, until: Instant) -> Option<Place> {
        let places = async {
            // First: those who wait for another search of their session take nobody's place.
            let _of_session = self.of_session(session_id).acquire_owned().await.ok()?;
            let _of_all = Arc::clone(&self.0.all).acquire_owned().await.ok()?;
            Some(Place { _of_session, _of_all })
        };
        tokio::time::timeout_at(until.into(), places).await.ok()?
    }

    fn of_session(&self, session_id: &SessionId) -> Arc<Semaphore> {
        let mut sessions = self.0.sessions.lock();
        if let Some(semaphore) = sessions.get(session_id).and_then(Weak::upgrade) {
            return semaphore;
        }
        if sessions.len() >= SESSIONS {
            sessions.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let semaphore = Arc::new(Semaphore::new(MOST_OF_SESSION));
        sessions.insert(session_id.clone(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(n: usize) -> SessionId {
        SessionId::parse(&format!("s{n}")).unwrap()
    }

    fn soon() -> Instant {
        tokio::time::Instant::now().into_std() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn few_search_at_once_and_the_others_wait() {
        let searches = Searches::default();
        let mut places = Vec::new();
        for n in 0..MOST_SEARCHES {
            places.push(searches.place(&session(n), soon()).await.expect("a free place"));
        }
        let another = session(MOST_SEARCHES);
        assert!(searches.place(&another, soon()).await.is_none(), "busy");
        let (waiting, ()) = tokio::join!(searches.place(&another, soon()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            places.pop();
        });
        assert!(waiting.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_session_leaves_places_for_the_others() {
        let searches = Searches::default();
        let mut places = Vec::new();
        for _ in 0..MOST_OF_SESSION {
            places.push(searches.place(&session(1), soon()).await.expect("a free place"));
        }
        let (same, other) = (session(1), session(2));
        let (same, other) = tokio::join!(
            searches.place(&same, soon()),
            // Behind the one that waits.
            searches.place(&other, soon())
        );
        assert!(same.is_none() && other.is_some());
        places.clear();
        assert!(searches.place(&session(1), soon()).await.is_some());
    }

    #[tokio::test]
    async fn sessions_of_which_nobody_searches_are_forgotten() {
        let searches = Searches::default();
        let held = searches.place(&session(0), soon()).await;
        for n in 1..2 * SESSIONS {
            assert!(searches.place(&session(n), soon()).await.is_some());
        }
        let sessions = searches.0.sessions.lock();
        assert!(sessions.len() <= SESSIONS, "{}", sessions.len());
        assert!(sessions.contains_key(&session(0)));
        drop(held);
    }
}
