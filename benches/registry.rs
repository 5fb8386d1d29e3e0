//! The registry: look-ups by one thread, and by several while others join and leave.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::protocol::ids::{SessionId, UserType};
use livechat_ws::session::{Member, Registry};
use livechat_ws::writer::Start;

use crate::support::{mute_member, session_id};

const SESSIONS: usize = 10_000;

/// Sessions that one thread opens and ends again, over and over.
const CHURNED: usize = 100;

/// Threads that look up sessions, and threads that join and leave meanwhile.
const CROWDS: [(usize, usize); 5] = [(1, 0), (1, 1), (4, 0), (4, 1), (4, 4)];

fn join(registry: &Registry, session_id: &SessionId, member: &Member) {
    registry.join(session_id, member, UserType::Customer, Start::Live, |_| {
        Bytes::new()
    });
}

fn join_and_leave(registry: &Registry, session_id: &SessionId, member: &Member) {
    let (session, _) = registry.join(session_id, member, UserType::Customer, Start::Live, |_| {
        Bytes::new()
    });
    registry.leave(&session, member);
}

/// How long `askers` take for so many look-ups each, while `churners` join and leave.
fn ask(registry: &Registry, member: &Member, (askers, churners): (usize, usize), lookups: u64) -> Duration {
    let ids: Vec<_> = (0..SESSIONS).map(session_id).collect();
    let (start, is_over) = (Barrier::new(askers + churners + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        for n in 0..churners {
            let (start, is_over) = (&start, &is_over);
            scope.spawn(move || {
                let first = SESSIONS + n * CHURNED;
                let own: Vec<_> = (first..first + CHURNED).map(session_id).collect();
                start.wait();
                while !is_over.load(Ordering::Relaxed) {
                    for session_id in &own {
                        join_and_leave(registry, session_id, member);
                    }
                }
            });
        }
        let asking: Vec<_> = (0..askers)
            .map(|n| {
                let (start, ids) = (&start, &ids);
                scope.spawn(move || {
                    // Each starts at a different session, so that they don't run in step.
                    let (before, after) = ids.split_at(n * SESSIONS / askers);
                    let ids = after.iter().chain(before).cycle();
                    start.wait();
                    for session_id in ids.take(usize::try_from(lookups).expect("a count")) {
                        black_box(registry.get(session_id.as_str()));
                    }
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        for asker in asking {
            asker.join().expect("a thread that asks");
        }
        let took = began.elapsed();
        is_over.store(true, Ordering::Relaxed);
        took
    })
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("registry/get");
    let (registry, member) = (Registry::default(), mute_member());
    for n in 0..SESSIONS {
        join(&registry, &session_id(n), &member);
    }
    for (askers, churners) in CROWDS {
        group.throughput(Throughput::Elements(askers as u64));
        let name = format!("{askers}_asking_{churners}_joining_and_leaving");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|lookups| ask(&registry, &member, (askers, churners), lookups));
        });
    }
    group.finish();
}

fn joins(c: &mut Criterion) {
    let (registry, member, session_id) = (Registry::default(), mute_member(), session_id(0));
    c.bench_function("registry/join_and_leave", |b| {
        b.iter(|| join_and_leave(&registry, &session_id, &member));
    });
}

criterion_group!(benches, lookups, joins);
