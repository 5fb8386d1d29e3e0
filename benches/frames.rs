//! Frames: header and payload into one contiguous buffer, alone and as a batch in one chunk.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::protocol::frame;

/// Payload sizes: one for each header length, and typical chat messages.
const SIZES: [usize; 5] = [100, 300, 1 << 10, 16 << 10, 64 << 10];

/// A chunk's worth of frames at most.
const BATCHES: [usize; 3] = [1, 10, 200];
const PAYLOAD: usize = 300;

fn one(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames/text");
    for size in SIZES {
        let payload = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| frame::text(black_box(&payload)));
        });
    }
    group.finish();
}

fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames/batch_of_300_bytes");
    let payload = vec![b'x'; PAYLOAD];
    for frames in BATCHES {
        group.throughput(Throughput::Elements(frames as u64));
        group.bench_function(BenchmarkId::from_parameter(frames), |b| {
            // Like delivery, which reuses its buffers.
            let mut chunk = Vec::new();
            b.iter(|| {
                chunk.clear();
                for _ in 0..frames {
                    frame::put_text(&mut chunk, black_box(&payload));
                }
                black_box(&chunk);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one, batch);
