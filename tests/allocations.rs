//! What the message path allocates: a little for each record, nothing for a recipient.
//!
//! Batches go through the real delivery to real sockets. Only what the delivering thread allocates counts, so that
//! readers and other tests don't disturb. `CONTRIBUTING.md` has the rule that this keeps.

#![deny(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use livechat_ws::session::fanout::SLICE;

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
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

/// How often a batch is tried that found a socket's buffer full.
const ATTEMPTS: usize = 100;

/// What this thread allocates to deliver a batch straight to the sockets of so many recipients.
fn allocations(recipients: usize, batch: &[Record]) -> u64 {
    let sessions = Sessions::open(1, recipients);
    let mut delivery = sessions.delivery();
    // The first batch makes what delivery keeps.
    sessions.deliver(&mut delivery, batch);
    for _ in 0..ATTEMPTS {
        let written = sessions.metric("deliveries_written");
        sessions.expect_batch(batch);
        let before = ALLOCATIONS.get();
        deliver(&mut delivery, batch);
        let allocations = ALLOCATIONS.get() - before;
        sessions.wait();
        // A socket that was not ready is off the fast path: then this batch says nothing.
        if sessions.metric("deliveries_written") - written == recipients as u64 {
            return allocations;
        }
    }
    panic!("no batch of {ATTEMPTS} was written straight to all {recipients} sockets");
}

/// Asserts that recipients cost nothing, and says what the batch costs.
fn for_any_number_of_recipients(batch: &[Record]) -> u64 {
    let cost = |recipients: [usize; 3]| {
        let costs = recipients.map(|recipients| allocations(recipients, batch));
        let all_same = costs.iter().all(|cost| *cost == costs[0]);
        assert!(all_same, "{costs:?} allocations for {recipients:?} recipients");
        costs[0]
    };
    let small = cost([1, 10, SLICE]);
    let large = cost([SLICE + 1, 500, 1_000]);
    // Sessions that are written in slices take turns: a batch that has such keeps one list of them.
    assert!(
        large <= small + 1,
        "{large} allocations in a large session, {small} in a small one"
    );
    small
}

fn batch(records: usize, record: impl Fn() -> Record) -> Vec<Record> {
    (0..records).map(|_| record()).collect()
}

/// A chunk is a buffer and the list it stands in. For a hundred records the buffer grows, by doubling.
#[test]
fn a_native_record_costs_its_chunk_and_a_recipient_nothing() {
    let native = || Record::native(&session_id(0), 100);
    let one = for_any_number_of_recipients(&batch(1, native));
    assert!(one <= 2, "{one} allocations for a record");
    let hundred = for_any_number_of_recipients(&batch(100, native));
    assert!(hundred <= 12, "{hundred} allocations for a hundred records");
}

/// Its session's id and the new payload, which grows as it is written, come to five.
#[test]
fn an_old_record_costs_its_conversion_and_a_recipient_nothing() {
    let old = || Record::old(&session_id(0), 100);
    let one = for_any_number_of_recipients(&batch(1, old));
    assert!(one <= 2 + 5, "{one} allocations for a record");
    let hundred = for_any_number_of_recipients(&batch(100, old));
    assert!(
        hundred <= 12 + 100 * 5,
        "{hundred} allocations for a hundred records"
    );
}
