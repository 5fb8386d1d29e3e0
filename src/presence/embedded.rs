//! Presence in the process: the users of the node's own sessions are the store. Marks in, one status frame per session and
//! window out.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use super::LARGE_SESSION_INTERVAL;
use super::grace::{self, Grace};
use super::inbox::{Change, Inbox};
use crate::clock::Moment;
use crate::fanout::broadcast::deliver_in_slices;
use crate::metrics::Metrics;
use crate::protocol::ids::SessionId;
use crate::protocol::server;
use crate::protocol::status::{MAX_LISTED_EVENTS, MAX_LISTED_USERS};
use crate::protocol::timestamp;
use crate::session::{Registry, Session};

pub(super) async fn run(
    inbox: Arc<Inbox>,
    registry: Arc<Registry>,
    times: super::Times,
    metrics: Arc<Metrics>,
) {
    let mut grace = Grace::new(times.grace);
    grace::find_lingerers(&registry, &mut grace);
    // When each large session may have its next frame. Entries of the past are dropped in every round.
    let mut next_frame: HashMap<SessionId, Instant> = HashMap::new();
    // Changes of large sessions whose time has not come.
    let mut held: HashMap<SessionId, Change> = HashMap::new();
    loop {
        let due = held
            .keys()
            .filter_map(|session_id| next_frame.get(session_id))
            .min()
            .copied();
        let grace_due = grace.due().map(|due| Instant::from_std(due.instant()));
        let due = due.into_iter().chain(grace_due).min();
        tokio::select! {
            () = inbox.marked() => sleep(times.window).await,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        if inbox.is_stopping() {
            return;
        }
        let mut changes = inbox.take().sessions;
        grace::note_lingerers(&registry, &mut grace, &changes);
        while let Some((leaving, end)) = grace.take_over(Moment::now()) {
            if registry.end_grace(&leaving.session_id, &leaving.user_id, leaving.since, end) {
                changes.entry(leaving.session_id).or_default();
            }
        }
        for (session_id, change) in held.drain() {
            changes.entry(session_id).or_default().merge(change);
        }
        let now = Instant::now();
        next_frame.retain(|_, at| *at > now);
        for (session_id, change) in changes {
            // Nobody is left here to be told.
            let Some(session) = registry.get(session_id.as_str()) else {
                continue;
            };
            if next_frame.contains_key(&session_id) {
                held.insert(session_id, change);
                continue;
            }
            if session.with_users(|users| users.len()) > MAX_LISTED_USERS {
                next_frame.insert(session_id.clone(), now + LARGE_SESSION_INTERVAL);
            }
            if tell(&session, change, &metrics).await {
                // A full frame has a pause after it in any session: a crowd that leaves is told as slowly as one that
                // comes.
                next_frame.insert(session_id.clone(), now + LARGE_SESSION_INTERVAL);
                held.insert(session_id, Change::default());
            }
        }
    }
}

/// One frame to everyone where something changed, if only somebody's type, else a snapshot to those who asked by coming. Whether there are
/// changes left for a next frame: one lists at most [`MAX_LISTED_EVENTS`], and none is kept from anyone.
async fn tell(session: &Session, change: Change, metrics: &Metrics) -> bool {
    let (events, is_retyped, connected) = session.with_users(|users| {
        let events = users.take_changes(MAX_LISTED_EVENTS);
        (events, users.take_retyped(), users.connected())
    });
    let is_news = is_retyped || !events.is_empty();
    if !is_news && change.joiners.is_empty() {
        return false;
    }
    let status = connected.status();
    metrics.status_frames.inc();
    let Some(frame) = server::connection_status_update(&session.id, &status, &events, &timestamp()) else {
        return false;
    };
    if is_news {
        deliver_in_slices(&session.members(), &frame).await;
    } else {
        for writer in &change.joiners {
            writer.send_required(&frame);
        }
    }
    events.len() == MAX_LISTED_EVENTS
}
