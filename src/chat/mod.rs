//! What each client frame does: the use cases. They work with sessions, the bus and presence, but not with sockets.

mod attempts;
mod authenticate;
mod disconnect;
mod lobby;
mod messages;
mod origin;
mod pending;
mod receipts;
mod renewals;
mod resume;
mod searches;
mod sending;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::Auth;
use crate::bus::Bus;
use crate::clock::{self, Moment};
use crate::fanout::broadcast;
use crate::history::RecentLog;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::protocol::client::{FrameReader, Request};
use crate::protocol::code::{ErrorCode, WireError};
use crate::protocol::correlation::Correlation;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::record::{self, Outgoing, RecordKey, Topic};
use crate::protocol::resume::Resume;
use crate::protocol::server::{self, Identity};
use crate::protocol::timestamp;
use crate::session::disconnects::Disconnects;
use crate::session::typists::Home;
use crate::session::{Activity, Member, Registry, Session};
use crate::writer::Start;
pub use attempts::Attempts;
pub use authenticate::Renewal;
pub use messages::Messages;
pub use origin::ConnectionOrigin;
pub use pending::{Outcome, PendingAnswers};
pub use renewals::Renewals;
pub use resume::ResumeLimits;
pub use searches::Searches;
pub use sending::Unencodable;

/// How often expired typists and unanswered messages are checked.
pub const TICK: Duration = Duration::from_millis(250);

/// The use cases and their shared state.
pub struct Chat {
    pub auth: Arc<Auth>,
    pub registry: Arc<Registry>,
    pub activity: Arc<Activity>,
    pub bus: Arc<Bus>,
    pub presence: Presence,
    pub metrics: Arc<Metrics>,
    /// `MAX_RECORD_BYTES`: checked before the log checks it.
    pub max_record_bytes: usize,
    pub pending: PendingAnswers,
    pub attempts: Arc<Attempts>,
    pub history: Arc<RecentLog>,
    pub resume_limits: ResumeLimits,
    pub searches: Searches,
    pub renewals: Arc<Renewals<Renewal>>,
    pub disconnects: Arc<Disconnects>,
}

/// A connection that has joined its session.
pub struct Participant {
    pub session: Arc<Session>,
    pub member: Member,
    pub user_type: UserType,
    pub origin: ConnectionOrigin,
}

impl Participant {
    fn identity(&self) -> Identity<'_> {
        Identity {
            session_id: &self.session.id,
            user_id: &self.member.user_id,
            user_type: self.user_type,
        }
    }
}

thread_local! {
    /// One parser per worker thread, not per connection.
    static READER: RefCell<FrameReader> = RefCell::default();
}

impl Chat {
    /// Greets a connection and adds it to its session. `expires_at` is its token's end, in seconds since 1970.
    pub fn join(
        &self,
        session_id: &SessionId,
        member: Member,
        user_type: UserType,
        resume: Option<Box<Resume>>,
        origin: ConnectionOrigin,
        expires_at: Option<i64>,
    ) -> Participant {
        // The user's first connection decides their type; with tokens, each connection speaks as what its own token
        // says, since two issuers' users may share an id.
        let speaks_as = |joined: UserType| expires_at.map_or(joined, |_| user_type);
        let start = match &resume {
            None => Start::Live,
            Some(_) => Start::Replay,
        };
        let live_from = Cell::new(0);
        let (session, joined) = self
            .registry
            .join(session_id, &member, user_type, start, |joined| {
                // Nothing of this session lies between: the later, the more certainly what follows is in the recent log.
                live_from.set(self.history.live_start(joined.position));
                let who = Identity {
                    session_id,
                    user_id: &member.user_id,
                    user_type: speaks_as(joined.user_type),
                };
                let cursor = self.first_cursor(session_id, resume.as_deref(), live_from.get());
                let at = timestamp();
                let greeting = server::connection_established(who, &at, cursor.as_deref());
                broadcast::with_typists(&self.activity.typists, session_id, &member.user_id, &at, greeting)
            });
        if let Some(expires_at) = expires_at {
            member.writer.set_token(expires_at, clock::unix_seconds());
        }
        let is_refused = self.disconnects.close_if_refused(session_id, &member);
        self.presence
            .connection_opened(session_id, &member.user_id, &member.writer);
        if let Some(resume) = resume.filter(|_| !is_refused) {
            self.resume(session_id, &member.writer, *resume, live_from.get());
        }
        let participant = Participant {
            session,
            member,
            user_type: speaks_as(joined.user_type),
            origin,
        };
        origin::log_connected(&participant);
        participant
    }

    /// Removes a connection from its session.
    pub fn leave(&self, participant: &Participant) {
        if participant.is_in_lobby() {
            return self.leave_lobby(participant);
        }
        let Some(is_last) = self.registry.leave(&participant.session, &participant.member) else {
            return;
        };
        let (session_id, user_id) = (&participant.session.id, &participant.member.user_id);
        if is_last {
            // A user who is typing on another node still is.
            if self.activity.typists.stop(session_id, user_id) == Some(Home::Here) {
                self.presence.typing(session_id, user_id, false);
                self.show_typing(
                    &participant.session,
                    user_id,
                    participant.user_type.as_str(),
                    false,
                );
            }
        }
        self.presence.connection_closed(session_id, user_id, is_last);
        origin::log_disconnected(participant);
    }

    /// Handles one text frame, parsed in its own buffer.
    pub fn handle(&self, participant: &Participant, text: &mut [u8]) {
        self.metrics.frames_received.inc();
        READER.with_borrow_mut(|reader| {
            reader.read(text, |correlation, request| match request {
                Ok(request) => self.serve(participant, &request, correlation),
                Err(error) => self.refuse(participant, &error, correlation),
            });
        });
    }

    /// Refuses a frame over the rate limit; it is parsed all the same, so that the error carries the client's ids.
    pub fn refuse_for_rate(&self, participant: &Participant, text: &mut [u8]) {
        self.metrics.frames_received.inc();
        let error = WireError::new(ErrorCode::RateLimited, "Too many messages, slow down");
        READER.with_borrow_mut(|reader| {
            reader.read(text, |correlation, _| {
                self.refuse(participant, &error, correlation)
            });
        });
    }

    fn refuse(&self, participant: &Participant, error: &WireError, correlation: Correlation<'_>) {
        self.metrics.frame_error(error.code);
        let frame = server::error(error, correlation);
        participant.member.writer.send_required(&frame);
    }

    fn serve(&self, participant: &Participant, request: &Request<'_, '_>, correlation: Correlation<'_>) {
        match request {
            Request::JoinSession => {
                let frame = server::session_joined(participant.identity(), &timestamp(), correlation);
                participant.member.writer.send_required(&frame);
            }
            Request::Ping => {
                let session_id = participant.session.id.as_str();
                let has_log = !participant.is_in_lobby();
                participant.member.writer.send_stamped(|sent_up_to| {
                    let cursor = has_log.then(|| self.cursor(session_id, sent_up_to)).flatten();
                    server::pong(&timestamp(), cursor.as_deref(), correlation)
                });
            }
            Request::Typing { .. } | Request::SendMessage(_) | Request::MarkRead { .. }
                if participant.is_in_lobby() =>
            {
                self.refuse(participant, &lobby::not_allowed(), correlation);
            }
            Request::Typing { is_typing } => self.typing(participant, *is_typing),
            Request::SendMessage(message) => self.send_message(participant, message, correlation),
            Request::MarkRead { up_to } => self.mark_read(participant, up_to, correlation),
            Request::Authenticate { token } => self.authenticate(participant, token, correlation),
        }
    }

    fn typing(&self, participant: &Participant, is_typing: bool) {
        let at = (&participant.session.id, &participant.member.user_id);
        let user_type = participant.user_type.as_str();
        let has_changed = if is_typing {
            self.activity
                .typists
                .start(at, user_type, Home::Here, Instant::now())
        } else {
            // A stop is always passed on: the start may have been announced by a node that is gone.
            self.activity.typists.stop(at.0, at.1);
            true
        };
        self.presence.typing(at.0, at.1, is_typing);
        if has_changed {
            self.show_typing(&participant.session, at.1, user_type, is_typing);
        }
    }

    /// Shows the others in the session, here and on other nodes, that a user types or has stopped.
    fn show_typing(&self, session: &Session, user_id: &UserId, user_type: &str, is_typing: bool) {
        let at = timestamp();
        broadcast::typing(session, user_id, user_type, is_typing, &at);
        let Some(value) = record::typing_value(&session.id, user_id, user_type, is_typing, &at) else {
            return;
        };
        let key = RecordKey::Session(session.id.clone());
        self.bus
            .publish_unacknowledged(Outgoing::legacy(Topic::Typing, key, value));
    }

    /// Stops presence and the bus: published records get their outcome, as far as `patience` allows.
    pub async fn stop(self: &Arc<Self>, patience: Duration) {
        let began = Instant::now();
        self.presence.stop(patience / 2).await;
        let (chat, remaining) = (Arc::clone(self), patience.saturating_sub(began.elapsed()));
        // It joins threads and waits for the log, which must not block the runtime.
        let _ = tokio::task::spawn_blocking(move || chat.bus.stop(remaining)).await;
    }

    /// Periodic work: typing expires, and unanswered messages get an answer.
    pub fn tick(&self) {
        let now = Instant::now();
        self.attempts.purge(now);
        self.renewals.purge(Moment::now());
        self.disconnects.tick();
        if self.pending.expire(now) {
            self.bus.unanswered();
        }
        for stopped in self.activity.typists.expired(now) {
            let Some(session) = self.registry.get(stopped.session_id.as_str()) else {
                continue;
            };
            match stopped.home {
                Home::Here => self.show_typing(&session, &stopped.user_id, &stopped.user_type, false),
                Home::Elsewhere => {
                    broadcast::typing(
                        &session,
                        &stopped.user_id,
                        &stopped.user_type,
                        false,
                        &timestamp(),
                    );
                }
            }
        }
    }
}
