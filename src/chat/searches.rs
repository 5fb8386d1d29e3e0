//! Places for long searches.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many search at once: each search keeps a core busy.
const MOST_SEARCHES: usize = 4;

/// Places for those who search the recent log through all of a session's records; all others wait.
#[derive(Clone)]
pub struct Searches(Arc<Semaphore>);

impl Default for Searches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_SEARCHES)))
    }
}

impl Searches {
    /// Waits for a place; `None` if none is free until then.
    pub(super) async fn place(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.0).acquire_owned();
        tokio::time::timeout_at(until.into(), place).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_search_at_once_and_the_others_wait() {
        let searches = Searches::default();
        let soon = || tokio::time::Instant::now().into_std() + Duration::from_secs(5);
        let mut places = Vec::new();
        for _ in 0..MOST_SEARCHES {
            places.push(searches.place(soon()).await.expect("a free place"));
        }
        assert!(searches.place(soon()).await.is_none(), "busy");
        let (waiting, ()) = tokio::join!(searches.place(soon()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            places.pop();
        });
        assert!(waiting.is_some());
    }
}
