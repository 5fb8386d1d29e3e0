use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const WINDOW: Duration = Duration::from_millis(100);

fn message(number: usize) -> Sent {
    Sent::of_payload(
        format!(r#"{{"data":{{"message_id":"m{number}"}}}}"#).as_bytes(),
        None,
        0,
    )
}

/// The rule as the contract has it, over a list of all records: each with the message that answers it.
#[derive(Default)]
struct Model {
    records: Vec<(SentRecord, Sent)>,
}

impl Model {
    fn read(&mut self, record: SentRecord, message: Sent) -> (Sent, bool) {
        let earlier = self.records.iter().rev().find(|(earlier, _)| {
            earlier.key == record.key
                && earlier.partition == record.partition
                && record.time - earlier.time <= 100
        });
        let (first, is_repeat) = match earlier {
            Some((_, first)) => (first.clone(), true),
            None => (message, false),
        };
        self.records.push((record, first.clone()));
        (first, is_repeat)
    }
}

proptest! {
    /// With room for all, the table is the rule; with too little, it may only forget.
    #[test]
    fn repeats_are_those_of_the_rule(
        bytes in prop_oneof![Just(1usize << 20), 300usize..6_000],
        first in prop_oneof![Just(1u32), Just(u32::MAX - 20)],
        records in prop::collection::vec((0u64..12, 0i32..3, 0i64..40, any::<bool>()), 1..400),
    ) {
        let mut table = SentTable::new(bytes, WINDOW);
        table.first = first;
        let (mut model, mut now, mut forgotten) = (Model::default(), 1_000, 0);
        for (number, (key, partition, later, is_of_node)) in records.into_iter().enumerate() {
            now += later - 8;
            let record = SentRecord { key: Key([key, key / 2]), partition, time: now };
            let message = if is_of_node { Sent::now() } else { message(number) };
            let known = table.read(record, || message.clone());
            forgotten += known.forgotten;
            let (of_rule, is_repeat) = model.read(record, message.clone());
            // What went when it was too old may be in its window again for a record with an earlier timestamp.
            if table.first == first {
                prop_assert_eq!((&known.first, known.is_repeat), (&of_rule, is_repeat));
            } else if known.is_repeat {
                prop_assert!(is_repeat);
            } else {
                prop_assert_eq!(&known.first, &message);
            }
            prop_assert!(table.find(record.key, now).is_some());
            let memory = table.entries.len() * size_of::<Entry>() + table.buckets.len() * 4 + table.others;
            prop_assert!(memory <= bytes.max(700), "{memory} of {bytes}");
        }
        if bytes == 1 << 20 {
            prop_assert_eq!((forgotten, table.first), (0, first));
        }
    }

    /// A node that begins one window before a record decides about it and all later ones as one that has read them all.
    #[test]
    fn a_look_back_of_one_window_is_enough(
        records in prop::collection::vec((0u64..4, 0i64..60), 2..100),
        begins in any::<prop::sample::Index>(),
    ) {
        let mut now = 1_000;
        let records: Vec<_> = records
            .into_iter()
            .map(|(key, later)| {
                now += later - 8;
                SentRecord { key: Key([key, 0]), partition: 0, time: now }
            })
            .collect();
        let begins = begins.index(records.len());
        let since = records[begins..].iter().map(|record| record.time).min().unwrap() - 100;
        let looks_back_to = records.iter().position(|record| record.time >= since).unwrap();
        let repeats = |records: &[SentRecord]| -> Vec<bool> {
            let mut table = SentTable::new(65_536, WINDOW);
            records.iter().map(|record| table.read(*record, Sent::now).is_repeat).collect()
        };
        prop_assert_eq!(
            &repeats(&records)[begins..],
            &repeats(&records[looks_back_to..])[begins - looks_back_to..]
        );
    }
}

#[test]
fn the_oldest_go_first_and_are_counted_within_their_window() {
    let mut table = SentTable::new(4_096, WINDOW);
    let capacity = table.capacity as u64;
    let record = |key, time| SentRecord {
        key: Key([key, 0]),
        partition: 0,
        time,
    };
    for key in 0..capacity {
        assert_eq!(table.read(record(key, 0), Sent::now).forgotten, 0);
    }
    assert_eq!(table.read(record(capacity, 50), Sent::now).forgotten, 1);
    assert!(!table.read(record(0, 50), Sent::now).is_repeat, "forgotten");
    assert!(table.read(record(2, 100), Sent::now).is_repeat);
    assert_eq!(
        table.read(record(capacity + 1, 101), Sent::now).forgotten,
        0,
        "too old"
    );
}

#[test]
fn a_repeat_renews_the_window_and_keeps_the_answer() {
    let sent = SentMessages::new(65_536, WINDOW);
    let key = sent.key("s", b"u", b"c");
    let read = |time| {
        let record = SentRecord {
            key,
            partition: 0,
            time,
        };
        sent.read(record, || message(time as usize))
    };
    // The one of 150 came late: it does not make the window shorter.
    for (time, first) in [
        (0, 0),
        (60, 0),
        (160, 0),
        (150, 0),
        (260, 0),
        (361, 361),
        (200, 361),
        (461, 361),
        (562, 562),
    ] {
        let known = read(time);
        assert_eq!(
            (&known.first, known.is_repeat),
            (&message(first), first != time as usize),
            "{time}"
        );
        assert_eq!(sent.find(key, time), Some(known.first));
    }
    assert!(sent.find(key, 662).is_some());
    assert_eq!(sent.find(key, 663), None);
}

#[test]
fn what_was_renewed_goes_by_its_last_time() {
    let mut table = SentTable::new(4_096, WINDOW);
    let capacity = table.capacity as u64;
    let mut read = |key, time| {
        let record = SentRecord {
            key: Key([key, 0]),
            partition: 0,
            time,
        };
        table.read(record, || message(key as usize))
    };
    let mut forgotten = 0;
    // The first one comes again after each of the others, of which more come than fit.
    for key in 0..3 * capacity {
        forgotten += read(key, 10).forgotten;
        let known = read(0, 10);
        forgotten += known.forgotten;
        assert_eq!((known.first, known.is_repeat), (message(0), true), "{key}");
    }
    assert!(
        forgotten > 0 && forgotten < 3 * capacity,
        "{forgotten}: those that were renewed do not count"
    );
    assert!(!read(1, 10).is_repeat, "forgotten");
}

#[test]
fn a_repeat_has_session_user_and_client_id_of_the_first() {
    let sent = SentMessages::new(65_536, WINDOW);
    let keys = [
        sent.key("s", b"u", b"c"),
        sent.key("t", b"u", b"c"),
        sent.key("s", b"v", b"c"),
        sent.key("s", b"u", b"d"),
        sent.key("s", b"uc", b""),
        sent.key("su", b"", b"c"),
    ];
    assert_eq!(keys.into_iter().collect::<HashSet<_>>().len(), keys.len());
    let of_header = |value: &str| sent.key_of_header("s", value.as_bytes());
    for (value, key) in [
        ("u/c", Some(keys[0])),
        ("%75/%63", Some(keys[0])),
        ("v/c", Some(keys[2])),
        ("u", None),
    ] {
        assert_eq!(of_header(value), key, "{value}");
    }
    let record = |partition| SentRecord {
        key: keys[0],
        partition,
        time: 0,
    };
    assert!(!sent.read(record(0), Sent::now).is_repeat);
    assert!(!sent.read(record(1), Sent::now).is_repeat, "another partition");
    assert!(sent.read(record(0), Sent::now).is_repeat);
    assert_eq!((sent.find(keys[0], 101), sent.find(keys[1], 0)), (None, None));
    sent.set_log(1);
    sent.set_log(1);
    assert!(sent.find(keys[0], 100).is_some());
    sent.set_log(2);
    assert_eq!(sent.find(keys[0], 0), None, "of another log");
}

#[test]
fn a_message_has_the_id_and_the_timestamp_of_its_record() {
    let id = "018bcfe5-6800-7000-8000-0123456789ab";
    let node = Sent::of_node(Some(b"n"), Some(id.as_bytes())).unwrap();
    assert_eq!(
        (node.message_id().as_str(), node.timestamp().as_str()),
        (id, "2023-11-14T22:13:20.000Z")
    );
    for (node, id) in [
        (None, id),
        (Some(&b"n"[..]), &id.to_uppercase()),
        (Some(b"n"), "018bcfe5-6800-4000-8000-0123456789ab"),
        (Some(b"n"), "7"),
    ] {
        assert_eq!(Sent::of_node(node, Some(id.as_bytes())), None, "{id}");
    }
    let long = format!(r#"{{"data":{{"message_id":"{}"}}}}"#, "x".repeat(257));
    for (payload, expected) in [
        (r#"{"data":{"message_id":"a\"","timestamp":"T"}}"#, ("a\"", "T")),
        (
            r#"{"data":{"message_id":7,"timestamp":null}}"#,
            ("7", "1970-01-01T00:00:00.005Z"),
        ),
        (r#"{"data":{}}"#, ("header", "1970-01-01T00:00:00.005Z")),
        ("no JSON", ("header", "1970-01-01T00:00:00.005Z")),
        (&long, ("header", "1970-01-01T00:00:00.005Z")),
    ] {
        let sent = Sent::of_payload(payload.as_bytes(), Some(b"header"), 5);
        assert_eq!((sent.message_id().as_str(), sent.timestamp().as_str()), expected);
    }
}
