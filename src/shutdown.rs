//! Graceful shutdown: not ready, no new upgrades, connections closed with 1001 in batches, the log flushed, listeners
//! closed last.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::http::Http;
use crate::session::Member;

/// In how many batches connections are closed, so that clients do not all reconnect to other nodes at once.
const BATCHES: usize = 100;
/// How many connections are closed per second at least. A few are closed at once: their reconnecting hurts nobody.
const MIN_CLOSES_PER_SECOND: f64 = 100.0;
/// How the grace period is divided: closes are spread over the first part, peers may answer until the end of the
/// second, and the log has until the end of the third. The rest is for the listeners.
const SPREAD_UNTIL: f64 = 0.6;
const PEERS_UNTIL: f64 = 0.8;
const LOG_UNTIL: f64 = 0.9;
/// The shortest time that the log gets for its last answers.
const MIN_FLUSH: Duration = Duration::from_secs(1);

/// Stops everything but the listeners, within `DRAIN_TIMEOUT`.
pub async fn drain(http: &Http) {
    let began = Instant::now();
    let patience = http.config.drain_timeout;
    http.lifecycle.drain();
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
    let remaining = (began + patience.mul_f64(LOG_UNTIL)).saturating_duration_since(Instant::now());
    http.chat.stop(remaining.max(MIN_FLUSH)).await;
    tracing::info!(took = ?began.elapsed(), "drained");
}

/// Closes all connections in batches: the first at once, the others with jitter.
async fn close_all(http: &Http, most: Duration) {
    let began = Instant::now();
    let members: Vec<Member> = http
        .chat
        .registry
        .everywhere()
        .iter()
        .flat_map(|session| session.members().as_ref().clone())
        .collect();
    let spread = spread(members.len(), most);
    let batch = members.len().div_ceil(BATCHES).max(1);
    let pause = spread.div_f64(members.len().div_ceil(batch).max(1) as f64);
    for (number, members) in members.chunks(batch).enumerate() {
        let jitter = if number == 0 { 0.0 } else { fastrand::f64() - 0.5 };
        let due = began + pause.mul_f64(number as f64 + jitter);
        // Without connections there is nothing to wait for.
        tokio::select! { () = sleep_until(due) => {}, () = http.tracker.wait() => return }
        for member in members {
            member.writer.close_for_drain();
        }
    }
}

/// The time over which this many closes are spread.
fn spread(connections: usize, most: Duration) -> Duration {
    most.min(Duration::from_secs_f64(
        connections as f64 / MIN_CLOSES_PER_SECOND,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_as_long_as_its_connections_need_and_never_more_than_its_share() {
        let most = Duration::from_secs(18);
        assert_eq!(spread(0, most), Duration::ZERO);
        assert_eq!(spread(2, most), Duration::from_millis(20));
        assert_eq!(spread(500, most), Duration::from_secs(5));
        assert_eq!(spread(1_800, most), most);
        assert_eq!(spread(1_000_000, most), most);
        assert_eq!(spread(1_000_000, Duration::ZERO), Duration::ZERO);
    }
}
