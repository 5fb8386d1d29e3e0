//! Clients that come back: what they have missed is replayed before they take part in live delivery.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Chat;
use crate::bus::Bus;
use crate::clock;
use crate::config::ResumeConfig;
use crate::history::query::{Answer, LogQuery};
use crate::history::range::{self, Range};
use crate::history::{Found, LogReplay, RecentLog, find};
use crate::metrics::Metrics;
use crate::metrics::history::Source;
use crate::protocol::ids::SessionId;
use crate::protocol::resume::{NotResumed, Resume};
use crate::writer::{ConnectionWriter, SentUpTo};

/// How often to look whether this node has read as far as a client that was connected to another one.
pub(super) const RECHECK: Duration = Duration::from_millis(50);

/// How soon the log is read again for a message that was not there.
const REREAD: Duration = Duration::from_secs(1);

/// How often to look whether a batch was delivered.
const DELIVERY: Duration = Duration::from_millis(1);

/// Limits of a replay.
#[derive(Clone, Copy, Debug)]
pub struct ResumeLimits {
    pub range: range::Limits,
    /// `RESUME_TIMEOUT`.
    pub timeout: Duration,
}

impl ResumeLimits {
    pub fn new(config: &ResumeConfig) -> Self {
        Self {
            range: range::Limits {
                messages: config.max_messages,
                bytes: config.max_bytes,
                window_ms: i64::try_from(config.window.as_millis()).unwrap_or(i64::MAX),
            },
            timeout: config.timeout,
        }
    }
}

impl Chat {
    pub(super) fn older(&self) -> Older {
        Older {
            bus: Arc::clone(&self.bus),
            history: Arc::clone(&self.history),
            limits: self.resume_limits,
        }
    }

    /// Updates the recent log's metrics.
    pub fn measure_history(&self) {
        let (bytes, oldest) = self.history.usage();
        let metrics = &self.metrics.history;
        metrics
            .recent_log_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let age = oldest.map_or(0, |oldest| (clock::unix_ms() - oldest) / 1000);
        metrics.recent_log_age.set(age.max(0));
    }

    /// The cursor of a greeting: what the client has already. A client that comes back with a message's id has not got
    /// what is replayed next, and keeps that id until `resumed`.
    pub(super) fn first_cursor(
        &self,
        session_id: &SessionId,
        resume: Option<&Resume>,
        position: u64,
    ) -> Option<String> {
        match resume {
            None => self.history.cursor(session_id.as_str(), position),
            Some(Resume::Cursor { text, .. }) => Some(text.clone()),
            Some(_) => None,
        }
    }

    /// The cursor of a connection that has got this much.
    pub(super) fn cursor(&self, session_id: &str, sent_up_to: SentUpTo) -> Option<String> {
        let position = match sent_up_to {
            SentUpTo::Live(position) => position.max(self.history.delivered_end()),
            SentUpTo::Replay(position) => position,
            SentUpTo::Unknown => return None,
        };
        self.history.cursor(session_id, position)
    }

    /// Replays what a connection has missed; it gets records live from the position `start` on.
    pub(super) fn resume(
        &self,
        session_id: &SessionId,
        writer: &Arc<ConnectionWriter>,
        resume: Resume,
        start: u64,
    ) {
        let resuming = Resuming {
            older: self.older(),
            history: Arc::clone(&self.history),
            metrics: Arc::clone(&self.metrics),
            limits: self.resume_limits,
            session_id: session_id.clone(),
            writer: Arc::downgrade(writer),
            resume,
            start,
        };
        match resuming.find() {
            Found::Range(range) if resuming.may_begin(&range) => {
                resuming.begin(Ok((VecDeque::new(), range)), Source::Memory);
            }
            Found::Refused(why) => resuming.begin(Err(why), Source::Memory),
            Found::Range(_) | Found::Ahead | Found::Older => drop(tokio::spawn(resuming.wait())),
        }
    }
}

/// Asks for what is older than the recent log.
#[derive(Clone)]
pub(super) struct Older {
    bus: Arc<Bus>,
    history: Arc<RecentLog>,
    limits: ResumeLimits,
}

impl Older {
    /// With room for so many messages.
    pub(super) fn of_at_least(mut self, messages: usize) -> Self {
        self.limits.range.messages = self.limits.range.messages.max(messages);
        self
    }

    /// What follows in a session, up to the position `end` of the recent log.
    pub(super) async fn read(
        &self,
        session_id: &SessionId,
        resume: &Resume,
        end: u64,
        deadline: Instant,
    ) -> Answer {
        let ends = self.history.offsets_at(session_id.as_str(), end);
        let (reply, answer) = oneshot::channel();
        self.bus.query_log(LogQuery {
            session_id: session_id.clone(),
            resume: resume.clone(),
            ends: ends.ok_or(NotResumed::Unavailable)?,
            limits: self.limits.range,
            deadline,
            reply: Box::new(move |answer| drop(reply.send(answer))),
        });
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotResumed::Unavailable),
        }
    }
}

/// A connection whose replay has not begun.
struct Resuming {
    older: Older,
    history: Arc<RecentLog>,
    metrics: Arc<Metrics>,
    limits: ResumeLimits,
    session_id: SessionId,
    /// Weak, so that it does not keep a closed connection's socket open.
    writer: Weak<ConnectionWriter>,
    resume: Resume,
    start: u64,
}

impl Resuming {
    /// The position from which on it gets records live.
    fn start(&self) -> u64 {
        self.history.live_start(self.start)
    }

    fn find(&self) -> Found {
        let (session_id, limits) = (self.session_id.as_str(), &self.limits.range);
        find(
            &self.history,
            session_id,
            &self.resume,
            self.start(),
            limits,
            clock::unix_ms(),
        )
    }

    /// Whether this node may not have read the client's message yet.
    fn may_come(&self) -> bool {
        matches!(self.resume, Resume::Message { time: Some(time), .. } if self.history.may_not_have_read(time))
    }

    /// Whether what the client has was delivered here, too: once a replay has ended, nothing drops it any more.
    fn may_begin(&self, range: &Range) -> bool {
        range.live_until <= self.history.delivered_end()
    }

    /// Waits until this node has read as far as the client has.
    async fn wait(self) {
        let until = Instant::now() + self.limits.timeout;
        let mut was_unknown = false;
        loop {
            let mut pause = RECHECK;
            let refusal = match self.find() {
                Found::Range(range) if self.may_begin(&range) => {
                    return self.begin(Ok((VecDeque::new(), range)), Source::Memory);
                }
                Found::Range(_) => {
                    pause = DELIVERY;
                    NotResumed::Unavailable
                }
                Found::Refused(why) => return self.begin(Err(why), Source::Memory),
                Found::Older => {
                    let answer = self
                        .older
                        .read(&self.session_id, &self.resume, self.start(), until)
                        .await;
                    match answer {
                        // It may come: another node has read further.
                        Err(NotResumed::UnknownMessage) if self.may_come() => {
                            (pause, was_unknown) = (REREAD, true);
                            NotResumed::UnknownMessage
                        }
                        // There was no time to read the log once more.
                        Err(NotResumed::Unavailable) if was_unknown => {
                            let why = behind(&self.history, Some(&self.resume));
                            return self.begin(Err(why), Source::Log);
                        }
                        answer => {
                            let range = Range::after(&self.resume);
                            return self.begin(answer.map(|older| (older, range)), Source::Log);
                        }
                    }
                }
                Found::Ahead => behind(&self.history, Some(&self.resume)),
            };
            let is_open = self.writer.upgrade().is_some_and(|writer| writer.is_open());
            if !is_open {
                return;
            }
            if Instant::now() >= until || !may_catch_up(&self.history, Some(&self.resume)) {
                return self.begin(Err(refusal), Source::Memory);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn begin(self, found: Result<(VecDeque<Bytes>, Range), NotResumed>, source: Source) {
        self.metrics.history.resumed(
            found
                .as_ref()
                .map(|(older, range)| older.len() + range.positions.len())
                .map_err(|why| *why),
            source,
        );
        let Some(writer) = self.writer.upgrade() else {
            return;
        };
        let (asked, start) = (self.resume.asked(), self.start());
        let replay = LogReplay::new(self.history, self.session_id, start, asked, found);
        writer.replay(Box::new(replay));
    }
}

/// Why there is nothing for a client that seems to be ahead of this node, once it has waited.
pub(super) fn behind(history: &RecentLog, resume: Option<&Resume>) -> NotResumed {
    match resume {
        Some(Resume::Message { time: Some(time), .. }) if history.has_read(*time) => {
            NotResumed::UnknownMessage
        }
        _ => NotResumed::Unavailable,
    }
}

/// Whether a message that this node does not know may still come: it is not older than what the node has read.
pub(super) fn may_catch_up(history: &RecentLog, resume: Option<&Resume>) -> bool {
    match resume {
        Some(Resume::Message { time: Some(time), .. }) => history.may_not_have_read(*time),
        _ => true,
    }
}
