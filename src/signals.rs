//! How the process reacts to signals.
//!
//! | signal | what happens |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | the first drains, the second ends the process at once |
//! | SIGHUP | secret files are read again; nothing is reopened |
//! | SIGUSR1, SIGUSR2, SIGALRM | nothing |
//!
//! Each is logged. Without handlers, all of them would kill the process without draining. The standard library ignores
//! SIGPIPE from the start, and it is not logged: every write to a closed pipe raises one.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// The exit status after a second signal.
const EXIT_FAILURE: i32 = 1;

/// The signals that the process handles.
pub struct Signals {
    term: Signal,
    int: Signal,
    quit: Signal,
    /// Notified at each SIGHUP.
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

    /// Resolves at the first termination signal; the second ends the process at once.
    pub async fn stop(mut self) {
        let name = self.termination().await;
        tracing::info!(
            signal = name,
            "draining; a second signal ends the process at once"
        );
        tokio::spawn(async move {
            let name = self.termination().await;
            tracing::warn!(signal = name, "second signal: exiting without draining");
            crate::logging::flush();
            std::process::exit(EXIT_FAILURE);
        });
    }

    /// Waits for the next termination signal.
    async fn termination(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
