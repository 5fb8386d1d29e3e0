//! What a delivery thread does about a reader whose queue is full: it waits briefly, within a budget, or closes the
//! connection.

use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::code::CloseCode;
use crate::session::Member;
use crate::writer::{BacklogPolicy, Chunk, SendOutcome};

/// How long delivery waits for one reader without any progress. It waits only for a reader that drains but has used up
/// its overdraft (see `writer::write_queue`): pausing the consumer is better than closing that connection.
const MAX_STALL: Duration = Duration::from_millis(100);
const WAIT_STEP: Duration = Duration::from_millis(1);
/// The share of its time (1/20) that a delivery thread may spend on such waits, for all readers together, and how much
/// of it may be saved up: slow readers must not delay all others.
const WAIT_SHARE: u32 = 20;
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How long a delivery thread may still wait for slow readers.
pub struct WaitBudget {
    remaining: Duration,
    refilled: Instant,
}

impl Default for WaitBudget {
    fn default() -> Self {
        Self {
            remaining: MAX_WAIT,
            refilled: Instant::now(),
        }
    }
}

impl WaitBudget {
    fn refill(&mut self) {
        let now = Instant::now();
        self.remaining = MAX_WAIT.min(self.remaining + (now - self.refilled) / WAIT_SHARE);
        self.refilled = now;
    }

    fn wait(&mut self, step: Duration) -> bool {
        let is_affordable = self.remaining >= step;
        if is_affordable {
            self.remaining -= step;
            thread::sleep(step);
        }
        is_affordable
    }
}

/// Sends a chunk on the delivery thread, which may wait: a burst of messages must not close a healthy connection.
pub(super) fn send_or_close(member: &Member, chunk: &impl Chunk, budget: &mut WaitBudget) -> SendOutcome {
    let mut sent = member.writer.send_chunk(chunk);
    if sent == SendOutcome::Full {
        sent = wait_for_room(member, chunk, budget);
    }
    if sent == SendOutcome::Full {
        member.writer.close(
            CloseCode::SlowConsumer,
            "outbound queue is full",
            BacklogPolicy::Discard,
        );
    }
    sent
}

fn wait_for_room(member: &Member, chunk: &impl Chunk, budget: &mut WaitBudget) -> SendOutcome {
    budget.refill();
    let (mut stalled, mut backlog) = (Duration::ZERO, member.writer.backlog());
    while stalled < MAX_STALL && member.writer.is_worth_waiting_for() && budget.wait(WAIT_STEP) {
        match member.writer.send_chunk(chunk) {
            SendOutcome::Full => {}
            sent => return sent,
        }
        let now_queued = member.writer.backlog();
        stalled = if now_queued < backlog {
            Duration::ZERO
        } else {
            stalled + WAIT_STEP
        };
        backlog = now_queued;
    }
    SendOutcome::Full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_limited_by_a_budget_that_refills() {
        let mut budget = WaitBudget {
            remaining: Duration::from_millis(2),
            refilled: Instant::now(),
        };
        assert!(budget.wait(WAIT_STEP) && budget.wait(WAIT_STEP) && !budget.wait(WAIT_STEP));
        budget.refilled = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        budget.refill();
        assert!(budget.remaining >= Duration::from_millis(50) && budget.remaining < MAX_WAIT);
    }
}
