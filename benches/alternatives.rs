//! Alternatives to what delivery does, compared with it; docs/decisions has the figures.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::fanout::backend::FanoutBackend;
use livechat_ws::fanout::slow_readers::WaitBudget;
use livechat_ws::protocol::frame;
use livechat_ws::session::{Member, Session};
use socket2::SockRef;

use crate::support::{BACKENDS, Sessions, fan_out};

const SOCKETS: usize = 1_000;
const PAYLOAD: usize = 300;

/// Sends to every socket without a writer.
type SendAll = fn(&[Member], &[u8]);

/// The frame is built once, with its payload copied after its header.
fn contiguous(members: &[Member], payload: &[u8]) {
    let chunk = frame::text(payload);
    for member in members {
        let sent = SockRef::from(&member.writer.socket()).send(&chunk);
        assert_eq!(sent.expect("room in the socket"), chunk.len());
    }
}

/// The payload stays where it is: header and payload are two vectors of each call.
fn vectored(members: &[Member], payload: &[u8]) {
    let chunk_len = frame::text_frame_len(payload.len());
    let header = header(payload.len());
    for member in members {
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        let sent = SockRef::from(&member.writer.socket()).send_vectored(&parts);
        assert_eq!(sent.expect("room in the socket"), chunk_len);
    }
}

/// A text frame's header (RFC 6455, section 5.2) for a payload of 126 to 65,535 bytes.
fn header(len: usize) -> [u8; 4] {
    let [high, low] = u16::try_from(len).expect("a payload of this bench").to_be_bytes();
    [0x81, 126, high, low]
}

/// One chunk by a copy and `send`, against none and `writev`. The bare `send` of the first, at 100 sockets and 300
/// bytes, is also what a writer is compared to: that is `threads/send/1`.
fn copies(c: &mut Criterion) {
    let ways: [(_, SendAll); 2] = [("contiguous", contiguous), ("vectored", vectored)];
    for sockets_each in [2, 100] {
        let mut group = c.benchmark_group(format!("alternatives/copy/sessions_of_{sockets_each}"));
        group.throughput(Throughput::Elements(SOCKETS as u64));
        for size in [PAYLOAD, 4_096, 16_384, 60_000] {
            let payload = vec![b'x'; size];
            for (way, send_all) in ways {
                let mut parts = None;
                group.bench_function(BenchmarkId::new(way, size), |b| {
                    let sessions =
                        parts.get_or_insert_with(|| Sessions::open(SOCKETS / sockets_each, sockets_each));
                    b.iter_custom(|iterations| {
                        // Only the sends are measured, not the readers.
                        let mut sending = Duration::ZERO;
                        for _ in 0..iterations {
                            sessions.expect(frame::text_frame_len(size) * SOCKETS);
                            let start = Instant::now();
                            for session in &sessions.sessions {
                                send_all(&session.members(), &payload);
                            }
                            sending += start.elapsed();
                            sessions.wait();
                        }
                        sending
                    });
                });
            }
        }
        group.finish();
    }
}

/// Another delivery thread, which takes its half of a batch.
struct Helper {
    batches: Sender<Vec<Arc<Session>>>,
    done: Receiver<()>,
}

impl Helper {
    fn start(chunk: Bytes, mut backend: FanoutBackend) -> Self {
        let (batches, inbox) = mpsc::channel::<Vec<Arc<Session>>>();
        let (out, done) = mpsc::channel();
        thread::spawn(move || {
            backend.prepare();
            let mut budget = WaitBudget::default();
            for batch in inbox {
                for session in &batch {
                    fan_out(session, &chunk, &mut backend, &mut budget);
                }
                if out.send(()).is_err() {
                    return;
                }
            }
        });
        Self { batches, done }
    }
}

/// One chunk to every session, by one thread or by two; until the last send has returned.
fn threads(c: &mut Criterion) {
    const SOCKETS_EACH: usize = 100;
    let chunk = frame::text(&[b'x'; PAYLOAD]);
    let mut group = c.benchmark_group("alternatives/threads");
    group.throughput(Throughput::Elements(SOCKETS as u64));
    for (way, make) in BACKENDS {
        for number in [1, 2] {
            let mut parts = None;
            group.bench_function(BenchmarkId::new(way, number), |b| {
                let (sessions, backend, helper) = parts.get_or_insert_with(|| {
                    let (sessions, mut backend) =
                        (Sessions::open(SOCKETS / SOCKETS_EACH, SOCKETS_EACH), make());
                    backend.prepare();
                    let helper = Helper::start(chunk.clone(), make());
                    (sessions, backend, helper)
                });
                let (ours, theirs) = sessions.sessions.split_at(sessions.sessions.len() / number);
                let mut budget = WaitBudget::default();
                b.iter_custom(|iterations| {
                    let mut sending = Duration::ZERO;
                    for _ in 0..iterations {
                        sessions.expect(chunk.len() * SOCKETS);
                        let start = Instant::now();
                        if !theirs.is_empty() {
                            helper.batches.send(theirs.to_vec()).expect("the helper lives");
                        }
                        for session in ours {
                            fan_out(session, &chunk, backend, &mut budget);
                        }
                        if !theirs.is_empty() {
                            helper.done.recv().expect("the helper lives");
                        }
                        sending += start.elapsed();
                        sessions.wait();
                    }
                    sending
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, copies, threads);
