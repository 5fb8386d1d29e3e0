//! Clients that stay connected, on a thread and an epoll of their own: those that come back must not make their reading
//! late.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use crate::crowd::{Crowd, Id, Watcher};
use crate::message::marker;
use crate::message::sequences::Sequences;

const TURN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
const IN_FLIGHT: usize = 256;

/// A record that is counted, and is no message.
pub const SIGNAL: &[u8] = b"{\"type\":\"signal\"";

pub fn session(number: usize) -> String {
    format!("s{number}")
}

pub struct Others {
    thread: Option<JoinHandle<Result<Heard>>>,
    shared: Arc<Shared>,
    /// All times are counted from here.
    pub epoch: Instant,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    greeted: AtomicU64,
    signals: AtomicU64,
}

/// What they have heard.
pub struct Heard {
    shared: Arc<Shared>,
    epoch: Instant,
    sessions: usize,
    pub sequences: Sequences,
    clients: usize,
    /// When a message was to be sent, in nanoseconds from the epoch, and how late it was, in microseconds.
    latencies: Vec<(u64, u32)>,
}

impl Others {
    /// Connects them.
    pub fn start(addr: SocketAddr, clients: usize, sessions: usize) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let epoch = Instant::now();
        let mut heard = Heard {
            shared: Arc::clone(&shared),
            epoch,
            sessions,
            sequences: Sequences::new(clients),
            clients,
            latencies: Vec::new(),
        };
        let thread = thread::spawn(move || {
            heard.listen(addr)?;
            Ok(heard)
        });
        let others = Self {
            thread: Some(thread),
            shared,
            epoch,
        };
        others.wait("are in", |shared| {
            shared.greeted.load(Ordering::Relaxed) >= clients as u64
        })?;
        Ok(others)
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut(&Shared) -> bool) -> Result<()> {
        let started = Instant::now();
        while !is_so(&self.shared) {
            ensure!(!self.have_failed(), "the others have failed before all {what}");
            ensure!(started.elapsed() < PATIENCE, "not all of the others {what}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until so many signals have come, over all clients and from the start.
    pub fn wait_for_signals(&self, count: u64) -> Result<()> {
        self.wait("have got a signal", |shared| {
            shared.signals.load(Ordering::Relaxed) >= count
        })
    }

    pub fn have_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until so many messages of each session have come, and ends.
    pub fn finish(mut self, sent: &[u64]) -> Result<Heard> {
        // What is under way comes soon, or counts as lost.
        thread::sleep(Duration::from_secs(1));
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            bail!("the others have ended");
        };
        let mut heard = thread
            .join()
            .map_err(|_| anyhow!("the others' thread panicked"))??;
        heard.sequences.lost += heard.sequences.missing(|id| sent[id % heard.sessions]);
        Ok(heard)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Heard {
    fn listen(&mut self, addr: SocketAddr) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (mut crowd, mut opened) = (Crowd::new()?, 0);
        while !shared.stop.load(Ordering::Relaxed) {
            let greeted = shared.greeted.load(Ordering::Relaxed) as usize;
            while opened < self.clients && opened - greeted < IN_FLIGHT {
                let session = session(opened % self.sessions);
                crowd.open(addr, &format!("/ws/{session}/u{opened}/customer"))?;
                opened += 1;
            }
            crowd.turn(TURN, self)?;
        }
        Ok(())
    }

    /// Latencies of the messages that were to be sent in these times, in milliseconds: at these quantiles.
    pub fn latency_ms<const N: usize>(
        &self,
        during: &[Range<Instant>],
        quantiles: [f64; N],
    ) -> Result<[f64; N]> {
        let nanos = |at: Instant| at.saturating_duration_since(self.epoch).as_nanos() as u64;
        let during: Vec<_> = during
            .iter()
            .map(|during| nanos(during.start)..nanos(during.end))
            .collect();
        let mut found: Vec<u32> = self
            .latencies
            .iter()
            .filter(|(intended, _)| during.iter().any(|during| during.contains(intended)))
            .map(|(_, latency)| *latency)
            .collect();
        ensure!(
            !found.is_empty(),
            "no message of the others was due: a higher rate is needed"
        );
        found.sort_unstable();
        let last = found.len() - 1;
        Ok(quantiles.map(|quantile| f64::from(found[(last as f64 * quantile).round() as usize]) / 1e3))
    }
}

impl Watcher for Heard {
    fn opened(&mut self, _id: Id, _now: Instant) {
        self.shared.greeted.fetch_add(1, Ordering::Relaxed);
    }

    fn frame(&mut self, id: Id, payload: &[u8], now: Instant) {
        if payload.starts_with(SIGNAL) {
            self.shared.signals.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        marker::find_all(payload, |marker| {
            if !self.sequences.take(id, marker.number) {
                return;
            }
            let micros = now.saturating_sub(marker.intended) / 1_000;
            self.latencies
                .push((marker.intended, u32::try_from(micros).unwrap_or(u32::MAX)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::message::marker::Marker;
    use super::*;

    #[test]
    fn latencies_are_of_what_was_due_in_that_time() {
        let epoch = Instant::now();
        let mut heard = Heard {
            shared: Arc::default(),
            epoch,
            sessions: 1,
            sequences: Sequences::new(2),
            clients: 2,
            latencies: Vec::new(),
        };
        let ms = Duration::from_millis;
        for (number, due, late) in [(0, 0, 5), (1, 10, 1), (2, 20, 2), (2, 20, 2), (4, 30, 9)] {
            let intended = ms(due).as_nanos() as u64;
            let frame = Marker { number, intended }.bytes();
            heard.frame(0, &frame, epoch + ms(due + late));
        }
        heard.frame(0, &[SIGNAL, b"}"].concat(), epoch);
        assert_eq!((heard.sequences.lost, heard.sequences.doubled), (1, 1));
        assert_eq!(heard.shared.signals.load(Ordering::Relaxed), 1);
        let during = [epoch + ms(10)..epoch + ms(15), epoch + ms(15)..epoch + ms(30)];
        assert_eq!(heard.latency_ms(&during, [0.0, 1.0]).unwrap(), [1.0, 2.0]);
        assert!(
            heard
                .latency_ms(&[epoch + ms(40)..epoch + ms(50)], [0.5])
                .is_err()
        );
    }
}
