//! The UTF-8 check of native records, against the standard library's.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

const SIZES: [usize; 4] = [128, 1 << 10, 8 << 10, 64 << 10];

/// One character of each length.
const MIXED: &str = "aé漢😀";

/// `pattern` over and over, up to `size` bytes; the rest is spaces.
fn text(pattern: &str, size: usize) -> String {
    let mut text = pattern.repeat(size / pattern.len());
    text.extend(std::iter::repeat_n(' ', size - text.len()));
    text
}

fn check(c: &mut Criterion) {
    for (name, pattern) in [("ascii", "a"), ("multi_byte", MIXED)] {
        let mut group = c.benchmark_group(format!("utf8/{name}"));
        for size in SIZES {
            let text = text(pattern, size);
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new("simdutf8", size), |b| {
                b.iter(|| simdutf8::basic::from_utf8(black_box(text.as_bytes())).is_ok());
            });
            group.bench_function(BenchmarkId::new("std", size), |b| {
                b.iter(|| std::str::from_utf8(black_box(text.as_bytes())).is_ok());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, check);
