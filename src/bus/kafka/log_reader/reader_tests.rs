use parking_lot::Mutex;

use super::*;
use crate::history::Limits;
use crate::history::query::{Answer, Wanted};
use crate::protocol::ids::SessionId;
use crate::protocol::resume::Resume;

type Reason = Arc<Mutex<Option<Result<usize, NotResumed>>>>;

/// A query up to these offsets, and where its answer arrives: how many records, or why there are none.
pub fn query(resume: Resume, ends: &[i64]) -> (LogQuery, Reason) {
    let reason = Reason::default();
    let reply = Arc::clone(&reason);
    let query = LogQuery {
        session_id: SessionId::parse("s").unwrap(),
        resume,
        wanted: Wanted::All,
        ends: ends.to_vec(),
        limits: Limits {
            messages: 10,
            bytes: 10_000,
            window_ms: 900_000,
        },
        deadline: Instant::now() + Duration::from_secs(5),
        reply: Box::new(move |answer: Answer| *reply.lock() = Some(answer.map(|found| found.records.len()))),
    };
    (query, reason)
}

/// A waiter for the last record before these offsets.
pub fn waiter(ends: &[i64]) -> (Waiter, Reason) {
    waiter_for(Resume::Rewind(1), ends)
}

pub fn waiter_for(resume: Resume, ends: &[i64]) -> (Waiter, Reason) {
    let (query, reason) = query(resume, ends);
    let waiter = Waiter {
        collector: Collector::new(query),
        since: 0,
        partition: 0,
        _place: Place::take(&Arc::default()).unwrap(),
    };
    (waiter, reason)
}

#[test]
fn a_thousand_may_wait_and_the_next_one_is_told_so() {
    let (reader, queries) = LogReader::new();
    let ask = || {
        let (query, reason) = query(Resume::Rewind(1), &[1]);
        reader.ask(query);
        reason.lock().take()
    };
    for number in 0..MAX_WAITING {
        assert_eq!(ask(), None, "{number}");
    }
    assert_eq!(ask(), Some(Err(NotResumed::Busy)));
    // Those that the thread has taken still wait.
    let taken = queries.recv().unwrap();
    assert_eq!(ask(), Some(Err(NotResumed::Busy)));
    drop(taken);
    assert_eq!(ask(), None);
    assert_eq!(ask(), Some(Err(NotResumed::Busy)));
    drop(queries);
    assert_eq!(ask(), Some(Err(NotResumed::Unavailable)));
    assert_eq!(reader.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn queries_that_read_about_equally_far_back_are_in_one_group() {
    let minutes = |back: i64, dedup: i64| group_of(back * 60_000, dedup * 60_000);
    let of = |dedup| [0, 1, 2, 3, 7, 8, 15, 31, 1_440].map(|back| minutes(back, dedup));
    assert_eq!(of(0), [0, 0, 1, 2, 3, 3, 4, 5, 5]);
    assert_eq!(of(5), [0, 0, 1, 1, 1, 2, 2, 3, 5]);
    // A clock that is behind.
    assert_eq!(minutes(-1, 5), 0);
}

#[test]
fn groups_with_work_take_turns() {
    let mut groups: [Group; GROUPS] = Default::default();
    assert_eq!(next_group(&groups, 0), None);
    for number in [1, 4] {
        groups[number].waiting.push(waiter(&[1]).0);
    }
    let turns = |from| next_group(&groups, from).unwrap();
    assert_eq!(
        (turns(0), turns(1), turns(3), turns(4), turns(5)),
        (1, 4, 4, 1, 1)
    );
    let pass = Pass::new(vec![waiter(&[1]).0], Duration::ZERO, &Arc::default());
    groups[5].pass = Some(pass);
    assert_eq!(next_group(&groups, 4), Some(5), "a pass goes on");
}

#[test]
fn who_has_waited_too_long_is_answered_whether_its_pass_has_begun_or_not() {
    let (in_pass, waiting) = (waiter(&[1]), waiter(&[1]));
    let mut group = Group {
        pass: Some(Pass::new(vec![in_pass.0], Duration::ZERO, &Arc::default())),
        waiting: vec![waiting.0],
    };
    let now = Instant::now();
    assert_eq!(group.expire(now), 0);
    assert_eq!(group.expire(now + Duration::from_secs(6)), 2);
    for reason in [in_pass.1, waiting.1] {
        assert_eq!(*reason.lock(), Some(Err(NotResumed::Unavailable)));
    }
    assert!(group.pass.unwrap().is_done());
}
