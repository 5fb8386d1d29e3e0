//! Panics must not stop what the whole node depends on: a task is restarted, and a thread carries on.

use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

/// How long to wait before a task that panicked is restarted, so that it does not panic in a tight loop.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs `step`; `None` if it panics. The panic hook has logged the panic, and the caller deals with what was left half
/// done.
#[inline]
pub fn catch_panic<T>(step: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(step)).ok()
}

/// Runs `task` until it returns, and restarts it after each panic. Call it in a runtime.
pub fn spawn<F: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    task: impl Fn() -> F + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Err(error) = AbortOnDrop(tokio::spawn(task())).join().await {
            tracing::error!(task = name, %error, "a task has failed and is restarted: please report this bug");
            tokio::time::sleep(RESTART_DELAY).await;
        }
    })
}

/// Aborts the inner task when its supervisor is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    async fn join(mut self) -> Result<(), tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_task_is_restarted_after_a_panic() {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let task = super::spawn("test", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(run >= 2, "the first two fail") }
        });
        task.await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }
}
