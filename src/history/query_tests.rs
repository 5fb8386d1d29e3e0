use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::protocol::cursor::CursorKey;

const LIMITS: Limits = Limits {
    messages: 3,
    bytes: 1_000,
    window_ms: 900_000,
};
/// The session's own partition.
const OWN: i32 = 1;

fn mark(time: i64, partition: i32, offset: i64) -> Mark {
    Mark {
        time,
        partition,
        offset,
    }
}

fn frame_with(id: &str, len: usize) -> Bytes {
    let text = "x".repeat(len);
    frame::text(format!(r#"{{"data":{{"message_id":"{id}","message":"{text}"}}}}"#).as_bytes())
}

fn at(offset: i64, time: i64) -> Resume {
    let position = Position {
        partition: OWN,
        offset,
        time,
        passed: None,
    };
    Resume::since(CursorKey::of_log(b"log").cursor("s", &position), None)
}

fn message(id: &str, time: Option<i64>) -> Resume {
    let id = id.to_owned();
    Resume::Message { id, time }
}

fn query(resume: Resume, wanted: Wanted, limits: Limits) -> (LogQuery, Arc<Mutex<Option<Answer>>>) {
    let answer = Arc::new(Mutex::new(None));
    let reply = Arc::clone(&answer);
    let query = LogQuery {
        session_id: SessionId::parse("s").unwrap(),
        resume,
        wanted,
        ends: vec![1_000; 3],
        limits,
        deadline: Instant::now(),
        reply: Box::new(move |answer| *reply.lock() = Some(answer)),
    };
    (query, answer)
}

/// What is collected of these records, in the order in which they are read.
fn collect(resume: Resume, wanted: Wanted, limits: Limits, records: &[(Mark, Bytes)]) -> Answer {
    let (query, answer) = query(resume, wanted, limits);
    let mut collector = Collector::new(query);
    for (mark, frame) in records {
        collector.add(*mark, || frame.clone());
    }
    collector.finish();
    answer.lock().take().expect("an answer")
}

fn offsets(answer: &Answer) -> Result<Vec<i64>, NotResumed> {
    let collected = answer.as_ref().map_err(|why| *why)?;
    Ok(collected.records.iter().map(|(mark, _)| mark.offset).collect())
}

/// Records of the own partition with offsets from 0 on, each a second after the one before it.
fn own(count: i64) -> Vec<(Mark, Bytes)> {
    (0..count)
        .map(|n| (mark(1_000 * n, OWN, n), frame_with(&format!("m{n}"), 10)))
        .collect()
}

#[test]
fn a_replay_is_whole_or_there_is_none() {
    let records = own(8);
    let of = |resume| offsets(&collect(resume, Wanted::All, LIMITS, &records));
    assert_eq!(of(at(5, 0)), Ok(vec![5, 6, 7]));
    assert_eq!(of(at(4, 0)), Err(NotResumed::TooMany));
    assert_eq!(of(message("m4", None)), Ok(vec![5, 6, 7]));
    assert_eq!(of(message("m4", Some(4_000))), Ok(vec![5, 6, 7]));
    assert_eq!(of(message("m3", None)), Err(NotResumed::TooMany));
    assert_eq!(of(message("m9", None)), Err(NotResumed::UnknownMessage));
    assert_eq!(of(Resume::Rewind(2)), Ok(vec![6, 7]));
    assert_eq!(of(Resume::Rewind(4)), Err(NotResumed::TooMany));
    let large: Vec<_> = (0..8).map(|n| (mark(n, OWN, n), frame_with("m", 400))).collect();
    let of = |resume| offsets(&collect(resume, Wanted::All, LIMITS, &large));
    assert_eq!(of(at(6, 0)), Ok(vec![6, 7]));
    assert_eq!(of(at(5, 0)), Err(NotResumed::TooMany));
    assert_eq!(of(Resume::Rewind(2)), Ok(vec![6, 7]));
    assert_eq!(of(Resume::Rewind(3)), Err(NotResumed::TooMany));
}

#[test]
fn a_page_has_room_for_the_first_or_last_records_however_many_there_are() {
    let records = own(500);
    let of = |resume| collect(resume, Wanted::Page, LIMITS, &records);
    for resume in [at(100, 0), message("m99", None), message("m99", Some(99_000))] {
        let page = of(resume);
        assert_eq!(offsets(&page), Ok(vec![100, 101, 102]));
        assert!(page.unwrap().has_more);
    }
    let last = of(at(497, 0));
    assert_eq!(offsets(&last), Ok(vec![497, 498, 499]));
    assert!(!last.unwrap().has_more);
    // Without a cursor, the last ones; their number is that of the limits.
    let last = of(Resume::Rewind(3));
    assert_eq!(offsets(&last), Ok(vec![497, 498, 499]));
    assert!(last.unwrap().has_more);
}

#[test]
fn a_page_is_bounded_by_bytes_and_has_no_gaps() {
    let sizes = [10, 900, 10, 5_000, 10, 10];
    let records: Vec<_> = (0..6)
        .map(|n| (mark(n, OWN, n), frame_with("m", sizes[n as usize])))
        .collect();
    let of = |offset| offsets(&collect(at(offset, 0), Wanted::Page, LIMITS, &records)).unwrap();
    assert_eq!(
        (of(0), of(1), of(2), of(3), of(4)),
        (vec![0, 1], vec![1, 2], vec![2], vec![3], vec![4, 5])
    );
    let last = offsets(&collect(Resume::Rewind(3), Wanted::Page, LIMITS, &records));
    assert_eq!(last, Ok(vec![4, 5]), "not the one before the large one");
}

#[test]
fn a_page_leaves_out_and_counts_what_is_not_json() {
    let mut records = own(10);
    for n in [1, 2, 8] {
        records[n].1 = frame::text(b"{\"a\":");
    }
    let page = collect(at(0, 0), Wanted::Page, LIMITS, &records).unwrap();
    assert_eq!(
        (page.left_out, page.has_more),
        (2, true),
        "one is not of this page"
    );
    assert_eq!(offsets(&Ok(page)), Ok(vec![0, 3, 4]));
    let replay = collect(at(7, 0), Wanted::All, LIMITS, &records);
    assert_eq!(offsets(&replay), Ok(vec![7, 8, 9]), "a replay has what went out");
}

/// A page has the first records by time of other partitions, in whichever order these are read.
#[test]
fn a_page_goes_on_by_time_in_other_partitions() {
    let of = |partition, times: &[i64]| {
        let record = |(n, time): (usize, &i64)| (mark(*time, partition, n as i64), frame_with("m", 10));
        times.iter().enumerate().map(record).collect::<Vec<_>>()
    };
    let (other, own, third) = (of(0, &[50, 10, 70]), of(OWN, &[20, 60]), of(2, &[30, 5, 40]));
    for parts in [
        [&other, &own, &third],
        [&third, &own, &other],
        [&own, &other, &third],
    ] {
        let records: Vec<_> = parts.into_iter().flatten().cloned().collect();
        let page = collect(at(0, 10), Wanted::Page, LIMITS, &records).unwrap();
        let times: Vec<_> = page.records.iter().map(|(mark, _)| mark.time).collect();
        assert_eq!((times, page.has_more), (vec![10, 20, 30], true));
    }
}

#[test]
fn nothing_is_kept_that_can_not_follow_the_message() {
    let now = 1_000_000;
    let (query, _) = query(message("m", Some(now)), Wanted::All, LIMITS);
    let mut collector = Collector::new(query);
    for n in 0..100 {
        let at = mark(now - 100_000 + n, n as i32 % 2, n);
        collector.add(at, || frame_with("x", 10));
    }
    assert_eq!(collector.before_message.len(), 0);
    collector.add(mark(now - 2_000, 0, 100), || frame_with("y", 10));
    collector.add(mark(now, 1, 100), || frame_with("m", 10));
    assert_eq!(collector.found.len(), 1, "of another partition, and within 5 s");
}

#[test]
fn the_start_is_where_the_client_is_and_not_too_far_back() {
    let now = 10_000_000;
    let start = |resume| query(resume, Wanted::All, LIMITS).0.start_time(now);
    let oldest = now - LIMITS.window_ms;
    assert_eq!(start(Resume::Rewind(1)), Ok(oldest));
    assert_eq!(start(message("m", None)), Ok(oldest));
    assert_eq!(start(message("m", Some(now))), Ok(now - CLOCK_SKEW_MS));
    assert_eq!(start(message("m", Some(oldest - 1))), Err(NotResumed::TooOld));
    assert_eq!(start(at(0, now - 7)), Ok(now - 7));
    assert_eq!(start(at(0, oldest - CLOCK_SKEW_MS - 1)), Err(NotResumed::TooOld));
    // Pages of other partitions' records go on from the last one of them.
    let Resume::Cursor { mut cursor, text } = at(0, 0) else {
        unreachable!()
    };
    cursor.position.passed = Some(mark(now - 7, 0, 5));
    assert_eq!(start(Resume::Cursor { cursor, text }), Ok(now - 7));
}

proptest! {
    /// Whatever is read in whichever order: the last ones are the end of all.
    #[test]
    fn the_last_ones_are_the_end_of_all(
        times in prop::collection::vec((0i32..3, 0i64..50), 0..60),
        count in 1usize..10,
    ) {
        let mut next = [0; 3];
        let records: Vec<_> = times.into_iter().map(|(partition, time)| {
            let offset = &mut next[partition as usize];
            *offset += 1;
            (mark(time, partition, *offset), frame_with("m", 1))
        }).collect();
        let limits = |messages| Limits { messages, bytes: 1 << 20, ..LIMITS };
        let all = collect(Resume::Rewind(1_000), Wanted::All, limits(1_000), &records).unwrap();
        prop_assert_eq!(all.records.len(), records.len());
        for wanted in [Wanted::All, Wanted::Page] {
            let last = collect(Resume::Rewind(count), wanted, limits(count), &records).unwrap();
            let from = records.len().saturating_sub(count);
            prop_assert_eq!(&last.records, &all.records[from..]);
        }
    }
}

#[test]
fn what_precedes_the_message_is_held_within_the_limits() {
    let (query, _answer) = query(message("m-none", None), Wanted::All, LIMITS);
    let mut collector = Collector::new(query);
    for n in 0..5_000 {
        let at = mark(n, OWN, n);
        collector.add(at, || frame_with("m", 400));
    }
    let held = |collector: &Collector| {
        let before = collector.before_message.values();
        before.map(|before| before.bytes).sum::<usize>()
    };
    assert!(held(&collector) <= LIMITS.bytes, "{}", held(&collector));
    // Of another partition, what was dropped may follow.
    let mut records: Vec<_> = (0..10)
        .map(|n| (mark(60_000, OWN + 1, n), frame_with("m", 400)))
        .collect();
    records.push((mark(60_000, OWN, 0), frame_with("m-it", 10)));
    let answer = collect(message("m-it", None), Wanted::All, LIMITS, &records);
    assert_eq!(offsets(&answer), Err(NotResumed::TooMany));
}
