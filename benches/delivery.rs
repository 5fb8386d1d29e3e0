//! Batches of records through delivery, as the bus's thread does it, until the readers have them.

use criterion::{Criterion, Throughput, criterion_group};
use livechat_ws::fanout::backend::FanoutBackend;
use livechat_ws::protocol::ids::SessionId;

use crate::support::{BACKENDS, Record, Sessions, deliver, session_id};

/// The text of a message: with it a payload has some 300 bytes.
const TEXT: usize = 100;

/// Makes a record with a text of this length.
type Make = fn(&SessionId, usize) -> Record;

/// A batch: `records` in each of this many sessions, each with this many sockets.
struct Load {
    name: &'static str,
    record: Make,
    sessions: usize,
    sockets_each: usize,
    records: usize,
}

const LOADS: [Load; 5] = [
    Load {
        name: "1_record_to_1_session_of_100",
        record: Record::native,
        sessions: 1,
        sockets_each: 100,
        records: 1,
    },
    Load {
        name: "100_records_to_1_session_of_100",
        record: Record::native,
        sessions: 1,
        sockets_each: 100,
        records: 100,
    },
    Load {
        name: "100_old_records_to_1_session_of_100",
        record: Record::old,
        sessions: 1,
        sockets_each: 100,
        records: 100,
    },
    Load {
        name: "1_record_to_each_of_500_sessions_of_2",
        record: Record::native,
        sessions: 500,
        sockets_each: 2,
        records: 1,
    },
    // More than a slice of members.
    Load {
        name: "10_records_to_1_session_of_1000",
        record: Record::native,
        sessions: 1,
        sockets_each: 1_000,
        records: 10,
    },
];

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("delivery");
    for load in LOADS {
        let records = load.sessions * load.records;
        group.throughput(Throughput::Elements((records * load.sockets_each) as u64));
        for (way, backend) in BACKENDS {
            let mut parts = None;
            group.bench_function(format!("{}/{way}", load.name), |b| {
                let (sessions, router, batch) = parts.get_or_insert_with(|| {
                    let sessions = Sessions::open(load.sessions, load.sockets_each);
                    let router = sessions.router(backend());
                    let batch: Vec<_> = (0..records)
                        .map(|n| (load.record)(&session_id(n % load.sessions), TEXT))
                        .collect();
                    (sessions, router, batch)
                });
                b.iter(|| sessions.deliver(router, batch));
            });
        }
    }
    group.finish();
}

/// The cost of records of other nodes' sessions.
fn strangers(c: &mut Criterion) {
    let mut group = c.benchmark_group("delivery/not_here");
    let sessions = Sessions::open(1, 1);
    let mut router = sessions.router(FanoutBackend::Send);
    let forms: [(_, Make); 2] = [("native", Record::native), ("old", Record::old)];
    for (name, record) in forms {
        let batch: Vec<_> = (1..=100).map(|n| record(&session_id(n), TEXT)).collect();
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_function(name, |b| b.iter(|| deliver(&mut router, &batch)));
    }
    group.finish();
}

criterion_group!(benches, batches, strangers);
