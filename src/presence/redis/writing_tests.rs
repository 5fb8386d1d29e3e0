//! Tests of what an answer of Redis means for clients and for other nodes.

use bytes::Bytes;

use super::*;
use crate::bus::{Bus, Router, embedded};
use crate::clock::Moment;
use crate::config::RedisConfig;
use crate::fanout::backend::FanoutBackend;
use crate::presence::lobby::Lobby;
use crate::presence::parts::Parts;
use crate::presence::redis::node_lease::Loss;
use crate::presence::redis::store::Store;
use crate::protocol::ids::UserType;
use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType};
use crate::session::testing::members;
use crate::session::{Member, Registry};
use crate::writer::Start;

/// A task that never sends anything to Redis. Users of one session join its registry, and mark nothing.
struct Node {
    task: PresenceTask,
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
            Arc::default(),
            Box::new(|_, _| ()),
            Arc::clone(&metrics),
            "node".into(),
            1024,
            FanoutBackend::Send,
        );
        let parts = Parts {
            lobby: Arc::new(Lobby::new(Arc::default())),
            dirty: Arc::default(),
            registry,
            activity: Arc::default(),
            bus: Arc::new(Bus::Embedded(embedded::Embedded::start(router).unwrap())),
            metrics,
            node: "node+1".into(),
        };
        let settings = RedisConfig {
            url: "redis://127.0.0.1:1".into(),
            password: None,
        };
        let store = Arc::new(Store::new(&settings).unwrap());
        let timings = crate::presence::redis::timings::testing(std::time::Duration::from_secs(60));
        Self {
            task: PresenceTask::new(store, Arc::new(parts), timings),
            members,
            _clients: clients,
        }
    }

    fn join(&mut self, id: &str) -> Arc<Session> {
        let mut member = self.members.pop().unwrap();
        member.user_id = user(id);
        let registry = &self.task.parts.registry;
        let greeting = |_| Bytes::new();
        registry
            .join(&session_id(), &member, UserType::Customer, Start::Live, greeting)
            .0
    }

    /// Its clients were told of these.
    async fn announces(&mut self, session: &Arc<Session>, users: &[&str]) {
        let applied = Applied {
            version: 1,
            snapshot: Some(status(users)),
            ..Applied::default()
        };
        self.task.notifier.notify(session, Vec::new(), applied).await;
    }

    /// A check that has listed these users, some of whom were not stored before.
    async fn checked(&mut self, listed: &[&str], joined: &[&str], must_notify: bool) {
        let written = Written {
            session_id: session_id(),
            requested: Requested::Listed,
            was_here: true,
            listed: listed.iter().map(|id| user(id)).collect(),
            replaced: false,
        };
        let pending = Pending {
            is_check: true,
            must_notify,
            ..Pending::default()
        };
        let changes = joined.iter().map(|id| (EventType::UserConnected, user(id)));
        let applied = Applied {
            version: 2,
            changes: changes.collect(),
            readable: Some(written.listed.iter().cloned().collect()),
            ..Applied::default()
        };
        self.task.applied(written, pending, applied).await;
    }

    fn repairs(&self) -> u64 {
        self.task.parts.metrics.presence_repairs.get()
    }

    fn again(&self) -> Option<&Pending> {
        self.task.pending.get(&session_id())
    }
}

fn ids(events: Vec<StatusEvent>) -> Vec<String> {
    let ids = events.into_iter();
    ids.map(|event| event.event_user_id.as_str().to_owned()).collect()
}

#[tokio::test]
async fn a_user_who_has_joined_and_is_not_marked_yet_is_not_missing() {
    let mut node = Node::new().await;
    let session = node.join("a");
    node.announces(&session, &["a"]).await;
    node.join("b");
    node.task.took_changes = Moment::now();
    // The session is read for another reason.
    let written = Written {
        session_id: session_id(),
        requested: Requested::Snapshot,
        was_here: true,
        listed: Vec::new(),
        replaced: false,
    };
    let applied = Applied {
        version: 2,
        snapshot: Some(status(&["a"])),
        ..Applied::default()
    };
    node.task.applied(written, Pending::default(), applied).await;
    assert_eq!(node.repairs(), 0);
    let again = node.again().expect("it is checked");
    assert!(again.is_check && !again.replaces && !again.must_publish);
}

#[tokio::test]
async fn a_check_that_writes_a_fresh_join_announces_it() {
    let mut node = Node::new().await;
    let session = node.join("a");
    node.announces(&session, &["a"]).await;
    node.join("b");
    node.checked(&["a", "b"], &["b"], false).await;
    let deferred = node.task.notifier.take_deferred(&session_id());
    assert_eq!(ids(deferred.expect("an event to publish")), ["b"]);
    assert_eq!(node.repairs(), 0);
}

#[tokio::test]
async fn a_check_that_writes_the_first_join_of_a_session_announces_it() {
    let mut node = Node::new().await;
    node.join("a");
    node.checked(&["a"], &["a"], false).await;
    let again = node.task.pending.remove(&session_id()).expect("a pending write");
    assert!(again.must_publish);
    assert_eq!(ids(again.events), ["a"]);
    assert_eq!(node.repairs(), 0);
}

/// A user joins a large session in the window of a check, before its next frame may be sent.
#[tokio::test]
async fn a_join_in_the_window_of_a_check_is_announced_when_the_next_frame_is_due() {
    let mut node = Node::new().await;
    let session = node.join("a");
    node.announces(&session, &["a"]).await;
    assert_eq!(node.task.notifier.due(), None);
    node.join("b");
    node.checked(&["a", "b"], &["b"], true).await;
    assert!(node.task.notifier.due().is_some());
}

#[tokio::test]
async fn a_check_that_rewrites_an_announced_user_has_found_damage() {
    let mut node = Node::new().await;
    let session = node.join("a");
    node.announces(&session, &["a"]).await;
    node.checked(&["a"], &["a"], false).await;
    assert_eq!(node.repairs(), 1);
    let again = node.again().expect("it is written again");
    assert!(again.is_check && again.replaces && again.must_publish);
    let deferred = node.task.notifier.take_deferred(&session_id());
    assert_eq!(
        ids(deferred.unwrap_or_default()),
        [""; 0],
        "it was announced before"
    );
}

#[tokio::test]
async fn after_a_loss_of_data_no_session_is_taken_off_a_list_for_what_was_removed_before() {
    let mut node = Node::new().await;
    let entry = || ("dead+2".into(), session_id());
    let is_tracked = |node: &Node| node.task.publisher.is_tracked(&entry());
    node.task.publisher.track_unpublished(entry(), Some(1));
    node.task.lost(Loss::Lease);
    assert!(is_tracked(&node), "only our lease has ended");
    node.task.lost(Loss::Restarted);
    assert!(!is_tracked(&node));
}
