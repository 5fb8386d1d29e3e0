//! Log lines on standard error: text for people, or one JSON object a line.
//!
//! Nothing waits for whoever reads them. Lines go into a bounded [`queue`], and a thread of its own writes them.

mod queue;

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use queue::Queue;

/// How long the end of the process may wait for its last lines to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Lets a line that may come often be written at most once in an interval.
pub struct LogLimit {
    interval: Duration,
    last: Option<Instant>,
}

impl LogLimit {
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// Whether the line may be written now; then the next may not be for an interval.
    pub fn allows(&mut self) -> bool {
        let is_due = self.last.is_none_or(|at| at.elapsed() >= self.interval);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// Flushes the queue when the process ends, also by a panic in `main`.
#[must_use = "without it the last lines are lost"]
pub struct FlushOnDrop(());

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}

/// Installs the subscriber for the whole process, and a panic hook that writes by it.
///
/// # Errors
///
/// The thread can't be started, or standard error can't be duplicated.
pub fn install(config: &Config) -> io::Result<FlushOnDrop> {
    let queue = Queue::start()?;
    // A second call, as in a test process, changes nothing.
    if QUEUE.set(Arc::clone(&queue)).is_ok() {
        subscribe(config, queue);
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(FlushOnDrop(()))
}

fn subscribe(config: &Config, queue: Arc<Queue>) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(config.log_level.as_str()))
        .with_writer(queue)
        .log_internal_errors(false);
    IS_JSON.store(config.log_format == LogFormat::Json, Ordering::Relaxed);
    let _ = match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .try_init(),
    };
}

/// Whether lines are JSON objects: some have fields only there, and in text a sentence that may not change.
pub fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// Writes a line whatever the level is.
pub fn write_line(line: &str) {
    if let Some(queue) = QUEUE.get() {
        // It takes all, or counts it as lost.
        let _ = (&**queue).write_all(format!("{line}\n").as_bytes());
    }
}

/// Waits until every line so far is written, but not for long: whoever should read them may not.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_PATIENCE);
    }
}

/// Lines that were lost since the start: the queue was full, or standard error could not be written.
pub fn lost_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.lost_lines())
}

/// The standard hook writes to standard error itself, and would wait for its reader.
fn log_panic(info: &PanicHookInfo<'_>) {
    thread_local! {
        static IS_LOGGING: Cell<bool> = const { Cell::new(false) };
    }
    // A panic while one is logged is in the logging itself.
    if IS_LOGGING.replace(true) {
        return;
    }
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    tracing::error!(thread, location, "panicked: {message}");
    IS_LOGGING.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_line_comes_at_once_and_then_seldom() {
        let mut limit = LogLimit::new(Duration::from_secs(3_600));
        assert_eq!([limit.allows(), limit.allows()], [true, false]);
        let mut limit = LogLimit::new(Duration::ZERO);
        assert_eq!([limit.allows(), limit.allows()], [true, true]);
    }
}
