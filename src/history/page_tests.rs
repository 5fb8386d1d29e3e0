//! Pages against a plain list of records.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::page::{self, Page, PageEnd};
use super::query::{Collector, LogQuery, Wanted};
use super::recent_log::CLOCK_SKEW_MS;
use super::tests::{LIMITS, Model, Record};
use super::*;
use crate::clock;
use crate::protocol::cursor::{Cursor, Mark};
use crate::protocol::frame;
use crate::protocol::ids::SessionId;
use crate::protocol::record::Form;
use crate::protocol::resume::Resume;

fn limits(messages: usize) -> Limits {
    Limits { messages, ..LIMITS }
}

fn texts(page: &Page) -> Vec<String> {
    let text = |payload: &bytes::Bytes| String::from_utf8(payload.to_vec()).unwrap();
    page.payloads.iter().map(text).collect()
}

fn resume_at(page: &Page) -> Resume {
    let text = page.cursor.clone().expect("a cursor");
    let cursor = Cursor::decode(&text).expect("a cursor that can be read");
    Resume::Cursor { text, cursor }
}

/// In the order of pages: the session's own partition by offset, all others by time.
fn of_own_and_others<'a>(model: &Model, records: impl Iterator<Item = &'a Record>) -> [Vec<String>; 2] {
    let (mut own, mut others): (Vec<_>, Vec<_>) =
        records.partition(|record| record.partition == model.log.partition_of(&record.session));
    own.sort_by_key(|record| record.offset);
    others.sort_by_key(|record| (record.time, record.partition, record.offset));
    [own, others].map(|records| records.iter().map(|record| record.payload.clone()).collect())
}

proptest! {
    /// Who goes from page to page, by message id and then by cursors, gets each record that follows exactly once, and
    /// those that are written meanwhile, too.
    #[test]
    fn pages_have_everything_that_follows_once(
        partitions in 1i32..4,
        appends in prop::collection::vec((0u8..3, 0i32..4, 0i64..3, any::<bool>(), any::<bool>()), 1..120),
        later in prop::collection::vec((0i32..4, any::<bool>()), 0..20),
        since in any::<prop::sample::Index>(),
        by_cursor in any::<bool>(),
        limit in 1usize..40,
    ) {
        let mut model = Model::new(4 << 20, partitions);
        model.now = clock::unix_ms() - 60_000;
        for (session, partition, hole, is_native, is_same_time) in appends {
            let session = format!("s{session}");
            let partition = if is_native { model.log.partition_of(&session) } else { partition % partitions };
            model.now -= i64::from(is_same_time);
            model.append(&session, partition, hole, 10, if is_native { Form::Native } else { Form::Legacy });
        }
        let since = since.get(&model.records).clone();
        let session = since.session.clone();
        let own = model.log.partition_of(&session);
        let mut resume = if by_cursor {
            let text = model.log.cursor(&session, since.position + 1).unwrap();
            let cursor = Cursor::decode(&text).unwrap();
            Resume::Cursor { text, cursor }
        } else {
            Resume::Message { id: since.id.clone(), time: Some(since.time) }
        };
        // After an unkeyed message all of its own partition follows by time.
        let first = range::position_of(&model.log, &session, &resume, 0).unwrap();
        let (mut later, mut got) = (later.into_iter(), Vec::new());
        loop {
            let page = page::after(&model.log, &session, &resume, &limits(limit)).unwrap();
            prop_assert!(page.payloads.len() == limit || !page.has_more && page.payloads.len() < limit);
            got.extend(texts(&page));
            prop_assert!(got.len() <= model.records.len(), "some come twice");
            resume = resume_at(&page);
            if !page.has_more { break; }
            if let Some((partition, is_native)) = later.next() {
                let (partition, form) = if is_native { (own, Form::Native) } else { (partition % partitions, Form::Legacy) };
                model.append(&session, partition, 0, 10, form);
            }
        }
        let follows = |record: &&Record| first.is_before(record.partition, record.offset, record.time);
        let [own_ones, others] = of_own_and_others(&model, model.of(&session).filter(follows));
        let mut expected = [own_ones.clone(), others.clone()].concat();
        let mut sorted = got.clone();
        expected.sort();
        sorted.sort();
        prop_assert_eq!(sorted, expected, "each once");
        if first.partition == own {
            let in_order = |of: &[String]| got.iter().filter(|text| of.contains(text)).cloned().collect::<Vec<_>>();
            prop_assert_eq!(in_order(&own_ones), own_ones);
            prop_assert_eq!(in_order(&others), others);
        }
    }

    /// The last page is the end of the plain list, and its cursor the end of the log.
    #[test]
    fn the_last_page_is_the_end_of_the_list(
        appends in prop::collection::vec((0u8..3, any::<bool>()), 0..120),
        limit in 1usize..60,
    ) {
        let mut model = Model::new(4 << 20, 1);
        for (session, is_json) in appends {
            let session = format!("s{session}");
            if is_json {
                model.append(&session, 0, 0, 10, Form::Native);
            } else {
                model.append_payload(&session, "{\"not\":\"JSON\"");
            }
        }
        for session in ["s0", "s1", "s2", "nobody"] {
            let page = page::last(&model.log, session, &limits(limit), model.now).unwrap();
            let mut newest = model.of(session).rev();
            let mut expected: Vec<_> = newest
                .by_ref()
                .filter(|record| record.payload.ends_with('}') && record.payload.len() > 20)
                .map(|record| record.payload.clone())
                .take(limit)
                .collect();
            expected.reverse();
            prop_assert_eq!(texts(&page), expected);
            prop_assert!(page.has_more || newest.next().is_none());
            let after = page::after(&model.log, session, &resume_at(&page), &limits(limit)).unwrap();
            prop_assert!(after.payloads.is_empty() && !after.has_more);
        }
    }
}

/// A page that is read from the log, partition by partition.
fn from_log(model: &Model, session: &str, resume: &Resume, limits: Limits) -> Page {
    let answer = Arc::new(Mutex::new(None));
    let reply = Arc::clone(&answer);
    let end = PageEnd::new(&model.log, session, model.log.end_position()).unwrap();
    let mut collector = Collector::new(LogQuery {
        session_id: SessionId::parse(session).unwrap(),
        resume: resume.clone(),
        wanted: Wanted::Page,
        ends: vec![i64::MAX; 4],
        limits,
        deadline: Instant::now(),
        reply: Box::new(move |answer| *reply.lock() = Some(answer)),
    });
    for record in model.of(session) {
        let mark = Mark {
            time: record.time,
            partition: record.partition,
            offset: record.offset,
        };
        let frame = || frame::text(record.payload.as_bytes());
        collector.add(mark, frame);
    }
    collector.finish();
    page::of_log(session, answer.lock().take().unwrap().unwrap(), &end)
}

proptest! {
    /// Whichever pages are read from the log, and whichever from the recent log.
    #[test]
    fn pages_of_both_logs_have_everything_that_follows_once(
        partitions in 1i32..4,
        appends in prop::collection::vec((0u8..2, 0i32..4, any::<bool>(), any::<bool>()), 1..80),
        since in any::<prop::sample::Index>(),
        is_read in prop::collection::vec(any::<bool>(), 200),
        limit in 1usize..10,
    ) {
        let mut model = Model::new(4 << 20, partitions);
        model.now = clock::unix_ms() - 60_000;
        for (session, partition, is_native, is_same_time) in appends {
            let session = format!("s{session}");
            let partition = if is_native { model.log.partition_of(&session) } else { partition % partitions };
            model.now -= i64::from(is_same_time);
            model.append(&session, partition, 0, 10, if is_native { Form::Native } else { Form::Legacy });
        }
        let since = since.get(&model.records).clone();
        let session = since.session.clone();
        let mut resume = Resume::Message { id: since.id.clone(), time: Some(since.time) };
        let first = range::position_of(&model.log, &session, &resume, 0).unwrap();
        let mut got = Vec::new();
        for is_read in is_read {
            let page = if is_read {
                from_log(&model, &session, &resume, limits(limit))
            } else {
                page::after(&model.log, &session, &resume, &limits(limit)).unwrap()
            };
            prop_assert!(page.payloads.len() == limit || !page.has_more && page.payloads.len() < limit);
            got.extend(texts(&page));
            resume = resume_at(&page);
            if !page.has_more { break; }
        }
        let follows = |record: &&Record| first.is_before(record.partition, record.offset, record.time);
        let mut expected: Vec<_> = model.of(&session).filter(follows).map(|record| record.payload.clone()).collect();
        expected.sort();
        got.sort();
        prop_assert_eq!(got, expected, "each once");
        let last = page::last(&model.log, &session, &limits(limit), model.now).unwrap();
        let read = from_log(&model, &session, &Resume::Rewind(limit), limits(limit));
        prop_assert_eq!((texts(&read).len(), read.has_more, read.cursor), (last.payloads.len(), last.has_more, last.cursor));
    }
}

#[test]
fn a_page_is_bounded_by_bytes_but_never_empty_for_that() {
    let mut model = Model::new(4 << 20, 1);
    for len in [100, 5_000, 100, 100] {
        model.append("s", 0, 0, len, Form::Native);
    }
    let small = Limits {
        bytes: 1_000,
        ..LIMITS
    };
    let cursor = model.log.cursor("s", 0).unwrap();
    let mut since = Resume::since(cursor, None);
    let mut sizes = Vec::new();
    loop {
        let page = page::after(&model.log, "s", &since, &small).unwrap();
        sizes.push(page.payloads.len());
        since = resume_at(&page);
        if !page.has_more {
            break;
        }
    }
    assert_eq!(sizes, [1, 1, 2]);
    let page = page::last(&model.log, "s", &small, model.now).unwrap();
    assert_eq!((page.payloads.len(), page.has_more), (2, true));
}

/// A record of another partition whose timestamp is before that of a page's last one: no page has it, but who resumes
/// after the last page gets it.
#[test]
fn what_came_late_follows_the_last_page() {
    let mut model = Model::new(4 << 20, 2);
    let other = 1 - model.log.partition_of("s");
    let (key, mut position) = model.log.cursor_at("s", 0).unwrap();
    position.time = 0;
    let start = Resume::since(key.cursor("s", &position), None);
    model.now = clock::unix_ms();
    for _ in 0..3 {
        model.append("s", other, 0, 10, Form::Legacy);
    }
    let first = page::after(&model.log, "s", &start, &limits(2)).unwrap();
    assert!(first.has_more);
    model.now -= CLOCK_SKEW_MS / 2;
    model.append("s", other, 0, 10, Form::Legacy);
    let late = model.records.last().unwrap().payload.clone();
    // Whatever has been read meanwhile.
    model.now += 60_000;
    let last = page::after(&model.log, "s", &resume_at(&first), &limits(2)).unwrap();
    assert_eq!((last.payloads.len(), last.has_more), (1, false));
    let Resume::Cursor { cursor, .. } = resume_at(&last) else {
        panic!()
    };
    let Resume::Cursor { cursor: of_first, .. } = resume_at(&first) else {
        panic!()
    };
    assert!(cursor.position.time <= of_first.position.time);
    let after = page::after(&model.log, "s", &resume_at(&last), &limits(50)).unwrap();
    assert!(texts(&after).contains(&late));
}

#[test]
fn a_page_needs_what_follows_to_be_here() {
    let mut model = Model::new(100_000, 1);
    for _ in 0..200 {
        model.append("s", 0, 0, 1_000, Form::Native);
        model.log.delivered();
    }
    let of = |number: usize| Resume::Message {
        id: format!("m{number}"),
        time: None,
    };
    let after =
        |number| page::after(&model.log, "s", &of(number), &limits(5)).map(|page| page.payloads.len());
    assert_eq!(after(0), Err(NotHere::Older));
    assert_eq!(after(197), Ok(2));
    let last = |limit| page::last(&model.log, "s", &limits(limit), model.now + LIMITS.window_ms);
    assert!(last(5).unwrap().has_more);
    let since = model.log.lock().complete_since();
    let at = |now| page::last(&model.log, "nobody", &limits(5), now).map(|page| page.payloads.len());
    assert_eq!(at(since + LIMITS.window_ms - 1), Err(NotHere::Older));
    assert_eq!(at(since + LIMITS.window_ms), Ok(0));
}
