//! Log lines on standard error: text for people, or one JSON object a line.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

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

/// Installs the subscriber for the whole process.
pub fn install(config: &Config) {
    let filter = EnvFilter::new(config.log_level.as_str());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Or a line that can't be written is said on standard error, too, which panics when that is what fails.
        .log_internal_errors(false);
    // A second call, as in a test process, changes nothing.
    let _ = match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
    };
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
