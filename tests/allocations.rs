//! What the message path allocates: nothing for a native record, and nothing for a recipient.
//!
//! Batches go through the real delivery to real sockets. Only what the delivering thread allocates counts, so that
//! readers and other tests don't disturb. `CONTRIBUTING.md` has the rule that this keeps.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails where it panics")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use livechat_ws::fanout::backend::{FanoutBackend, RingInUse};
use livechat_ws::fanout::broadcast::SLICE;

#[path = "../benches/support/mod.rs"]
mod support;

use support::{Record, Sessions, deliver, session_id};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and a count for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

#[allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
// SAFETY: everything is the system allocator's; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// How often a batch is tried that found a socket's buffer full.
const ATTEMPTS: usize = 100;

/// What this thread allocates to deliver a batch straight to the sockets of this many recipients.
fn allocations(recipients: usize, batch: &[Record], backend: FanoutBackend) -> u64 {
    let sessions = Sessions::open(1, recipients);
    let mut router = sessions.router(backend);
    // The first batch allocates the buffers that delivery keeps.
    sessions.deliver(&mut router, batch);
    for _ in 0..ATTEMPTS {
        let written = sessions.metric("deliveries_written");
        sessions.expect_batch(batch);
        let before = ALLOCATIONS.get();
        deliver(&mut router, batch);
        let allocations = ALLOCATIONS.get() - before;
        sessions.wait();
        // A socket that was not ready is off the fast path: then this batch is not counted.
        if sessions.metric("deliveries_written") - written == recipients as u64 {
            return allocations;
        }
    }
    panic!("no batch of {ATTEMPTS} was written straight to all {recipients} sockets");
}

/// Asserts that recipients cost no allocations, and returns what the batch costs.
fn for_any_number_of_recipients(batch: &[Record], backend: fn() -> FanoutBackend) -> u64 {
    let cost = |recipients: [usize; 5]| {
        let costs = recipients.map(|recipients| allocations(recipients, batch, backend()));
        let all_same = costs.iter().all(|cost| *cost == costs[0]);
        assert!(all_same, "{costs:?} allocations for {recipients:?} recipients");
        costs[0]
    };
    cost([1, 10, SLICE, SLICE + 1, 1_000])
}

fn batch(records: usize, record: impl Fn() -> Record) -> Vec<Record> {
    (0..records).map(|_| record()).collect()
}

/// Delivery's buffers are used again, so that a native record costs nothing either. Old records have their session's id
/// and the new payload, which grows as it is written: five.
fn costs(backend: fn() -> FanoutBackend, way_out: u64) {
    for (form, each) in [(Record::native as fn(&_, _) -> _, 0), (Record::old, 5)] {
        let record = || form(&session_id(0), 100);
        let one = for_any_number_of_recipients(&batch(1, record), backend);
        assert!(one <= way_out + each, "{one} allocations for a record");
        let hundred = for_any_number_of_recipients(&batch(100, record), backend);
        assert!(
            hundred <= way_out + 100 * each,
            "{hundred} allocations for a hundred records"
        );
    }
}

/// Each of a batch's sessions has a buffer, and all are used again.
#[test]
fn many_sessions_cost_nothing() {
    const SESSIONS: usize = 100;
    let sessions = Sessions::open(SESSIONS, 2);
    let mut router = sessions.router(FanoutBackend::Send);
    // Some with more than others, in turn, until every buffer has met the most.
    let batch = |first: usize| -> Vec<_> {
        (0..3 * SESSIONS)
            .map(|n| Record::native(&session_id((first + n * n) % SESSIONS), 100))
            .collect()
    };
    for first in 0..2 * SESSIONS {
        sessions.deliver(&mut router, &batch(first));
    }
    let costs: Vec<_> = (0..ATTEMPTS)
        .map(|first| {
            let batch = batch(first);
            sessions.expect_batch(&batch);
            let before = ALLOCATIONS.get();
            deliver(&mut router, &batch);
            let allocations = ALLOCATIONS.get() - before;
            sessions.wait();
            allocations
        })
        .collect();
    // A socket that was not ready costs a copy and its queue.
    assert!(costs.contains(&0), "{costs:?} allocations");
}

#[test]
fn a_recipient_costs_nothing_by_send() {
    costs(|| FanoutBackend::Send, 0);
}

/// Who is sent to in one submission stands in a list, one for a batch.
#[test]
fn a_recipient_costs_nothing_by_io_uring() {
    costs(|| FanoutBackend::RingRequested(RingInUse::default()), 1);
}
