//! Log lines on standard error: text for people, or one JSON object per line.
//!
//! Logging never blocks: lines go into a bounded [`queue`], which a dedicated thread writes out.

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

/// How long the process may wait at its end for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Limits a frequent log line to one per interval.
pub struct LogLimit {
    interval: Duration,
    last: Option<Instant>,
}

impl LogLimit {
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: None }
    }

    /// Whether the line may be written now. If so, the next one may be only after an interval.
    pub fn allows(&mut self) -> bool {
        let is_due = self.last.is_none_or(|at| at.elapsed() >= self.interval);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// Flushes the queue when the process ends, even by a panic in `main`.
#[must_use = "without it the last lines are lost"]
pub struct FlushOnDrop(());

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}

/// Installs the subscriber for the whole process, and a panic hook that logs through it.
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

/// Whether lines are JSON objects: only then do some lines have extra fields, since their text form is fixed.
pub fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// Writes a line regardless of the log level.
pub fn write_line(line: &str) {
    if let Some(queue) = QUEUE.get() {
        // This never fails: a line that does not fit counts as lost.
        let _ = (&**queue).write_all(format!("{line}\n").as_bytes());
    }
}

/// Waits until all lines so far are written, but at most [`FLUSH_TIMEOUT`]: their reader may have stalled.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_TIMEOUT);
    }
}

/// The number of lines lost since the start, because the queue was full or standard error could not be written.
pub fn lost_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.lost_lines())
}

/// Replaces the standard hook, which writes to standard error itself and would wait for its reader.
fn log_panic(info: &PanicHookInfo<'_>) {
    thread_local! {
        static IS_LOGGING: Cell<bool> = const { Cell::new(false) };
    }
    // A panic while a panic is being logged comes from the logging itself.
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
    fn a_limited_line_is_allowed_once_per_interval() {
        let mut limit = LogLimit::new(Duration::from_secs(3_600));
        assert_eq!([limit.allows(), limit.allows()], [true, false]);
        let mut limit = LogLimit::new(Duration::ZERO);
        assert_eq!([limit.allows(), limit.allows()], [true, true]);
    }
}
