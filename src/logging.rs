//! Log lines on standard error: text for people, or one JSON object a line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

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
