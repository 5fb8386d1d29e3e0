//! Old records into frames: as the server does it, and the same with serde_json in two ways.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::protocol::record::Converter;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::support::{Record, session_id};

/// Lengths of the message's text.
const TEXTS: [usize; 3] = [100, 1_000, 10_000];

/// Old name and new name.
const RENAMED: [(&str, &str); 8] = [
    ("id", "message_id"),
    ("session_id", "session_id"),
    ("sender_id", "sender_id"),
    ("sender_type", "sender_type"),
    ("message", "message"),
    ("message_type", "message_type"),
    ("attachments", "attachments"),
    ("created_at", "timestamp"),
];
const DROPPED: [&str; 2] = ["read_at", "updated_at"];

/// Every value is parsed and written again.
fn by_values(record: &[u8]) -> Vec<u8> {
    let mut record: Map<String, Value> = serde_json::from_slice(record).expect("an object");
    let mut data = Map::new();
    for (old, new) in RENAMED {
        data.insert(new.to_owned(), record.remove(old).unwrap_or_default());
    }
    for (name, value) in record {
        if !DROPPED.contains(&&*name) {
            data.entry(name).or_insert(value);
        }
    }
    serde_json::to_vec(&json!({"type": "new_message", "success": true, "data": data})).expect("JSON")
}

/// Values are passed on unparsed, so this checks less than the server does.
fn by_raw_values(record: &[u8]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Frame<'a> {
        r#type: &'static str,
        success: bool,
        data: BTreeMap<Cow<'a, str>, &'a RawValue>,
    }
    let mut record: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(record).expect("an object");
    let mut data = BTreeMap::new();
    for (old, new) in RENAMED {
        data.insert(Cow::Borrowed(new), record.remove(old).unwrap_or(RawValue::NULL));
    }
    for (name, value) in record {
        if !DROPPED.contains(&&*name) {
            data.entry(name).or_insert(value);
        }
    }
    serde_json::to_vec(&Frame {
        r#type: "new_message",
        success: true,
        data,
    })
    .expect("JSON")
}

fn by_the_server(converter: &mut Converter, record: &[u8]) -> Vec<u8> {
    let converted = converter.message(record, |_| true).expect("a good record");
    converted.expect("a wanted record").1
}

fn convert(c: &mut Criterion) {
    let mut group = c.benchmark_group("records/old");
    let mut converter = Converter::default();
    for text_len in TEXTS {
        let record = Record::old(&session_id(0), text_len).value;
        let parsed = |payload: Vec<u8>| serde_json::from_slice::<Value>(&payload).expect("JSON");
        let expected = parsed(by_the_server(&mut converter, &record));
        assert_eq!(parsed(by_values(&record)), expected);
        assert_eq!(parsed(by_raw_values(&record)), expected);

        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_function(BenchmarkId::new("simd_json", text_len), |b| {
            b.iter(|| by_the_server(&mut converter, black_box(&record)));
        });
        group.bench_function(BenchmarkId::new("serde_json_values", text_len), |b| {
            b.iter(|| by_values(black_box(&record)));
        });
        group.bench_function(BenchmarkId::new("serde_json_raw_values", text_len), |b| {
            b.iter(|| by_raw_values(black_box(&record)));
        });
    }
    group.finish();
}

criterion_group!(benches, convert);
