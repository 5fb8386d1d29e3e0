//! When a key set is fetched: at the start, now and then, and for a token that names a key which the set does not have.
//! For the latter at most once in ten seconds, or anybody could make us flood the issuer.

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

#[derive(Default)]
struct State {
    is_fetching: bool,
    last_start: Option<Instant>,
    waiting: usize,
}

pub(super) struct Refresh {
    state: Mutex<State>,
    wanted: Notify,
    /// Counts fetches that have ended.
    ended: watch::Sender<u64>,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }
}

impl Refresh {
    /// Waits for a fetch that is under way or may begin now. False if none is: it will begin when it may.
    pub(super) async fn wait(&self) -> bool {
        let mut ended = self.ended.subscribe();
        let _waiting = {
            let mut state = self.state.lock();
            // It stays noted until the fetcher waits for it.
            self.wanted.notify_one();
            let is_due = state.last_start.is_none_or(|at| at.elapsed() >= SHORTEST);
            if !(state.is_fetching || is_due) || state.waiting >= MAX_WAITING {
                return false;
            }
            state.is_fetching = true;
            state.waiting += 1;
            Waiting(self)
        };
        matches!(tokio::time::timeout(PATIENCE, ended.changed()).await, Ok(Ok(())))
    }

    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        state.is_fetching = true;
        state.last_start = Some(Instant::now());
    }

    pub(super) fn end(&self) {
        self.state.lock().is_fetching = false;
        self.ended.send_modify(|count| *count += 1);
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
                refresh.end();
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
            refresh.wait().await;
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
        assert!(refresh.wait().await);
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(fetches.load(Ordering::Relaxed), 2);
        // Too soon: it is fetched when it may be.
        assert!(!refresh.wait().await);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(fetches.load(Ordering::Relaxed), 3);
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(fetches.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_forever() {
        let refresh = Refresh::default();
        assert!(!refresh.wait().await);
        assert_eq!(refresh.state.lock().waiting, 0);
    }
}
