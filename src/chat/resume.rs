//! Clients that come back: what they have missed is replayed before they take part in live delivery.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Chat;
use super::searches::Searches;
use crate::bus::Bus;
use crate::clock;
use crate::config::ResumeConfig;
use crate::history::query::{Answer, LogQuery, Wanted};
use crate::history::range;
use crate::history::{LogReplay, NotHere, RecentLog, find, is_quick};
use crate::metrics::Metrics;
use crate::metrics::history::Source;
use crate::protocol::ids::SessionId;
use crate::protocol::resume::{NotResumed, Resume};
use crate::writer::{ConnectionWriter, SentUpTo};

/// How often to look whether this node has read as far as a client that was connected to another one.
pub(super) const RECHECK: Duration = Duration::from_millis(50);

/// How soon the log is read again for a message that was not there.
pub(super) const REREAD: Duration = Duration::from_secs(1);

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
            limits: self.resume_limits.range,
            wanted: Wanted::All,
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
            Some(Resume::Cursor { text, cursor }) => {
                let is_good = self.history.has_signed(session_id.as_str(), cursor);
                is_good.then(|| text.clone())
            }
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

    /// Replays what a connection has missed; it gets records live from the position `joined` on.
    pub(super) fn resume(
        &self,
        session_id: &SessionId,
        writer: &Arc<ConnectionWriter>,
        resume: Resume,
        joined: u64,
    ) {
        let resuming = Resuming {
            older: self.older(),
            search: Search {
                history: Arc::clone(&self.history),
                session_id: session_id.clone(),
                resume,
                limits: self.resume_limits.range,
                searched: 0,
            },
            metrics: Arc::clone(&self.metrics),
            timeout: self.resume_limits.timeout,
            writer: Arc::downgrade(writer),
            joined,
            asked_at: clock::unix_ms(),
            searches: self.searches.clone(),
        };
        if !resuming.search.is_quick() {
            return drop(tokio::spawn(resuming.wait()));
        }
        let start = resuming.start();
        match resuming.search.find(start) {
            Ok(positions) => resuming.begin(start, Ok((VecDeque::new(), positions)), Source::Memory),
            Err(NotHere::Refused(why)) => resuming.refuse(why, Source::Memory),
            Err(NotHere::Ahead | NotHere::Undelivered | NotHere::Older) => {
                drop(tokio::spawn(resuming.wait()));
            }
        }
    }
}

/// Asks for what is older than the recent log.
#[derive(Clone)]
pub(super) struct Older {
    bus: Arc<Bus>,
    history: Arc<RecentLog>,
    limits: range::Limits,
    wanted: Wanted,
}

impl Older {
    /// Of what it is asked for, as much as fits a page.
    pub(super) fn of_page(mut self, limits: range::Limits) -> Self {
        (self.limits, self.wanted) = (limits, Wanted::Page);
        self
    }

    /// Whether this node has read everything that was in the log at this time. Whatever a client knew then was there: the
    /// times of messages do not tell, as producers may have kept them for long.
    pub(super) fn has_read(&self, time: i64) -> bool {
        self.history.has_read(time) || {
            self.bus.note_progress();
            self.history.has_read(time)
        }
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
            wanted: self.wanted,
            ends: ends.ok_or(NotResumed::Unavailable)?,
            limits: self.limits,
            deadline,
            reply: Box::new(move |answer| drop(reply.send(answer))),
        });
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotResumed::Unavailable),
        }
    }
}

/// What a client has, to be searched for in the recent log.
#[derive(Clone)]
struct Search {
    history: Arc<RecentLog>,
    session_id: SessionId,
    resume: Resume,
    limits: range::Limits,
    /// Up to which position the client's message was searched for in vain.
    searched: u64,
}

impl Search {
    /// Whether it holds up nobody.
    fn is_quick(&self) -> bool {
        is_quick(
            &self.history,
            self.session_id.as_str(),
            &self.resume,
            self.searched,
        )
    }

    /// The positions before `start` of what the client has missed.
    fn find(&self, start: u64) -> Result<Vec<u64>, NotHere> {
        find(
            &self.history,
            self.session_id.as_str(),
            &self.resume,
            (self.searched, start),
            &self.limits,
            clock::unix_ms(),
        )
    }
}

/// A connection whose replay has not begun.
struct Resuming {
    older: Older,
    search: Search,
    metrics: Arc<Metrics>,
    /// `RESUME_TIMEOUT`.
    timeout: Duration,
    /// Weak, so that it does not keep a closed connection's socket open.
    writer: Weak<ConnectionWriter>,
    /// The position from which on its session sends it records live.
    joined: u64,
    /// When it has joined, in milliseconds since 1970.
    asked_at: i64,
    searches: Searches,
}

impl Resuming {
    /// The position where live records begin that the replay does not have: it has all that were delivered up to now. The
    /// later that is, the less the client can be ahead of it.
    fn start(&self) -> u64 {
        self.joined.max(self.search.history.delivered_end())
    }

    /// What it has missed up to the position that is returned, without holding up the runtime.
    async fn run_search(&self, until: Instant) -> (u64, Result<Vec<u64>, NotHere>) {
        if self.search.is_quick() {
            let start = self.start();
            return (start, self.search.find(start));
        }
        let Some(place) = self.searches.place(&self.search.session_id, until).await else {
            return (self.joined, Err(NotHere::Refused(NotResumed::Busy)));
        };
        let (start, search) = (self.start(), self.search.clone());
        let found = tokio::task::spawn_blocking(move || {
            let _place = place;
            search.find(start)
        });
        let failed = Err(NotHere::Refused(NotResumed::Unavailable));
        (start, found.await.unwrap_or(failed))
    }

    /// Waits until this node has read as far as the client has.
    async fn wait(mut self) {
        let until = Instant::now() + self.timeout;
        loop {
            // Before it is looked for: what comes meanwhile may be it.
            let has_read = self.older.has_read(self.asked_at);
            let (end, mut pause) = (self.search.history.end_position(), RECHECK);
            let (start, found) = self.run_search(until).await;
            if matches!(found, Err(NotHere::Ahead | NotHere::Older)) {
                self.search.searched = end;
            }
            let refusal = match found {
                Ok(positions) => {
                    return self.begin(start, Ok((VecDeque::new(), positions)), Source::Memory);
                }
                Err(NotHere::Refused(why)) => return self.refuse(why, Source::Memory),
                Err(NotHere::Undelivered) => {
                    pause = DELIVERY;
                    NotResumed::Unavailable
                }
                Err(NotHere::Ahead) => behind(&self.search.resume, has_read),
                Err(NotHere::Older) => {
                    let answer = self
                        .older
                        .read(&self.search.session_id, &self.search.resume, start, until)
                        .await;
                    match answer {
                        Ok(older) => {
                            return self.begin(start, Ok((older.into_frames(), Vec::new())), Source::Log);
                        }
                        // This node may not have read it yet.
                        Err(NotResumed::UnknownMessage) if !has_read => {
                            pause = REREAD;
                            NotResumed::Unavailable
                        }
                        Err(why) => return self.refuse(why, Source::Log),
                    }
                }
            };
            let is_open = self.writer.upgrade().is_some_and(|writer| writer.is_open());
            if !is_open {
                return;
            }
            if Instant::now() >= until || refusal == NotResumed::UnknownMessage {
                return self.refuse(refusal, Source::Memory);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn refuse(self, why: NotResumed, source: Source) {
        // Nothing is replayed: it gets all that was live since it has joined.
        let start = self.joined.max(self.search.history.live_from());
        self.begin(start, Err(why), source);
    }

    fn begin(self, start: u64, found: Result<(VecDeque<Bytes>, Vec<u64>), NotResumed>, source: Source) {
        self.metrics.history.resumed(
            found
                .as_ref()
                .map(|(older, positions)| older.len() + positions.len())
                .map_err(|why| *why),
            source,
        );
        let Some(writer) = self.writer.upgrade() else {
            return;
        };
        let asked = self.search.resume.asked();
        let replay = LogReplay::new(self.search.history, self.search.session_id, start, asked, found);
        writer.replay(Box::new(replay));
    }
}

/// Why there is nothing, for now, for a client that seems to be ahead of this node: `Unavailable` while this node may get
/// there. `has_read`: it had read all that was in the log when the client asked.
pub(super) fn behind(resume: &Resume, has_read: bool) -> NotResumed {
    match resume {
        Resume::Message { .. } if has_read => NotResumed::UnknownMessage,
        _ => NotResumed::Unavailable,
    }
}
