//! Whether a client lives: what counts as a sign, and since when there was none.
//!
//! Any byte from the client is a sign, noted where it is read
//! ([`ConnectionWriter::heard`](super::ConnectionWriter::heard)). So is progress of what the client is owed: a slow
//! link may take longer for what is ahead of our ping than a pong may take. What is ahead of it is in our queue first,
//! and then in the kernel, which says how much of it the peer has acknowledged. What comes behind the ping is no sign
//! by being acknowledged: the kernel of a client that has stopped does that, too.

use std::time::Duration;

use super::kernel::Stream;
use crate::clock;

/// Times are [`clock::now_ms`], positions are of [`Stream`].
pub struct Pulse {
    /// When the last ping was asked for.
    pinged_at: u32,
    /// When the last ping was written, or the last sign since then that is not a byte of the client's.
    sign_at: u32,
    /// Where the last ping begins.
    ping_start: u32,
    /// What the peer had acknowledged when it was last looked at, and when that last changed.
    acked: u32,
    acked_at: u32,
}

impl Default for Pulse {
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

impl Pulse {
    /// As if the last ping had been asked for an hour ago.
    #[cfg(test)]
    pub fn asked_long_ago() -> Self {
        Self {
            pinged_at: clock::now_ms().wrapping_sub(3_600_000),
            ..Self::default()
        }
    }

    /// Whether it is time for a ping.
    pub fn is_ping_due(&self, interval: Duration) -> bool {
        clock::since(self.pinged_at) >= interval
    }

    pub fn ping_asked_for(&mut self) {
        self.pinged_at = clock::now_ms();
    }

    /// So many bytes were written from the ping's beginning on, itself included: the pong's time begins.
    pub fn ping_written(&mut self, since_ping: usize, stream: Option<Stream>) {
        self.sign_at = clock::now_ms();
        // Where the kernel says nothing, nothing is ahead of it.
        self.ping_start = self.acked;
        if let Some(stream) = stream {
            self.note_acked(stream.acked);
            self.ping_start = stream.written.wrapping_sub(since_ping as u32);
        }
    }

    /// Looks at what the peer has acknowledged meanwhile.
    pub fn look(&mut self, stream: Option<Stream>) {
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

    /// How long the peer has acknowledged nothing, as far as was looked.
    pub fn unacknowledged_for(&self) -> Duration {
        clock::since(self.acked_at)
    }

    /// How long there was no sign since the ping was written but maybe the queue's own progress.
    pub fn silent_for(&self) -> Duration {
        clock::since(self.sign_at)
    }
}

/// Of two positions less than 2 GiB apart.
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

    /// As if the time since then had passed.
    fn age(pulse: &mut Pulse) {
        let by = LONG.as_millis() as u32;
        pulse.sign_at = pulse.sign_at.wrapping_sub(by);
        pulse.acked_at = pulse.acked_at.wrapping_sub(by);
    }

    #[test]
    fn what_is_ahead_of_the_ping_is_a_sign_and_what_is_behind_is_not() {
        for base in [0, u32::MAX - 500] {
            let at = |position: u32| base.wrapping_add(position);
            let mut pulse = Pulse::default();
            pulse.look(stream(at(0), at(0)));
            pulse.ping_written(2, stream(at(100), at(1_002)));
            age(&mut pulse);
            pulse.look(stream(at(100), at(1_002)));
            assert!(pulse.silent_for() >= LONG, "nothing has moved");
            pulse.look(stream(at(500), at(1_002)));
            assert!(pulse.silent_for() < LONG, "it takes what is ahead");
            age(&mut pulse);
            pulse.look(stream(at(1_002), at(1_002)));
            assert!(pulse.silent_for() < LONG, "it has taken the ping");
            age(&mut pulse);
            pulse.look(stream(at(2_000), at(3_000)));
            assert!(pulse.silent_for() >= LONG, "its kernel takes what is behind");
            assert!(pulse.unacknowledged_for() < LONG);
        }
    }

    #[test]
    fn a_ping_with_nothing_ahead_is_timed_from_its_writing() {
        let mut pulse = Pulse::default();
        pulse.ping_written(2, stream(1_000, 1_002));
        age(&mut pulse);
        pulse.look(stream(1_002, 1_002));
        assert!(pulse.silent_for() >= LONG);
        // As well where the kernel says nothing.
        let mut pulse = Pulse::default();
        pulse.ping_written(2, None);
        age(&mut pulse);
        pulse.look(None);
        assert!(pulse.silent_for() >= LONG);
    }
}
