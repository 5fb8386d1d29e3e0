//! Whether a client is alive: what counts as a sign of life, and when the last one was.
//!
//! Any byte from the client is a sign of life, noted where it is read
//! ([`ConnectionWriter::note_received`](super::ConnectionWriter::note_received)). So is progress with the data ahead of
//! our ping, for which a slow link may need longer than the pong timeout. This data is first in our queue and then in
//! the kernel, which says how much of it the peer has acknowledged. Acknowledged data after the ping is no sign of
//! life: the kernel of a client that has stopped acknowledges it, too.

use std::time::Duration;

use super::kernel::Stream;
use crate::clock;

/// Times are as in [`clock::now_ms`], positions as in [`Stream`].
pub struct Liveness {
    /// When the last ping was requested.
    pinged_at: u32,
    /// When the last ping was written, or the last sign of life since then that is not a byte from the client.
    sign_at: u32,
    /// The position of the last ping.
    ping_start: u32,
    /// What the peer had acknowledged at the last update, and when that last changed.
    acked: u32,
    acked_at: u32,
}

impl Default for Liveness {
    fn default() -> Self {
        let now = clock::now_ms();
        Self {
            pinged_at: now,
            sign_at: now,
            ping_start: 0,
            acked: 0,
            acked_at: now,
        }
    }
}

impl Liveness {
    /// As if the last ping had been requested an hour ago.
    #[cfg(test)]
    pub fn requested_long_ago() -> Self {
        Self {
            pinged_at: clock::now_ms().wrapping_sub(3_600_000),
            ..Self::default()
        }
    }

    /// Whether it is time for a ping.
    pub fn is_ping_due(&self, interval: Duration) -> bool {
        clock::since(self.pinged_at) >= interval
    }

    pub fn ping_requested(&mut self) {
        self.pinged_at = clock::now_ms();
    }

    /// The ping has been written, and `since_ping` bytes from its beginning on: the pong timeout starts.
    pub fn ping_written(&mut self, since_ping: usize, stream: Option<Stream>) {
        self.sign_at = clock::now_ms();
        // If the kernel doesn't say, nothing is assumed to be ahead of the ping.
        self.ping_start = self.acked;
        if let Some(stream) = stream {
            self.note_acked(stream.acked);
            self.ping_start = stream.written.wrapping_sub(since_ping as u32);
        }
    }

    /// Notes what the peer has acknowledged meanwhile.
    pub fn update(&mut self, stream: Option<Stream>) {
        let Some(stream) = stream else { return };
        let has_been_ahead = is_before(self.acked, self.ping_start);
        if self.note_acked(stream.acked) && has_been_ahead {
            self.sign_at = self.acked_at;
        }
    }

    fn note_acked(&mut self, acked: u32) -> bool {
        let has_changed = self.acked != acked;
        if has_changed {
            (self.acked, self.acked_at) = (acked, clock::now_ms());
        }
        has_changed
    }

    /// How long the peer has acknowledged nothing, as of the last update.
    pub fn unacknowledged_for(&self) -> Duration {
        clock::since(self.acked_at)
    }

    /// How long ago the last sign of life was, the ping's writing included but not the progress of the queue.
    pub fn silent_for(&self) -> Duration {
        clock::since(self.sign_at)
    }
}

/// For two positions less than 2 GiB apart.
fn is_before(one: u32, other: u32) -> bool {
    (other.wrapping_sub(one) as i32) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn stream(acked: u32, written: u32) -> Option<Stream> {
        Some(Stream { acked, written })
    }

    /// As if [`LONG`] had passed.
    fn age(liveness: &mut Liveness) {
        let by = LONG.as_millis() as u32;
        liveness.sign_at = liveness.sign_at.wrapping_sub(by);
        liveness.acked_at = liveness.acked_at.wrapping_sub(by);
    }

    #[test]
    fn acknowledged_data_is_a_sign_of_life_before_the_ping_but_not_after_it() {
        for base in [0, u32::MAX - 500] {
            let at = |position: u32| base.wrapping_add(position);
            let mut liveness = Liveness::default();
            liveness.update(stream(at(0), at(0)));
            liveness.ping_written(2, stream(at(100), at(1_002)));
            age(&mut liveness);
            liveness.update(stream(at(100), at(1_002)));
            assert!(liveness.silent_for() >= LONG, "nothing has moved");
            liveness.update(stream(at(500), at(1_002)));
            assert!(liveness.silent_for() < LONG, "it takes what is ahead of the ping");
            age(&mut liveness);
            liveness.update(stream(at(1_002), at(1_002)));
            assert!(liveness.silent_for() < LONG, "it has taken the ping");
            age(&mut liveness);
            liveness.update(stream(at(2_000), at(3_000)));
            assert!(
                liveness.silent_for() >= LONG,
                "its kernel takes what follows the ping"
            );
            assert!(liveness.unacknowledged_for() < LONG);
        }
    }

    #[test]
    fn without_data_ahead_the_pong_timeout_starts_when_the_ping_is_written() {
        let mut liveness = Liveness::default();
        liveness.ping_written(2, stream(1_000, 1_002));
        age(&mut liveness);
        liveness.update(stream(1_002, 1_002));
        assert!(liveness.silent_for() >= LONG);
        // The same if the kernel doesn't say.
        let mut liveness = Liveness::default();
        liveness.ping_written(2, None);
        age(&mut liveness);
        liveness.update(None);
        assert!(liveness.silent_for() >= LONG);
    }
}
