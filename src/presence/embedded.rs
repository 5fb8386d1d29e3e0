//! Presence in the process: who is connected is what the node's own sessions say. Changes in, one status frame per
//! session and window out.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use super::dirty_sessions::{DirtySessions, SessionChange};
use super::grace::{self, GraceClock};
use super::lobby::Lobby;
use super::parts::Times;
use super::status_frames::{self, Changes, NextFrame, Throttle};
use crate::clock::{self, Moment};
use crate::metrics::Metrics;
use crate::protocol::ids::SessionId;
use crate::protocol::status::{MAX_LISTED_EVENTS, MAX_LISTED_USERS};
use crate::session::{Registry, Session};

/// How many sessions the lobby's view is given before other tasks get their turn.
const LOAD_SLICE: usize = 512;

pub(super) async fn run(
    dirty: Arc<DirtySessions>,
    registry: Arc<Registry>,
    lobby: Arc<Lobby>,
    times: Times,
    metrics: Arc<Metrics>,
) {
    let mut grace = GraceClock::new(times.grace);
    grace::add_all_users_in_grace(&registry, &mut grace);
    // Whether a restarted task was in the middle of a load, it does not know, either.
    lobby.suspend();
    // Sessions that have to wait for their next frame. The others have no entry.
    let mut throttles: HashMap<SessionId, Throttle> = HashMap::new();
    // Changes of such sessions.
    let mut deferred: HashMap<SessionId, SessionChange> = HashMap::new();
    loop {
        let due = deferred
            .keys()
            .filter_map(|session_id| throttles.get(session_id))
            .map(Throttle::next_frame)
            .min();
        let grace_due = grace.due().map(|due| Instant::from_std(due.instant()));
        let due = due.into_iter().chain(grace_due).min();
        tokio::select! {
            () = dirty.changed() => sleep(times.window).await,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        if dirty.is_stopping() {
            return;
        }
        let mut changes = dirty.take().sessions;
        grace::add_users_in_grace(&registry, &mut grace, &changes);
        while let Some((user, end)) = grace.take_expired(Moment::now()) {
            if registry.end_grace(&user.session_id, &user.user_id, user.since, end) {
                changes.entry(user.session_id).or_default();
            }
        }
        for (session_id, change) in deferred.drain() {
            changes.entry(session_id).or_default().merge(change);
        }
        for session_id in changes.keys() {
            watch(session_id, &registry, &lobby);
        }
        if lobby.must_load() {
            load(&registry, &lobby).await;
        }
        let now = Instant::now();
        throttles.retain(|_, throttle| !throttle.allows(now));
        for (session_id, change) in changes {
            // Without users here there is nobody to notify.
            let Some(session) = registry.get(session_id.as_str()) else {
                continue;
            };
            if throttles.contains_key(&session_id) {
                deferred.insert(session_id, change);
                continue;
            }
            let mut throttle = Throttle::new(now);
            if notify(&session, change, now, &mut throttle, &metrics).await {
                deferred.insert(session_id.clone(), SessionChange::default());
            }
            if !throttle.allows(now) {
                throttles.insert(session_id, throttle);
            }
        }
    }
}

/// Notes a change of the session's state, and shows it to the lobby.
fn watch(session_id: &SessionId, registry: &Registry, lobby: &Lobby) {
    let now = clock::unix_ms();
    let session = registry.get(session_id.as_str());
    let summary = session.and_then(|session| session.summary(now));
    lobby.set(session_id, summary.ok_or(now));
}

/// Shows all sessions to the lobby. What changes meanwhile follows, as this task is the only one that shows any.
async fn load(registry: &Registry, lobby: &Lobby) {
    lobby.begin_load();
    for sessions in registry.all().chunks(LOAD_SLICE) {
        for session in sessions {
            watch(&session.id, registry, lobby);
        }
        tokio::task::yield_now().await;
    }
    lobby.finish_load(clock::unix_ms());
}

/// Sends the session's next frame, if there is anything to announce. Returns whether there may be more: a frame lists
/// at most [`MAX_LISTED_EVENTS`].
async fn notify(
    session: &Session,
    change: SessionChange,
    now: Instant,
    throttle: &mut Throttle,
    metrics: &Metrics,
) -> bool {
    let joiners = change.joiners;
    let (changes, connected) = session.with_users(|users| {
        let changes = Changes {
            is_large: users.len() > MAX_LISTED_USERS,
            events: users.take_changes(MAX_LISTED_EVENTS),
            is_retyped: users.take_retyped(),
            has_joiners: !joiners.is_empty(),
        };
        (changes, users.connected())
    });
    let has_more = changes.events.len() == MAX_LISTED_EVENTS;
    let next = throttle.next(now, changes);
    if next != NextFrame::Nothing {
        status_frames::send(session, &connected.status(), &next, &joiners, metrics).await;
    }
    has_more
}
