//! The graceful end: not ready, no new upgrades, connections closed with 1001 in batches, the log flushed,
//! listeners last.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::http::Http;
use crate::session::Member;

/// In how many steps connections are closed: who reconnects comes to the other nodes, and not all in one moment.
const BATCHES: usize = 100;
/// How the grace period is shared: closes are spread over the first part, peers may answer until the end of the
/// second, and the log has until the end of the third. The rest is for the listeners.
const SPREAD_UNTIL: f64 = 0.6;
const PEERS_UNTIL: f64 = 0.8;
const LOG_UNTIL: f64 = 0.9;
/// The least that the log is given for its last answers.
const MIN_FLUSH: Duration = Duration::from_secs(1);

/// Resolves with the first SIGTERM or SIGINT; the second ends the process at once.
///
/// # Errors
///
/// The handlers can't be installed.
pub fn signals() -> std::io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(
            signal = name,
            "draining; a second signal ends the process at once"
        );
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::warn!("second signal: ending without draining");
            std::process::exit(1);
        });
    })
}

/// Ends everything but the listeners, within `DRAIN_TIMEOUT`.
pub async fn drain(http: &Http) {
    let began = Instant::now();
    let patience = http.config.drain_timeout;
    http.life.drain();
    http.tracker.close();
    close_all(http, patience.mul_f64(SPREAD_UNTIL)).await;
    if timeout_at(began + patience.mul_f64(PEERS_UNTIL), http.tracker.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = http.limits.connections(),
            "connections left at the end of DRAIN_TIMEOUT"
        );
    }
    let left = (began + patience.mul_f64(LOG_UNTIL)).saturating_duration_since(Instant::now());
    http.chat.stop(left.max(MIN_FLUSH)).await;
    tracing::info!(took = ?began.elapsed(), "drained");
}

/// Closes all connections in batches over at most `spread`: the first at once, the others with jitter.
async fn close_all(http: &Http, spread: Duration) {
    let began = Instant::now();
    let members: Vec<Member> = http
        .chat
        .registry
        .all()
        .iter()
        .flat_map(|session| session.members().as_ref().clone())
        .collect();
    let batch = members.len().div_ceil(BATCHES).max(1);
    let pause = spread.div_f64(members.len().div_ceil(batch).max(1) as f64);
    for (number, members) in members.chunks(batch).enumerate() {
        let jitter = if number == 0 { 0.0 } else { fastrand::f64() - 0.5 };
        let due = began + pause.mul_f64(number as f64 + jitter);
        // Nobody left means nothing to wait for.
        tokio::select! { () = sleep_until(due) => {}, () = http.tracker.wait() => return }
        for member in members {
            member.outbox.close_for_drain();
        }
    }
}
