//! What the process does when it is sent a signal.
//!
//! | signal | what happens |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | the first drains, the second ends the process at once |
//! | SIGHUP | the files of secrets are read again; nothing is re-opened |
//! | SIGUSR1, SIGUSR2, SIGALRM | nothing |
//!
//! Each is logged. Without a handler all of them would end the process undrained. SIGPIPE is ignored by the standard
//! library from the start, and stays silent: every write to a closed pipe sends one.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// The exit status after a second signal.
const EXIT_FAILURE: i32 = 1;

/// The signals that are waited for.
pub struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    /// Told at each SIGHUP.
    pub reload: Arc<Notify>,
}

impl Signals {
    /// Installs the handlers. Call it in a runtime.
    ///
    /// # Errors
    ///
    /// A handler can't be installed.
    pub fn install() -> io::Result<Self> {
        let reload = Arc::new(Notify::new());
        let (mut hup, reloads) = (signal(SignalKind::hangup())?, Arc::clone(&reload));
        tokio::spawn(async move {
            while hup.recv().await.is_some() {
                tracing::info!(signal = "SIGHUP", "reading the files of secrets again");
                reloads.notify_one();
            }
        });
        for (name, kind) in [
            ("SIGUSR1", SignalKind::user_defined1()),
            ("SIGUSR2", SignalKind::user_defined2()),
            ("SIGALRM", SignalKind::alarm()),
        ] {
            let mut ignored = signal(kind)?;
            tokio::spawn(async move {
                while ignored.recv().await.is_some() {
                    tracing::info!(signal = name, "signal ignored");
                }
            });
        }
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            reload,
        })
    }

    /// Resolves with the first signal that asks for the end; the second ends the process at once.
    pub async fn stop(mut self) {
        let name = self.end().await;
        tracing::info!(
            signal = name,
            "draining; a second signal ends the process at once"
        );
        tokio::spawn(async move {
            let name = self.end().await;
            tracing::warn!(signal = name, "second signal: ending without draining");
            crate::logging::flush();
            std::process::exit(EXIT_FAILURE);
        });
    }

    /// The next signal that asks for the end.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
