//! What a session's clients are sent about its users, whichever store presence is kept in: when a frame may be sent,
//! to whom, and with which events.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::fanout::broadcast::deliver_in_slices;
use crate::metrics::Metrics;
use crate::protocol::status::{ConnectionStatus, MAX_LISTED_EVENTS, StatusEvent};
use crate::protocol::{server, timestamp};
use crate::session::Session;
use crate::writer::ConnectionWriter;

/// A session with more than [`crate::protocol::status::MAX_LISTED_USERS`] users gets at most one status frame per
/// interval: otherwise n joins would cost n squared bytes.
pub const LARGE_SESSION_INTERVAL: Duration = Duration::from_secs(1);

/// The frame to send now.
#[derive(Debug, PartialEq)]
pub enum NextFrame {
    /// To everyone, with these events; with none if only a user's type has changed.
    Everyone(Vec<StatusEvent>),
    /// To new connections.
    Joiners,
    /// Not before [`Throttle::next_frame`].
    Later,
    Nothing,
}

/// What has changed in a session since its last frame.
pub struct Changes {
    /// Only the first [`MAX_LISTED_EVENTS`] are sent.
    pub events: Vec<StatusEvent>,
    /// A user's type differs from what was announced.
    pub is_retyped: bool,
    /// There are new connections.
    pub has_joiners: bool,
    pub is_large: bool,
}

/// When a session's next frame may be sent.
pub struct Throttle {
    next_frame: Instant,
}

impl Throttle {
    pub fn new(now: Instant) -> Self {
        Self { next_frame: now }
    }

    pub fn allows(&self, now: Instant) -> bool {
        now >= self.next_frame
    }

    pub fn next_frame(&self) -> Instant {
        self.next_frame
    }

    /// The next frame, which counts as sent.
    pub fn next(&mut self, now: Instant, changes: Changes) -> NextFrame {
        let Changes {
            mut events,
            is_retyped,
            has_joiners,
            is_large,
        } = changes;
        let is_for_everyone = is_retyped || !events.is_empty();
        if !is_for_everyone && !has_joiners {
            return NextFrame::Nothing;
        }
        if !self.allows(now) {
            return NextFrame::Later;
        }
        events.truncate(MAX_LISTED_EVENTS);
        // After a full frame any session has a pause: a crowd that leaves is announced as slowly as one that joins.
        if is_large || events.len() == MAX_LISTED_EVENTS {
            self.next_frame = now + LARGE_SESSION_INTERVAL;
        }
        match is_for_everyone {
            true => NextFrame::Everyone(events),
            false => NextFrame::Joiners,
        }
    }
}

/// Sends a frame to everyone in the session or, if that is all there is, to its new connections.
pub async fn send(
    session: &Session,
    status: &ConnectionStatus,
    next: &NextFrame,
    joiners: &[Arc<ConnectionWriter>],
    metrics: &Metrics,
) {
    let events = match next {
        NextFrame::Everyone(events) => events.as_slice(),
        NextFrame::Joiners => &[],
        NextFrame::Later | NextFrame::Nothing => return,
    };
    metrics.status_frames.inc();
    let Some(frame) = server::connection_status_update(&session.id, status, events, &timestamp()) else {
        return;
    };
    if matches!(next, NextFrame::Everyone(_)) {
        deliver_in_slices(&session.members(), &frame).await;
    } else {
        for writer in joiners {
            writer.send_required(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::UserId;
    use crate::protocol::status::EventType;

    fn changes(events: usize, has_joiners: bool, is_large: bool) -> Changes {
        let event = |n| StatusEvent {
            event_type: EventType::UserConnected,
            event_user_id: UserId::parse(&format!("u{n}")).unwrap(),
            event_id: None,
        };
        Changes {
            events: (0..events).map(event).collect(),
            is_retyped: false,
            has_joiners,
            is_large,
        }
    }

    #[test]
    fn small_sessions_pause_only_after_a_full_frame() {
        let now = Instant::now();
        let mut throttle = Throttle::new(now);
        for _ in 0..3 {
            let next = throttle.next(now, changes(1, true, false));
            assert!(matches!(next, NextFrame::Everyone(events) if events.len() == 1));
            assert_eq!(throttle.next(now, changes(0, true, false)), NextFrame::Joiners);
            assert_eq!(throttle.next(now, changes(0, false, false)), NextFrame::Nothing);
        }
        let next = throttle.next(now, changes(MAX_LISTED_EVENTS + 1, false, false));
        assert!(matches!(next, NextFrame::Everyone(events) if events.len() == MAX_LISTED_EVENTS));
        assert_eq!(throttle.next(now, changes(1, false, false)), NextFrame::Later);
        assert!(throttle.allows(now + LARGE_SESSION_INTERVAL));
    }

    #[test]
    fn a_large_session_pauses_after_each_frame() {
        let now = Instant::now();
        let mut throttle = Throttle::new(now);
        assert_eq!(throttle.next(now, changes(0, false, true)), NextFrame::Nothing);
        assert_eq!(throttle.next(now, changes(0, true, true)), NextFrame::Joiners);
        assert_eq!(throttle.next(now, changes(0, true, true)), NextFrame::Later);
        let now = throttle.next_frame();
        assert_eq!(throttle.next(now, changes(0, true, true)), NextFrame::Joiners);
    }
}
