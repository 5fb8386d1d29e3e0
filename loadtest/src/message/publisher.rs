//! Sends messages by a clock, or as fast as they are taken. Whatever is late, a message says when it was to be sent:
//! a stalled server shows in the latency of all that waited (no coordinated omission).

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::http::HttpSink;
use super::marker::Marker;
use crate::feed;
use crate::kafka::Producer;
use crate::template::{Template, Values};

/// Who sends, where a template asks.
pub const SENDER: &str = "lt";
/// What is collected for one write of the feed.
const FEED_CHUNK: usize = 32 * 1024;

/// Where messages go.
pub enum Sink {
    Kafka(Producer),
    /// The bare loop's own stream.
    Feed(TcpStream, Vec<u8>),
    Http(HttpSink),
}

impl Sink {
    pub fn feed(addr: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.write_all(format!("{}\r\n", feed::REQUEST).as_bytes())?;
        Ok(Self::Feed(socket, Vec::new()))
    }

    /// Queues a message; it may be sent only by [`Self::finish`].
    pub fn send(&mut self, session: &str, number: usize, payload: &[u8]) -> Result<()> {
        match self {
            Self::Kafka(producer) => producer.send(session, number, payload),
            Self::Feed(_, buffer) => {
                feed::write(buffer, session, payload);
                if buffer.len() >= FEED_CHUNK {
                    self.push()
                } else {
                    Ok(())
                }
            }
            Self::Http(http) => http.send(session, payload),
        }
    }

    /// Call this when no more messages are due at the moment.
    fn push(&mut self) -> Result<()> {
        if let Self::Feed(socket, buffer) = self
            && !buffer.is_empty()
        {
            socket.write_all(buffer)?;
            buffer.clear();
        }
        Ok(())
    }

    /// Makes sure that everything has been sent.
    pub fn finish(&mut self) -> Result<()> {
        match self {
            Self::Kafka(producer) => producer.flush(),
            Self::Feed(..) => self.push(),
            Self::Http(_) => Ok(()),
        }
    }
}

/// How fast messages go out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// This many a second, over all sessions in turn.
    Rate(f64),
    /// As fast as they are accepted, with at most this many in flight.
    UnderWay(u64),
}

/// Which message is next, and when.
pub struct Schedule {
    pub pace: Pace,
    pub sessions: Vec<String>,
    pub template: Template,
    /// Times in messages are counted from here.
    pub epoch: Instant,
    start: Instant,
    sent: u64,
    payload: Vec<u8>,
}

impl Schedule {
    pub fn new(pace: Pace, sessions: Vec<String>, template: Template, epoch: Instant) -> Self {
        Self {
            pace,
            sessions,
            template,
            epoch,
            start: Instant::now(),
            sent: 0,
            payload: Vec::new(),
        }
    }

    pub fn restart(&mut self) {
        self.start = Instant::now();
    }

    /// When the next message is due; now where there is no clock.
    pub fn due(&self) -> Instant {
        match self.pace {
            Pace::Rate(rate) => self.start + Duration::from_secs_f64(self.sent as f64 / rate),
            Pace::UnderWay(_) => Instant::now(),
        }
    }

    /// The next message: its session's number, name and payload.
    pub fn take(&mut self) -> (usize, &str, &[u8]) {
        let intended = self.due() - self.epoch;
        let count = self.sessions.len() as u64;
        let session = (self.sent % count) as usize;
        let marker = Marker {
            number: self.sent / count,
            intended: intended.as_nanos() as u64,
        };
        let values = Values {
            session: &self.sessions[session],
            user: SENDER,
            number: self.sent,
            marker: &marker.bytes(),
        };
        self.payload.clear();
        self.template.render(&mut self.payload, values);
        self.sent += 1;
        (session, &self.sessions[session], &self.payload)
    }

    /// How many went into each session.
    pub fn sent(&self) -> Vec<u64> {
        let count = self.sessions.len() as u64;
        (0..count)
            .map(|session| self.sent / count + u64::from(session < self.sent % count))
            .collect()
    }
}

/// A thread that publishes until it is stopped.
pub struct Publisher {
    thread: Option<JoinHandle<Result<Vec<u64>>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Messages that have been delivered to all, about.
    done: AtomicU64,
}

impl Publisher {
    pub fn start(mut schedule: Schedule, mut sink: Sink) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            schedule.restart();
            while !theirs.stop.load(Ordering::Relaxed) {
                let waits = match schedule.pace {
                    Pace::Rate(_) => schedule.due().saturating_duration_since(Instant::now()),
                    Pace::UnderWay(most) if schedule.sent >= theirs.done.load(Ordering::Relaxed) + most => {
                        Duration::from_micros(500)
                    }
                    Pace::UnderWay(_) => Duration::ZERO,
                };
                if waits > Duration::ZERO {
                    sink.push()?;
                    thread::sleep(waits.min(Duration::from_millis(20)));
                    continue;
                }
                let (number, session, payload) = schedule.take();
                sink.send(session, number, payload)?;
                // With a clock, each message is a separate event, however late.
                if matches!(schedule.pace, Pace::Rate(_)) {
                    sink.push()?;
                }
            }
            sink.finish()?;
            Ok(schedule.sent())
        });
        Self {
            thread: Some(thread),
            shared,
        }
    }

    /// Sets how many messages have arrived everywhere, which limits a publisher without a clock.
    pub fn note_done(&self, messages: u64) {
        self.shared.done.store(messages, Ordering::Relaxed);
    }

    /// Whether it has ended by itself, which means a failure.
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub fn ask_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Stops it, and goes on with something meanwhile: who no longer reads may be what it waits for. Gives how many
    /// went into each session.
    pub fn finish_while(mut self, mut go_on: impl FnMut() -> Result<()>) -> Result<Vec<u64>> {
        self.ask_to_stop();
        let thread = self
            .thread
            .take()
            .ok_or_else(|| anyhow!("the publisher has ended"))?;
        while !thread.is_finished() {
            go_on()?;
        }
        thread.join().map_err(|_| anyhow!("the publisher panicked"))?
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::marker;
    use super::*;

    #[test]
    fn sessions_take_turns_and_each_counts_from_zero() {
        let epoch = Instant::now();
        let sessions = vec!["a".to_owned(), "b".to_owned()];
        let mut schedule = Schedule::new(
            Pace::Rate(1000.0),
            sessions,
            Template::parse("{session}{marker}"),
            epoch,
        );
        schedule.start = epoch;
        let mut seen = Vec::new();
        for _ in 0..5 {
            let (number, name, payload) = schedule.take();
            let name = name.to_owned();
            marker::find_all(payload, |marker| {
                seen.push((number, name.clone(), marker.number, marker.intended / 1_000_000))
            });
        }
        let turns = [
            (0, "a", 0, 0),
            (1, "b", 0, 1),
            (0, "a", 1, 2),
            (1, "b", 1, 3),
            (0, "a", 2, 4),
        ];
        assert_eq!(
            seen,
            turns.map(|(at, name, number, ms)| (at, name.to_owned(), number, ms))
        );
        assert_eq!(schedule.sent(), [3, 2]);
    }
}
