//! The recent log against a plain list of records.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::recent_log::CLOCK_SKEW_MS;
use super::*;
use crate::protocol::cursor::{Cursor, CursorKey, Position};
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::Form;
use crate::protocol::resume::{NotResumed, Resume};
use crate::writer::{Pulled, Replay};

pub fn key(of: &str) -> Arc<CursorKey> {
    Arc::new(CursorKey::of_log(of.as_bytes()))
}

pub const LIMITS: Limits = Limits {
    messages: 50,
    bytes: 200_000,
    window_ms: 1_000_000,
};

/// A record, and its position.
#[derive(Clone, Debug)]
pub struct Record {
    pub session: String,
    pub partition: i32,
    pub offset: i64,
    pub time: i64,
    pub id: String,
    pub payload: String,
    pub position: u64,
}

pub struct Model {
    pub log: Arc<RecentLog>,
    pub records: Vec<Record>,
    next: HashMap<i32, i64>,
    pub now: i64,
}

impl Model {
    pub fn new(limit: usize, partitions: i32) -> Self {
        let log = Arc::new(RecentLog::new(limit));
        log.set_log(&key("log"), partitions);
        log.set_complete_since(i64::MIN);
        for partition in 0..partitions {
            log.continue_at(partition, 0);
        }
        log.set_read_until(i64::MAX);
        Self {
            log,
            records: Vec::new(),
            next: HashMap::new(),
            now: 100_000,
        }
    }

    pub fn append(&mut self, session: &str, partition: i32, hole: i64, len: usize, form: Form) {
        let id = format!("m{}", self.records.len());
        let text = "x".repeat(len);
        let payload = format!(
            r#"{{"type":"new_message","success":true,"data":{{"message_id":"{id}","session_id":"{session}","sender_id":null,"sender_type":null,"message":"{text}","message_type":null,"attachments":null,"timestamp":null}}}}"#
        );
        let legacy = format!(r#"{{"id":"{id}","session_id":"{session}","message":"{text}"}}"#);
        let value = if form == Form::Native { &payload } else { &legacy };
        self.append_value(session, partition, hole, form, value, &payload);
    }

    /// A native record with any payload.
    pub fn append_payload(&mut self, session: &str, payload: &str) {
        self.append_value(session, 0, 0, Form::Native, payload, payload);
    }

    fn append_value(
        &mut self,
        session: &str,
        partition: i32,
        hole: i64,
        form: Form,
        value: &str,
        payload: &str,
    ) {
        self.now += 1;
        let next = self.next.entry(partition).or_default();
        let offset = *next + hole;
        *next = offset + 1;
        let position = self.log.append(&LogRecord {
            session_id: session,
            partition,
            offset,
            time: self.now,
            form,
            value: value.as_bytes(),
        });
        self.records.push(Record {
            session: session.to_owned(),
            partition,
            offset,
            time: self.now,
            id: format!("m{}", self.records.len()),
            payload: payload.to_owned(),
            position,
        });
    }

    pub fn of<'a>(&'a self, session: &'a str) -> impl DoubleEndedIterator<Item = &'a Record> {
        self.records
            .iter()
            .filter(move |record| record.session == session)
    }

    /// What a client that gets live records from `start` on receives, as text.
    fn replay(&self, session: &str, start: u64, live_end: u64, positions: Vec<u64>) -> Vec<String> {
        let session_id = SessionId::parse(session).unwrap();
        let resume = Resume::Rewind(1);
        let mut replay = LogReplay::new(
            Arc::clone(&self.log),
            session_id,
            start,
            resume.asked(),
            Ok((std::collections::VecDeque::new(), positions)),
        );
        let mut frames: Vec<Bytes> = Vec::new();
        while replay.pull(live_end, &mut |frame| frames.push(frame)) == Pulled::More {}
        let text = |frame: &Bytes| String::from_utf8(frame::payload(frame).to_vec()).unwrap();
        frames
            .iter()
            .map(text)
            .filter(|text| !text.contains("resumed"))
            .collect()
    }
}

fn payloads<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<String> {
    records.map(|record| record.payload.clone()).collect()
}

proptest! {
    /// Whatever is asked for, a replay is exactly what follows in the plain list, or is refused for a good reason.
    #[test]
    fn a_replay_is_what_the_log_has(
        limit in 40_000usize..2_000_000,
        is_reserved in any::<bool>(),
        partitions in 1i32..4,
        appends in prop::collection::vec((0u8..5, 0i32..4, 0i64..3, 0usize..3_000, any::<bool>(), any::<bool>()), 1..300),
        asked in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<prop::sample::Index>()), 1..20),
    ) {
        let mut model = Model::new(limit, partitions);
        if is_reserved {
            model.log.reserve();
        }
        let mut held = Vec::new();
        for (session, partition, hole, len, is_native, reads) in appends {
            let session = format!("s{session}");
            let own = model.log.partition_of(&session);
            // Native records are keyed.
            let partition = if is_native { own } else { partition % partitions };
            model.append(&session, partition, hole, len, if is_native { Form::Native } else { Form::Legacy });
            if reads {
                let at = model.records.last().unwrap().position;
                held.push(model.log.lock().bytes(at).unwrap().1);
                if held.len() > 3 { held.remove(0); }
            }
            model.log.delivered();
            prop_assert!(model.log.usage().0 <= limit.max(3 * 20_000) + limit / 10 + 8 * 4096, "{} of {limit}", model.log.usage().0);
        }
        let end = model.records.len() as u64;
        let kept_from = model.records.iter().find(|record| model.log.lock().bytes(record.position).is_some()).unwrap().position;
        for (which, how, live) in asked {
            let since = which.get(&model.records).clone();
            let session = &since.session;
            let start = live.index(end as usize + 1) as u64;
            let own = model.log.partition_of(session);
            let (resume, position) = match how {
                0 => {
                    let position = Position { partition: since.partition, offset: since.offset + 1, time: since.time - CLOCK_SKEW_MS, passed: None };
                    (Resume::Message { id: since.id.clone(), time: Some(since.time) }, position)
                }
                1 => {
                    let Some(text) = model.log.cursor(session, since.position + 1) else {
                        prop_assert!(kept_from > since.position, "nothing was dropped");
                        continue;
                    };
                    let cursor = Cursor::decode(&text).unwrap();
                    prop_assert_eq!(cursor.position.partition, own);
                    (Resume::Cursor { text, cursor }, cursor.position)
                }
                _ => (Resume::Rewind(3), Position { partition: 0, offset: 0, time: 0, passed: None }),
            };
            let found = find(&model.log, session, &resume, (0, start), &LIMITS, model.now);
            let follows = |record: &&Record| position.is_before(record.partition, record.offset, record.time);
            let range: Vec<&Record> = match how {
                2 => { let mut last: Vec<_> = model.of(session).rev().filter(|record| record.position < start).take(3).collect(); last.reverse(); last }
                _ => model.of(session).filter(|record| record.position < start).filter(follows).collect(),
            };
            let live: Vec<&Record> = model.of(session).filter(|record| record.position >= start).collect();
            let is_delivered = how == 2 || live.iter().all(follows);
            match found {
                Ok(positions) => {
                    prop_assert!(is_delivered, "live records that the client has are sent again");
                    // Others of the bucket may have been dropped.
                    let is_kept = start >= kept_from;
                    if is_kept {
                        let expected = payloads(range.into_iter().chain(live));
                        prop_assert_eq!(model.replay(session, start, end, positions), expected);
                    }
                }
                // Or those that are live from there on are not all here any more.
                Err(NotHere::Undelivered) => prop_assert!(!is_delivered || start < kept_from),
                Err(NotHere::Refused(NotResumed::TooMany)) => {
                    let bytes: usize = range.iter().map(|record| record.payload.len()).sum();
                    prop_assert!(range.len() > LIMITS.messages || bytes > LIMITS.bytes / 2);
                }
                Err(NotHere::Older) => {
                    // Something that may follow, or the message itself, was dropped.
                    prop_assert!(kept_from > 0, "nothing was dropped");
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

#[test]
fn only_what_a_node_knows_is_found() {
    let mut model = Model::new(1 << 20, 1);
    model.append("s", 0, 0, 10, Form::Native);
    model.append("other", 0, 0, 10, Form::Native);
    let find = |resume: &Resume| find(&model.log, "s", resume, (0, 2), &LIMITS, model.now);
    let message = |id: &str, time| Resume::Message {
        id: id.to_owned(),
        time,
    };
    assert_eq!(
        find(&message("m1", Some(model.now))),
        Err(NotHere::Ahead),
        "of another session"
    );
    assert_eq!(
        find(&message("m", Some(model.now))),
        Err(NotHere::Ahead),
        "a part of an id"
    );
    assert_eq!(find(&message("m9", None)), Err(NotHere::Older));
    let of_session = |session: &str, of: &str, partition, offset| {
        let position = Position {
            partition,
            offset,
            time: 0,
            passed: None,
        };
        Resume::since(key(of).cursor(session, &position), None)
    };
    let cursor = |of: &str, partition, offset| of_session("s", of, partition, offset);
    let unknown = Err(NotHere::Refused(NotResumed::UnknownMessage));
    assert_eq!(find(&cursor("another", 0, 0)), unknown, "another log");
    assert_eq!(find(&cursor("log", 1, 0)), unknown, "no such partition");
    assert_eq!(find(&cursor("log", 0, 3)), Err(NotHere::Ahead));
    assert_eq!(find(&cursor("log", 0, 2)), Ok(vec![]));
    let invalid = Err(NotHere::Refused(NotResumed::Invalid));
    assert_eq!(
        find(&of_session("other", "log", 0, 0)),
        invalid,
        "of another session"
    );
    let Resume::Cursor { mut cursor, text } = cursor("log", 0, 2) else {
        panic!()
    };
    cursor.position.offset = 0;
    assert_eq!(find(&Resume::Cursor { cursor, text }), invalid, "edited");
    let cursor = of_session("s", "another", 0, 0);
    model.log.set_log(&key("another"), 1);
    assert_eq!(
        super::find(&model.log, "s", &cursor, (0, 2), &LIMITS, 0),
        Err(NotHere::Older)
    );
}

#[test]
fn a_cursor_has_nothing_that_was_not_sent() {
    let mut model = Model::new(1 << 20, 4);
    let own = model.log.partition_of("s");
    for _ in 0..3 {
        model.append("s", own, 0, 10, Form::Native);
        model.append("other", own, 0, 10, Form::Native);
    }
    let offset = |position| {
        Cursor::decode(&model.log.cursor("s", position).unwrap())
            .unwrap()
            .position
            .offset
    };
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(offset), [0, 2, 2, 4, 4, 6, 6]);
}

#[test]
fn without_memory_nothing_is_found_that_was_delivered() {
    let mut model = Model::new(0, 1);
    for _ in 0..100 {
        model.append("s", 0, 0, 1_000, Form::Native);
    }
    let find = |since: &str| {
        let resume = Resume::since(since.to_owned(), None);
        find(&model.log, "s", &resume, (0, 100), &LIMITS, model.now)
    };
    assert_eq!(find("m97"), Ok(vec![98, 99]));
    model.log.delivered();
    assert_eq!(find("m97"), Err(NotHere::Older));
    let cursor = model.log.cursor("s", 100).unwrap();
    assert_eq!(find(&cursor), Ok(vec![]));
    assert!(model.log.lock().bytes(99).is_some(), "a replay may wait for it");
    let position = Cursor::decode(&cursor).unwrap().position;
    assert_eq!((position.partition, position.offset), (0, 100));
}

#[test]
fn a_log_is_read_up_to_a_time_at_which_all_of_it_was_read() {
    let log = RecentLog::new(0);
    log.set_read_until(100_000);
    assert!(!log.has_read(100_000), "which log is not known yet");
    log.set_log(&key("log"), 1);
    assert_eq!([100_000, 100_001].map(|time| log.has_read(time)), [true, false]);
}

#[test]
fn what_is_no_message_id_is_not_found() {
    let mut model = Model::new(1 << 20, 1);
    for id in ["null", "true", "{}", "[]", "7", "\"m\"", "-1.5e3"] {
        model.append_payload("s", &format!(r#"{{"data":{{"message_id":{id},"message":"x"}}}}"#));
    }
    let finds = |id: &str| {
        let resume = Resume::since(id.to_owned(), None);
        find(&model.log, "s", &resume, (0, 7), &LIMITS, model.now).is_ok()
    };
    for id in ["null", "true", "{}", "[]", "\"m\""] {
        assert!(!finds(id), "{id}");
    }
    for id in ["7", "m", "-1.5e3"] {
        assert!(finds(id), "{id}");
    }
}

/// A client has what is still being delivered here: it was on another node, or loaded it over HTTP. The cursor of its
/// `resumed` must not go back behind that.
#[test]
fn records_that_a_client_has_are_delivered_before_its_replay_begins() {
    let mut model = Model::new(1 << 20, 1);
    for _ in 0..4 {
        model.append("s", 0, 0, 10, Form::Native);
    }
    let find = |id: &str, start| {
        let resume = Resume::since(id.to_owned(), None);
        find(&model.log, "s", &resume, (0, start), &LIMITS, model.now)
    };
    assert_eq!(find("m2", 2), Err(NotHere::Undelivered));
    assert_eq!(find("m1", 2), Ok(vec![]));
    assert_eq!(find("m0", 3), Ok(vec![1, 2]));
    let cursor = model.log.cursor("s", 3).unwrap();
    assert_eq!(find(&cursor, 2), Err(NotHere::Undelivered));
    assert_eq!(find(&cursor, 3), Ok(vec![]));
}

/// As in a busy session: what precedes the client's position is not walked through.
#[test]
fn a_session_with_many_records_is_resumed_from_memory() {
    for partitions in [1, 3] {
        let mut model = Model::new(64 << 20, partitions);
        let own = model.log.partition_of("s");
        for _ in 0..30_000 {
            model.append("s", own, 0, 10, Form::Native);
        }
        model.log.delivered();
        let find = |resume: &Resume| find(&model.log, "s", resume, (0, 30_000), &LIMITS, model.now);
        let cursor = model.log.cursor("s", 29_998).unwrap();
        assert_eq!(find(&Resume::since(cursor, None)), Ok(vec![29_998, 29_999]));
        for (number, expected) in [
            (29_998, Ok(vec![29_999])),
            (5, Err(NotHere::Refused(NotResumed::TooMany))),
        ] {
            let Record { id, time, .. } = model.records[number].clone();
            for time in [None, Some(time)] {
                let id = id.clone();
                assert_eq!(find(&Resume::Message { id, time }), expected);
            }
        }
        assert_eq!(find(&Resume::Rewind(1)), Ok(vec![29_999]));
        let unknown = Resume::Message {
            id: "none".into(),
            time: Some(model.now),
        };
        assert_eq!(find(&unknown), Err(NotHere::Ahead));
    }
}

/// Others of its bucket are gone.
#[test]
fn a_session_that_was_idle_while_the_log_was_reused_has_a_cursor() {
    let mut model = Model::new(64 << 10, 1);
    for number in 0..3_000 {
        model.append(&format!("s{}", number % 300), 0, 0, 100, Form::Native);
        model.log.delivered();
    }
    let idle = |session: usize| format!("idle-{session}");
    let from =
        |position| move |session: usize, log: &RecentLog| log.cursor(&idle(session), position).is_some();
    let (old, new) = (from(1), from(model.log.live_start(1)));
    assert!(
        (0..100).any(|session| !old(session, &model.log)),
        "buckets have been reused"
    );
    assert!((0..100).all(|session| new(session, &model.log)));
}

#[test]
fn ids_are_found_however_json_escapes_them() {
    let mut model = Model::new(1 << 20, 1);
    model.append_payload("s", r#"{"data":{"message_id":"a\/b\u00e9"}}"#);
    model.append_payload("s", r#"{"data":{"message_id":7}}"#);
    for (id, expected) in [("a/bé", vec![1]), ("7", vec![])] {
        let resume = Resume::since(id.to_owned(), None);
        assert_eq!(
            find(&model.log, "s", &resume, (0, 2), &LIMITS, model.now),
            Ok(expected),
            "{id}"
        );
    }
}
