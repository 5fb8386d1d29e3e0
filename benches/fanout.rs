//! One chunk to the sockets of a session. An iteration ends when the readers have it, not when the calls return.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::fanout::slow_readers::WaitBudget;
use livechat_ws::protocol::frame;

use crate::support::{BACKENDS, Sessions, fan_out};

const SOCKETS: [usize; 4] = [1, 10, 100, 1_000];
const PAYLOAD: usize = 300;

fn chunk(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    let chunk = frame::text(&[b'x'; PAYLOAD]);
    for (sockets, (way, backend)) in SOCKETS
        .into_iter()
        .flat_map(|sockets| BACKENDS.map(|way| (sockets, way)))
    {
        // Created lazily: the benchmark may be filtered out, and this runs for each sample.
        let mut parts = None;
        let mut budget = WaitBudget::default();
        group.throughput(Throughput::Elements(sockets as u64));
        group.bench_function(BenchmarkId::new(way, sockets), |b| {
            let (sessions, backend) = parts.get_or_insert_with(|| {
                let (sessions, mut backend) = (Sessions::open(1, sockets), backend());
                backend.prepare();
                (sessions, backend)
            });
            b.iter(|| {
                sessions.expect(chunk.len() * sockets);
                black_box(fan_out(&sessions.sessions[0], &chunk, backend, &mut budget));
                sessions.wait();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chunk);
