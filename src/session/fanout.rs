//! One chunk of frames to every member of a session.

use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::Member;
use crate::protocol::code::CloseCode;
use crate::protocol::ids::UserId;
use crate::ws::{Queued, Sent};

/// How many members are served before another session, or another task, gets its turn.
pub const SLICE: usize = 256;

/// How long delivery waits for one reader that drains but is at the end of its overdraft (see `ws::backlog`), in
/// all and without any progress: the consumer pauses rather than cut it.
const MAX_WAIT: Duration = Duration::from_millis(1_000);
const MAX_STALL: Duration = Duration::from_millis(100);
const WAIT_STEP: Duration = Duration::from_millis(1);

/// What became of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub written: usize,
    pub queued: usize,
    pub evicted: usize,
}

impl Delivered {
    /// The connections that have it or will.
    pub fn received(&self) -> usize {
        self.written + self.queued
    }

    fn count(&mut self, sent: Sent) {
        match sent {
            Sent::Written => self.written += 1,
            Sent::Queued => self.queued += 1,
            Sent::Full => self.evicted += 1,
            Sent::Closed => {}
        }
    }
}

impl std::ops::AddAssign for Delivered {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.queued += other.queued;
        self.evicted += other.evicted;
    }
}

/// What to do about a reader whose queue is full.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// On the delivery thread, which may pause: a healthy reader is not cut by a burst of ours.
    Wait,
    /// On the runtime, which may not.
    None,
}

/// Sends `chunk` to each of `members` but those of `except`.
pub fn deliver(members: &[Member], chunk: &Bytes, except: Option<&UserId>, patience: Patience) -> Delivered {
    let mut delivered = Delivered::default();
    for member in members {
        if except.is_some_and(|user_id| *user_id == member.user_id) {
            continue;
        }
        let mut sent = member.outbox.send(chunk);
        if sent == Sent::Full {
            if patience == Patience::Wait {
                sent = wait_for_room(member, chunk);
            }
            if sent == Sent::Full {
                member
                    .outbox
                    .close(CloseCode::SlowConsumer, "outbound queue is full", Queued::Discard);
            }
        }
        delivered.count(sent);
    }
    delivered
}

/// [`deliver`] on the runtime: after each slice other tasks get their turn.
pub async fn deliver_in_slices(members: &[Member], chunk: &Bytes) -> Delivered {
    let mut delivered = Delivered::default();
    for slice in members.chunks(SLICE) {
        delivered += deliver(slice, chunk, None, Patience::None);
        if members.len() > SLICE {
            tokio::task::yield_now().await;
        }
    }
    delivered
}

fn wait_for_room(member: &Member, chunk: &Bytes) -> Sent {
    let (mut waited, mut stalled, mut backlog) = (Duration::ZERO, Duration::ZERO, member.outbox.backlog());
    while waited < MAX_WAIT && stalled < MAX_STALL && member.outbox.is_draining() {
        thread::sleep(WAIT_STEP);
        waited += WAIT_STEP;
        match member.outbox.send(chunk) {
            Sent::Full => {}
            sent => return sent,
        }
        let left = member.outbox.backlog();
        stalled = if left < backlog {
            Duration::ZERO
        } else {
            stalled + WAIT_STEP
        };
        backlog = left;
    }
    Sent::Full
}
