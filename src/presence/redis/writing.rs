//! One pipeline: the lease, what is settled, and a batch of sessions; and what its answers mean.

use std::sync::Arc;

use redis::RedisError;
use tokio::time::Instant;

use super::answers::{self, Applied};
use super::keys;
use super::listing::{Listing, Wants};
use super::news::{self, MAX_SETTLED, Settled, Unsettled};
use super::pending::Pending;
use super::pipeline::Pipeline;
use super::store::{LONG, SHORT};
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::session::Session;

/// How long the old server's readers see somebody type.
const TYPING_SECONDS: u32 = 30;

/// A session as it was written.
struct Written {
    session_id: SessionId,
    wants: Wants,
    /// The session was here then: it stays on our list.
    was_here: bool,
    /// The users whose values are to be there now.
    listed: Vec<UserId>,
    was_replaced: bool,
}

impl Pipeline {
    /// Renews the lease, takes what is settled off the lists, and writes a batch. False when Redis has lost us.
    pub(super) async fn write(&mut self, batch: Vec<SessionId>) -> Result<bool, RedisError> {
        let now = Instant::now();
        self.number += 1;
        let mut pipeline = self.begin();
        let settled = self.add_settled(&mut pipeline);
        let registry = &self.parts.registry;
        // Asked once: what is counted in this pipeline is on our list by this pipeline.
        let sessions: Vec<_> = batch.iter().map(|id| registry.get(id.as_str())).collect();
        let here = sessions.iter().flatten();
        let here: Vec<&str> = here.map(|session| session.id.as_str()).collect();
        let listing_at = pipeline.len();
        if !here.is_empty() {
            // After the removals: who has come back meanwhile stays on the list.
            let command = pipeline.cmd("ZADD").arg(keys::sessions(&self.standing.name));
            for session_id in &here {
                command.arg(self.number).arg(*session_id);
            }
        }
        self.add_typing(&mut pipeline);
        let before = pipeline.len();
        let mut written = Vec::with_capacity(batch.len());
        let nothing = Pending::default();
        for (session_id, session) in batch.iter().zip(&sessions) {
            let pending = self.pending.get(session_id).unwrap_or(&nothing);
            let held = pending.held(session.as_deref());
            let listing = match pending.is_all {
                true => Listing::All(&held),
                false => Listing::Some(&held),
            };
            let would_be_shown = !self.standing.is_holding() && self.audience.wants_snapshot(session_id, now);
            let wants = pending.wants(would_be_shown);
            let birth = if session.is_some() {
                self.audience.birth(session_id)
            } else {
                ""
            };
            let name = &self.standing.name;
            self.store
                .add_apply(&mut pipeline, name, session_id.as_str(), listing, wants, birth);
            let there = held.into_iter().filter(|user| user.connections.is_some());
            written.push(Written {
                session_id: session_id.clone(),
                wants,
                was_here: session.is_some(),
                listed: there.map(|user| user.user_id).collect(),
                was_replaced: pending.is_replaced,
            });
        }
        let has_list = !here.is_empty();
        let patience = if batch.len() > 1 { LONG } else { SHORT };
        let Some(answers) = self.send(pipeline, patience).await? else {
            return Ok(false);
        };
        self.typing.clear();
        self.news.forget(&settled);
        if settled.len() == MAX_SETTLED {
            // There are more.
            self.next_heartbeat = now;
        }
        // The heartbeat's answer is not among them.
        if has_list && answers.get(listing_at - 1).is_some_and(Result::is_err) {
            self.renew_list().await?;
        }
        for (written, answer) in written.into_iter().zip(answers.into_iter().skip(before - 1)) {
            let pending = self.pending.remove(&written.session_id).unwrap_or_default();
            match answer.and_then(|answer| answers::read_applied(answer, written.wants)) {
                Ok(applied) => self.applied(written, pending, applied).await,
                Err(error) => self.refused(&written.session_id, &error),
            }
        }
        Ok(true)
    }

    /// Adds what the log has by now: it is off the lists.
    fn add_settled(&mut self, pipeline: &mut redis::Pipeline) -> Vec<Settled> {
        let registry = &self.parts.registry;
        let is_here = |id: &SessionId| registry.contains(id.as_str());
        let is_pending = |id: &SessionId| self.pending.contains_key(id);
        let settled = self.news.settled(&self.standing.name, is_here, is_pending);
        for Settled {
            place,
            left,
            removes,
            number,
        } in &settled
        {
            let (node, session_id) = (&place.0, place.1.as_str());
            if !left.is_empty() {
                let left: Vec<&str> = left.iter().map(UserId::as_str).collect();
                let key = keys::untold(session_id, node);
                pipeline.cmd("HDEL").arg(key).arg(left);
            }
            if *removes {
                self.store.add_settle(pipeline, node, &[(session_id, *number)]);
            }
        }
        settled
    }

    fn add_typing(&self, pipeline: &mut redis::Pipeline) {
        for ((session_id, user_id), &is_typing) in &self.typing {
            let key = keys::typing(session_id, user_id);
            match is_typing {
                true => pipeline
                    .cmd("SET")
                    .arg(key)
                    .arg("true")
                    .arg("EX")
                    .arg(TYPING_SECONDS),
                false => pipeline.cmd("DEL").arg(key),
            };
        }
    }

    /// Our list of sessions is of another type, and so nobody's: without it nobody could take us back.
    async fn renew_list(&mut self) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::sessions(&self.standing.name));
        self.store.send(&mut pipeline, SHORT).await?;
        self.begin_resync();
        Ok(())
    }

    /// A value that the script can't cope with: this session has no presence, the others do.
    pub(super) fn refused(&mut self, session_id: &SessionId, error: &RedisError) {
        self.parts.metrics.redis_refusals.inc();
        if self.refusal_log.allows() {
            tracing::warn!(%session_id, code = error.code(), "Redis refuses a session's presence");
        }
        if !self.parts.registry.contains(session_id.as_str()) {
            self.audience.forget(session_id);
        }
    }

    /// A change is written: tells clients here and nodes elsewhere. A session that was not here any more when it was
    /// written can leave our list; one that ended since is marked again.
    async fn applied(&mut self, written: Written, mut pending: Pending, applied: Applied) {
        let Written {
            session_id,
            wants,
            was_here,
            ..
        } = &written;
        let mut events = news::events(&applied);
        pending.is_news |= !events.is_empty() || applied.is_retyped;
        // Where Redis was emptied, all who are here seem to come; nobody else believes they had gone.
        if pending.is_all && self.standing.is_rebuilding {
            events.clear();
            pending.is_news = !pending.events.is_empty();
        }
        // The same where one session's keys were damaged: but others have to look at what is mended. Who has only just
        // come, and is not marked yet, is nobody's damage.
        let mut was_lost = false;
        if pending.is_checked && !pending.is_all {
            events.retain(|StatusEvent { event_user_id, .. }| {
                let is_marked = pending.change.users.contains_key(event_user_id);
                let is_news = is_marked || !self.audience.has_told(session_id, event_user_id);
                was_lost |= !is_news;
                is_news
            });
        }
        pending.events.extend(events);
        if self.standing.is_holding() {
            (pending.is_all, pending.is_checked, pending.change.users) = Default::default();
            let held_back = self.held_back.entry(session_id.clone());
            held_back.or_default().merge(pending);
            return;
        }
        let session = self.parts.registry.get(session_id.as_str());
        self.mend(&written, session.as_deref(), &applied, was_lost);
        if let Some(deferred) = self.audience.take_deferred(session_id) {
            pending.is_news = true;
            pending.events.splice(0..0, deferred);
        }
        let place = (Arc::clone(&self.standing.name), session_id.clone());
        match (&applied.snapshot, pending.is_news) {
            (Some(status), true) => {
                let receipt = self.news.publish(session_id, status, pending.events);
                if !was_here {
                    self.news.settle_with(place, Unsettled::own(receipt));
                }
            }
            (None, true) => {
                let events = match session {
                    Some(_) => self.audience.defer(session_id, pending.events),
                    // It ended meanwhile: the mark of that brings the snapshot.
                    None => Err(pending.events),
                };
                if let Err(events) = events {
                    let again = self.pend(session_id.clone());
                    again.is_news = true;
                    again.events.extend(events);
                }
            }
            (_, false) if !was_here => self.news.settle_without(place, None),
            (_, false) => {}
        }
        match session {
            // A mere check. Where there is something to show, and no snapshot yet, that waits.
            Some(_) if *wants == Wants::Listed && !pending.is_shown => {
                self.audience.note_birth(session_id, applied.birth);
            }
            Some(session) => {
                let joiners = pending.change.joiners;
                self.audience.show(&session, joiners, applied).await;
            }
            None => self.audience.forget(session_id),
        }
    }

    /// Where the session's keys were damaged: writes all again that is held here, and has the others do the same.
    /// `was_lost`: somebody was not there who had been written.
    fn mend(&mut self, written: &Written, session: Option<&Session>, applied: &Applied, was_lost: bool) {
        let Some(session) = session else {
            return;
        };
        let is_there = |id: &UserId| match (&applied.readable, &applied.snapshot) {
            (Some(readable), _) => readable.contains(id),
            (None, Some(status)) => status.users.contains_key(id),
            (None, None) => true,
        };
        // Who is missing though just written is hidden by a value that can't be read; though it was just replaced,
        // that would be so for ever.
        let is_hidden = !written.was_replaced && !written.listed.iter().all(is_there);
        let is_missing = is_hidden || was_lost && applied.damage.is_none();
        let hides_others =
            applied.snapshot.is_some() && self.audience.note_unreadable(&session.id, applied.has_unreadable);
        if !self.note_damage(&session.id, applied) && !is_missing && !hides_others {
            if applied.snapshot.is_some() {
                let held = session.with_users(|users| users.ids_before(self.took_marks));
                // Lost, or only just come and not marked yet: a check tells.
                if !held.iter().all(|id| is_there(id) || written.listed.contains(id)) {
                    self.pend(session.id.clone()).is_checked = true;
                }
            }
            return;
        }
        self.parts.metrics.presence_repairs.inc();
        if self.repair_log.allows() {
            tracing::warn!(session_id = %session.id, "a session's keys in Redis were deleted or changed by others: they are written again");
        }
        let again = self.pend(session.id.clone());
        (again.is_checked, again.is_news) = (true, true);
        again.is_replaced |= is_missing;
    }

    /// Notes what Redis says of damage to a session's keys; whether that is news.
    pub(super) fn note_damage(&mut self, session_id: &SessionId, applied: &Applied) -> bool {
        applied
            .damage
            .is_some_and(|damage| self.audience.note_damage(session_id, damage))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::bus::{Bus, Router, embedded};
    use crate::clock::Moment;
    use crate::config::RedisConfig;
    use crate::fanout::backend::FanoutBackend;
    use crate::presence::Parts;
    use crate::presence::redis::store::Store;
    use crate::protocol::ids::UserType;
    use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType};
    use crate::session::testing::members;
    use crate::session::typists::Typists;
    use crate::session::{Member, Registry};

    /// A pipeline whose Redis is asked nothing; users of one session join its registry, and mark nothing.
    struct Node {
        pipeline: Pipeline,
        members: Vec<Member>,
        _clients: Vec<tokio::net::TcpStream>,
    }

    fn session_id() -> SessionId {
        SessionId::parse("s").unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    fn status(users: &[&str]) -> ConnectionStatus {
        ConnectionStatus::of(users.iter().map(|id| ConnectedUser {
            user_id: user(id),
            user_type: UserType::Customer,
            joined_at: "J".into(),
        }))
    }

    impl Node {
        async fn new() -> Self {
            let (registry, metrics) = (Arc::new(Registry::default()), Arc::default());
            let (members, clients) = members(2, &metrics).await;
            let router = Router::new(
                Arc::clone(&registry),
                Arc::new(Typists::default()),
                Box::new(|_| ()),
                Arc::clone(&metrics),
                "node".into(),
                1024,
                FanoutBackend::Send,
            );
            let parts = Parts {
                inbox: Arc::default(),
                registry,
                bus: Arc::new(Bus::Embedded(embedded::Embedded::start(router).unwrap())),
                metrics,
                node: "node+1".into(),
            };
            let settings = RedisConfig {
                url: "redis://127.0.0.1:1".into(),
                password: None,
            };
            let store = Arc::new(Store::new(&settings).unwrap());
            let times = super::super::tests::times(std::time::Duration::from_secs(60));
            Self {
                pipeline: Pipeline::new(store, Arc::new(parts), times),
                members,
                _clients: clients,
            }
        }

        fn join(&mut self, id: &str) -> Arc<Session> {
            let mut member = self.members.pop().unwrap();
            member.user_id = user(id);
            let registry = &self.pipeline.parts.registry;
            let greeting = |_| Bytes::new();
            registry
                .join(&session_id(), &member, UserType::Customer, greeting)
                .0
        }

        /// Its clients were told of these.
        async fn shows(&mut self, session: &Arc<Session>, users: &[&str]) {
            let applied = Applied {
                version: 1,
                snapshot: Some(status(users)),
                ..Applied::default()
            };
            self.pipeline.audience.show(session, Vec::new(), applied).await;
        }

        /// A check that has listed these users, of whom some were not there before.
        async fn checked(&mut self, listed: &[&str], came: &[&str], is_shown: bool) {
            let written = Written {
                session_id: session_id(),
                wants: Wants::Listed,
                was_here: true,
                listed: listed.iter().map(|id| user(id)).collect(),
                was_replaced: false,
            };
            let pending = Pending {
                is_checked: true,
                is_shown,
                ..Pending::default()
            };
            let changes = came.iter().map(|id| (EventType::UserConnected, user(id)));
            let applied = Applied {
                version: 2,
                changes: changes.collect(),
                readable: Some(written.listed.iter().cloned().collect()),
                ..Applied::default()
            };
            self.pipeline.applied(written, pending, applied).await;
        }

        fn repairs(&self) -> u64 {
            self.pipeline.parts.metrics.presence_repairs.get()
        }

        fn again(&self) -> Option<&Pending> {
            self.pipeline.pending.get(&session_id())
        }
    }

    fn ids(events: Vec<StatusEvent>) -> Vec<String> {
        let ids = events.into_iter();
        ids.map(|event| event.event_user_id.as_str().to_owned()).collect()
    }

    #[tokio::test]
    async fn who_has_joined_and_is_not_marked_yet_is_not_lost() {
        let mut node = Node::new().await;
        let session = node.join("a");
        node.shows(&session, &["a"]).await;
        node.join("b");
        node.pipeline.took_marks = Moment::now();
        // The round looks at the session for another reason.
        let written = Written {
            session_id: session_id(),
            wants: Wants::Snapshot,
            was_here: true,
            listed: Vec::new(),
            was_replaced: false,
        };
        let applied = Applied {
            version: 2,
            snapshot: Some(status(&["a"])),
            ..Applied::default()
        };
        node.pipeline.applied(written, Pending::default(), applied).await;
        assert_eq!(node.repairs(), 0);
        let again = node.again().expect("it is looked at once more");
        assert!(again.is_checked && !again.is_replaced && !again.is_news);
    }

    #[tokio::test]
    async fn a_check_that_writes_a_fresh_join_tells_it() {
        let mut node = Node::new().await;
        let session = node.join("a");
        node.shows(&session, &["a"]).await;
        node.join("b");
        node.checked(&["a", "b"], &["b"], false).await;
        let deferred = node.pipeline.audience.take_deferred(&session_id());
        assert_eq!(ids(deferred.expect("news")), ["b"]);
        assert_eq!(node.repairs(), 0);
    }

    #[tokio::test]
    async fn a_check_that_writes_the_first_join_of_a_session_tells_it() {
        let mut node = Node::new().await;
        node.join("a");
        node.checked(&["a"], &["a"], false).await;
        let again = node.pipeline.pending.remove(&session_id()).expect("news");
        assert!(again.is_news);
        assert_eq!(ids(again.events), ["a"]);
        assert_eq!(node.repairs(), 0);
    }

    /// Somebody joins a large session in the window of a check, and before its next frame may be sent.
    #[tokio::test]
    async fn a_join_in_the_window_of_a_check_is_shown_when_its_time_comes() {
        let mut node = Node::new().await;
        let session = node.join("a");
        node.shows(&session, &["a"]).await;
        assert_eq!(node.pipeline.audience.due(), None);
        node.join("b");
        node.checked(&["a", "b"], &["b"], true).await;
        assert!(node.pipeline.audience.due().is_some());
    }

    #[tokio::test]
    async fn a_check_that_writes_one_whom_all_know_has_found_damage() {
        let mut node = Node::new().await;
        let session = node.join("a");
        node.shows(&session, &["a"]).await;
        node.checked(&["a"], &["a"], false).await;
        assert_eq!(node.repairs(), 1);
        let again = node.again().expect("it is written again");
        assert!(again.is_checked && again.is_replaced && again.is_news);
        let deferred = node.pipeline.audience.take_deferred(&session_id());
        assert_eq!(ids(deferred.unwrap_or_default()), [""; 0], "it is no news");
    }
}
