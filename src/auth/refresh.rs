//! When a key set is fetched: at the start, now and then, and for a token that names a key which the set does not have.
//! For the latter at most once in ten seconds, or anybody could make us flood the issuer. Until the set was fetched for a
//! key, nothing is known about its tokens, and their bearers are asked to come back.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The shortest time from one fetch to the next.
const SHORTEST: Duration = Duration::from_secs(10);
/// How often a set is fetched anyway: keys disappear from it, too.
const INTERVAL: Duration = Duration::from_secs(300);
/// How long a token waits for a fetch; longer than a fetch may take.
const PATIENCE: Duration = Duration::from_secs(6);
/// How many tokens may wait.
const MAX_WAITING: usize = 1_000;
/// How many unknown keys are remembered. Tokens of further ones are asked to come back.
const MAX_KEYS: usize = 1_000;

#[derive(Default)]
struct State {
    is_fetching: bool,
    last_start: Option<Instant>,
    waiting: usize,
    /// Unknown keys, as hashes, that tokens have named since the last fetch began.
    asked: HashSet<u64>,
    /// Those of before: if that fetch has succeeded, the issuer does not have them.
    absent: HashSet<u64>,
}

/// What is known of a key after [`Refresh::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The set was fetched meanwhile.
    Fetched,
    /// The last set that was fetched for it did not have it. It is fetched again when it may be.
    Absent,
    /// Nothing: the set can't be fetched before this time is over.
    Later(Duration),
}

pub(super) struct Refresh {
    state: Mutex<State>,
    wanted: Notify,
    /// Whether each fetch that has ended has succeeded.
    ended: watch::Sender<bool>,
    hasher: RandomState,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(false),
            hasher: RandomState::new(),
        }
    }
}

impl Refresh {
    /// Waits for a fetch that is under way or may begin now, if there is one; if not, it will begin when it may. `key` is
    /// what a token says of its key.
    pub(super) async fn wait(&self, key: Option<&str>) -> Waited {
        let key = self.hasher.hash_one(key);
        let mut ended = self.ended.subscribe();
        let _waiting = {
            let mut state = self.state.lock();
            // It stays noted until the fetcher waits for it.
            self.wanted.notify_one();
            let until_due = state.until_due();
            let is_absent = state.absent.contains(&key);
            let keys = if state.is_fetching {
                &mut state.absent
            } else {
                &mut state.asked
            };
            if keys.len() < MAX_KEYS {
                keys.insert(key);
            }
            if !state.is_fetching && !until_due.is_zero() {
                return if is_absent {
                    Waited::Absent
                } else {
                    Waited::Later(until_due)
                };
            }
            if state.waiting >= MAX_WAITING {
                return Waited::Later(until_due);
            }
            state.waiting += 1;
            Waiting(self)
        };
        let changed = tokio::time::timeout(PATIENCE, ended.changed()).await;
        let has_succeeded = matches!(changed, Ok(Ok(()))) && *ended.borrow();
        if has_succeeded {
            Waited::Fetched
        } else {
            Waited::Later(self.state.lock().until_due())
        }
    }

    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        state.is_fetching = true;
        state.last_start = Some(Instant::now());
        state.absent = std::mem::take(&mut state.asked);
    }

    /// The set was fetched, and these keys have gone from it.
    pub(super) fn succeeded(&self, removed: impl Iterator<Item = Option<String>>) {
        let removed = removed.map(|key| self.hasher.hash_one(key.as_deref()));
        let mut state = self.state.lock();
        state.is_fetching = false;
        state.absent.extend(removed);
        drop(state);
        self.ended.send_replace(true);
    }

    pub(super) fn failed(&self) {
        let mut state = self.state.lock();
        state.is_fetching = false;
        state.absent.clear();
        drop(state);
        self.ended.send_replace(false);
    }

    /// Waits until the next fetch may begin and is due. After a failure the next one is due as soon as it may begin.
    pub(super) async fn next(&self, has_failed: bool) {
        let last = self.state.lock().last_start.unwrap_or_else(Instant::now);
        tokio::time::sleep_until(last + SHORTEST).await;
        if !has_failed {
            let _ = tokio::time::timeout_at(last + INTERVAL, self.wanted.notified()).await;
        }
    }
}

impl State {
    /// How long it is until a fetch may begin.
    fn until_due(&self) -> Duration {
        self.last_start
            .map_or(Duration::ZERO, |at| SHORTEST.saturating_sub(at.elapsed()))
    }
}

struct Waiting<'a>(&'a Refresh);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A fetcher whose fetches take a second.
    fn fetcher(refresh: &Arc<Refresh>) -> Arc<AtomicUsize> {
        let (refresh, fetches) = (Arc::clone(refresh), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&fetches);
        tokio::spawn(async move {
            loop {
                refresh.begin();
                tokio::time::sleep(Duration::from_secs(1)).await;
                counted.fetch_add(1, Ordering::Relaxed);
                refresh.succeeded(std::iter::empty());
                refresh.next(false).await;
            }
        });
        fetches
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_unknown_keys_causes_a_fetch_in_ten_seconds() {
        let refresh = Arc::new(Refresh::default());
        let fetches = fetcher(&refresh);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(95) {
            refresh.wait(Some("k")).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let fetches = fetches.load(Ordering::Relaxed);
        assert!((9..=10).contains(&fetches), "{fetches}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_set_is_fetched_when_it_is_wanted_and_every_five_minutes() {
        let refresh = Arc::new(Refresh::default());
        let fetches = fetcher(&refresh);
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
        let start = Instant::now();
        assert_eq!(refresh.wait(Some("a")).await, Waited::Fetched);
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(fetches.load(Ordering::Relaxed), 2);
        // Too soon: it is fetched when it may be.
        assert_eq!(
            refresh.wait(Some("a")).await,
            Waited::Absent,
            "it was fetched for this one"
        );
        assert_eq!(
            refresh.wait(Some("b")).await,
            Waited::Later(Duration::from_secs(9))
        );
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(fetches.load(Ordering::Relaxed), 3);
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(fetches.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_forever() {
        let refresh = Refresh::default();
        assert!(matches!(refresh.wait(None).await, Waited::Later(_)));
        assert_eq!(refresh.state.lock().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_has_gone_is_refused_at_once() {
        let refresh = Refresh::default();
        refresh.begin();
        refresh.succeeded([Some("old".to_owned())].into_iter());
        assert_eq!(refresh.wait(Some("old")).await, Waited::Absent);
        assert!(matches!(refresh.wait(Some("new")).await, Waited::Later(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_fails_tells_nothing() {
        let refresh = Refresh::default();
        refresh.begin();
        let (waited, ()) = tokio::join!(refresh.wait(Some("k")), async { refresh.failed() });
        assert!(matches!(waited, Waited::Later(_)), "{waited:?}");
        assert!(matches!(refresh.wait(Some("k")).await, Waited::Later(_)));
    }

    /// Whoever names many keys fills what is remembered, and nobody's key is taken for absent for that.
    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_a_new_key_is_not_refused() {
        let refresh = Refresh::default();
        refresh.begin();
        refresh.succeeded(std::iter::empty());
        for number in 0..3 * MAX_KEYS {
            let waited = refresh.wait(Some(&number.to_string())).await;
            assert!(matches!(waited, Waited::Later(_)), "{waited:?}");
        }
        assert!(matches!(refresh.wait(Some("new")).await, Waited::Later(_)));
        assert_eq!(refresh.state.lock().asked.len(), MAX_KEYS);
        tokio::time::sleep(SHORTEST).await;
        refresh.begin();
        refresh.succeeded(std::iter::empty());
        assert_eq!(refresh.wait(Some("0")).await, Waited::Absent);
        assert!(matches!(refresh.wait(Some("another")).await, Waited::Later(_)));
        assert!(refresh.state.lock().absent.len() <= MAX_KEYS);
    }
}
