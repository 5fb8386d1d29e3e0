//! A node dies or is stopped: another node reaps its users, once, even if the reaper dies, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::json;

use crate::presence_proxy::Proxy;
use crate::redis_cluster::{Cluster, Seen, Tab, Truth, fence, leaves_in_the_log, stored};
use crate::services::{OUTAGE, PrivateBroker, PrivateRedis, RedisClient, Resp, Topics, unique};
use crate::support::{Frame, PATIENCE, RawWs, Server, eventually, eventually_async};

/// What a busy machine may add to PRESENCE_TTL before a leave is late.
const SLACK: Duration = Duration::from_secs(40);

/// `(session, user)`.
type Person = (String, String);

fn people(sessions: &[String], prefix: &str, of_each: usize) -> Vec<Person> {
    let users = |session: &String| {
        let session = session.clone();
        (0..of_each).map(move |number| (session.clone(), format!("{prefix}-{number}")))
    };
    sessions.iter().flat_map(users).collect()
}

/// They join, some at a time.
async fn join_crowd(node: &Server, crowd: &[Person], user_type: &str) -> Vec<(String, Tab)> {
    let mut tabs = Vec::new();
    for some in crowd.chunks(50) {
        let joins = some
            .iter()
            .map(async |(session, user)| (session.clone(), Tab::join(node, session, user, user_type).await));
        tabs.extend(join_all(joins).await);
    }
    tabs
}

async fn fence_all(nodes: &[&Server], watchers: &[(String, Tab)]) {
    let mut sessions: BTreeMap<&str, Vec<&Tab>> = BTreeMap::new();
    for (session, tab) in watchers {
        sessions.entry(session).or_default().push(tab);
    }
    let sessions: Vec<_> = sessions.iter().collect();
    for some in sessions.chunks(25) {
        join_all(some.iter().map(|(session, tabs)| fence(nodes, session, tabs))).await;
    }
}

/// Waits until every watcher has received what `count` counts, for each of these people in its session. Returns how
/// long each took, in order.
async fn await_announced(
    what: &str,
    since: Instant,
    watchers: &[(String, Tab)],
    people: &[Person],
    count: fn(&Seen, &str) -> usize,
) -> Vec<Duration> {
    let mut missing: Vec<(&Tab, &str)> = Vec::new();
    for (session, tab) in watchers {
        let users = people.iter().filter(|(of, _)| of == session);
        missing.extend(users.map(|(_, user)| (tab, user.as_str())));
    }
    assert!(!missing.is_empty(), "nobody watches");
    let (waited, mut times) = (Instant::now(), Vec::new());
    while !missing.is_empty() {
        let received = missing.extract_if(.., |(tab, user)| tab.look(|seen| count(seen, user)) > 0);
        let number = received.count();
        times.extend(std::iter::repeat_n(since.elapsed(), number));
        let left = (
            missing.len(),
            missing.first().map(|(tab, user)| (&tab.user, user)),
        );
        assert!(
            waited.elapsed() < OUTAGE,
            "{what}: never announced, (number, the first): {left:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times
}

/// The leave of a user whose join was not announced is not announced either.
async fn await_joins_announced(watchers: &[(String, Tab)], people: &[Person]) {
    await_announced("joins", Instant::now(), watchers, people, Seen::joins).await;
}

/// Prints how long the leaves took since the death, and returns it for the last.
async fn await_leaves_announced(
    what: &str,
    since: Instant,
    watchers: &[(String, Tab)],
    gone: &[Person],
) -> Duration {
    let times = await_announced(what, since, watchers, gone, Seen::leaves).await;
    let [first, median, last] = [0, times.len() / 2, times.len() - 1].map(|at| times[at]);
    eprintln!(
        "{what}: {} leaves announced after {first:.1?} to {last:.1?}, the median {median:.1?}",
        times.len()
    );
    last
}

/// Each watcher received exactly so many joins and leaves of these.
fn heard(watchers: &[(String, Tab)], people: &[Person], expected: (usize, usize)) {
    for (session, tab) in watchers {
        for (_, user) in people.iter().filter(|(of, _)| of == session) {
            let counts = tab.look(|seen| (seen.joins(user), seen.leaves(user)));
            assert_eq!(
                counts, expected,
                "{user} of {session}, to {}: joins and leaves",
                tab.user
            );
        }
    }
}

/// A reader who is none of our nodes finds the leave of everyone in the status topic, and knows a repeat by its id.
fn in_the_log(topics: &Topics, gone: &[Person]) {
    let leaves = leaves_in_the_log(topics);
    let missing: Vec<_> = gone
        .iter()
        .filter(|person| !leaves.contains_key(person))
        .collect();
    assert!(
        missing.is_empty(),
        "of {} leaves {} are not in the log, for example {:?}",
        gone.len(),
        missing.len(),
        missing[0]
    );
    let repeated = gone.iter().filter(|person| leaves[person].len() > 1).count();
    eprintln!(
        "of {} leaves {repeated} are in the log more than once",
        gone.len()
    );
    for person in gone {
        let ids: BTreeSet<_> = leaves[person].iter().collect();
        assert!(
            ids.len() == 1 && !ids.contains(&None),
            "one leave, one event_id: {person:?} has {ids:?}"
        );
    }
}

/// How Redis calls the node that holds this user: its NODE_ID and boot id.
fn boot_name(redis: &mut RedisClient, session: &str, user: &str) -> String {
    let value = redis.user(session, user).expect("a user in Redis");
    let nodes = value["nodes"].as_object().expect("nodes of a user");
    let name = nodes.keys().next().expect("a node");
    name.clone()
}

/// How long a node's lease lasts from now.
fn lease(redis: &mut RedisClient, node: &str) -> Duration {
    let ends = match redis.command(&["ZSCORE", "livechat:nodes", node]) {
        Resp::Text(ends) => ends.parse().expect("milliseconds"),
        other => panic!("the lease of {node}: {other:?}"),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    Duration::from_millis(ends).saturating_sub(now)
}

/// Nothing in Redis knows this node any more: neither a user, nor a lease, nor a list of what is to be done.
async fn forgotten(redis: &mut RedisClient, node: &str) {
    let mut left = Vec::new();
    let deadline = Instant::now() + OUTAGE;
    while Instant::now() < deadline {
        left = redis.keys_with(node);
        if left.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("left of {node} in Redis: {left:?}");
}

fn joined(truth: &mut Truth, crowd: &[Person], user_type: &str) {
    for (session, user) in crowd {
        truth.join(session, user, user_type);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn users_of_a_killed_node_leave_once_and_no_ghosts_remain() {
    const TTL: Duration = Duration::from_secs(12);
    let ttl = format!("{}s", TTL.as_secs());
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let cluster = Cluster::on(&redis.url());
    // Two survivors: they race for the reaping.
    let [a, b, killed] = cluster.nodes(["node-a", "node-b", "node-killed"], Some(&ttl));
    let watched: Vec<_> = (0..100).map(|_| unique("watched")).collect();
    let unwatched: Vec<_> = (0..25).map(|_| unique("unwatched")).collect();
    let mut watchers = join_crowd(&a, &people(&watched[..60], "watch-a", 1), "agent").await;
    watchers.extend(join_crowd(&b, &people(&watched[40..], "watch-b", 1), "agent").await);
    let mut truth = Truth::default();
    for (session, tab) in &watchers {
        truth.join(session, &tab.user, "agent");
    }
    let dead = [people(&watched, "user", 5), people(&unwatched, "user", 2)].concat();
    let _dies = join_crowd(&killed, &dead, "customer").await;
    // Of these, one tab each survives, or is back before the death is noticed.
    let (two_tabs, come_back) = (
        people(&watched[..10], "two-tabs", 1),
        people(&watched[..10], "back", 1),
    );
    let _stays = join_crowd(&b, &two_tabs, "customer").await;
    let second_tabs = two_tabs
        .iter()
        .map(|(session, user)| Tab::open(&killed, session, user, "customer"));
    let _second_tabs = join_all(second_tabs).await;
    let _dies_too = join_crowd(&killed, &come_back, "customer").await;
    joined(&mut truth, &two_tabs, "customer");
    joined(&mut truth, &come_back, "customer");
    let mut before = truth.clone();
    joined(&mut before, &dead, "customer");
    for session in &unwatched {
        truth.0.insert(session.clone(), BTreeMap::new());
    }
    before.agreed(&[&a, &b]).await;
    await_joins_announced(&watchers, &[&dead[..], &two_tabs, &come_back].concat()).await;
    let boot = boot_name(&mut client, &dead[0].0, &dead[0].1);

    killed.signal("KILL");
    let died = Instant::now();
    // The same name again, while the lease of its last life holds: another node, which brings nobody back.
    let restarted = cluster.node("node-killed").env("PRESENCE_TTL", &ttl).start();
    let back: Vec<_> = come_back
        .iter()
        .map(|(session, user)| Tab::open(&restarted, session, user, "customer"))
        .collect();
    let _back = join_all(back).await;
    eprintln!(
        "SIGKILL: restarted, and some users back, after {:.1?}",
        died.elapsed()
    );
    let nodes = [&a, &b, &restarted];
    let last = await_leaves_announced("SIGKILL", died, &watchers, &dead).await;
    assert!(
        last < TTL + SLACK,
        "with PRESENCE_TTL={ttl} the last leave was announced after {last:?}"
    );
    truth.agreed(&nodes).await;
    forgotten(&mut client, &boot).await;

    fence_all(&nodes, &watchers).await;
    truth.still(&nodes);
    truth.in_redis(&mut client);
    heard(&watchers, &dead, (1, 1));
    heard(&watchers, &two_tabs, (1, 0));
    for (session, tab) in &watchers {
        tab.look(|seen| {
            assert_eq!(seen.leaves(&tab.user), 0, "a watcher of {session} has not left");
            // Back too late on a busy machine: gone and here again, and that once.
            let (joins, leaves) = (seen.joins("back-0"), seen.leaves("back-0"));
            assert!(
                leaves <= 1 && (joins == leaves + 1 || !watched[..10].contains(session)),
                "{session}: {joins} joins, {leaves} leaves"
            );
        });
    }
    in_the_log(&cluster.topics, &dead);
}

/// The log does not answer while the first reaper has its turn: it has taken everyone out of Redis, and nobody knows when it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_node_finishes_the_work_of_a_killed_reaper() {
    const TTL: Duration = Duration::from_secs(20);
    let ttl = format!("{}s", TTL.as_secs());
    let (redis, broker) = (PrivateRedis::started(), PrivateBroker::started());
    let mut client = redis.client();
    let cluster = Cluster {
        topics: Topics::on(&broker.kafka()),
        redis: redis.url(),
    };
    let [survivor, reaper, killed] =
        cluster.nodes(["node-survivor", "node-reaper", "node-killed"], Some(&ttl));
    let sessions: Vec<_> = (0..300).map(|_| unique("session")).collect();
    let staying = people(&sessions[..60], "watch", 1);
    let watchers = join_crowd(&survivor, &staying, "agent").await;
    let mut dead = [
        people(&sessions[..200], "user", 2),
        people(&sessions[200..], "user", 1),
    ]
    .concat();
    assert_eq!(dead.len(), 500);
    let _dies = join_crowd(&killed, &dead, "customer").await;
    let dead_later = people(&sessions[40..100], "late", 1);
    let _dies_later = join_crowd(&reaper, &dead_later, "customer").await;
    let mut truth = Truth::default();
    joined(&mut truth, &staying, "agent");
    for session in &sessions {
        truth.0.entry(session.clone()).or_default();
    }
    let mut before = truth.clone();
    joined(&mut before, &dead, "customer");
    joined(&mut before, &dead_later, "customer");
    before.agreed(&[&survivor, &reaper]).await;
    await_joins_announced(&watchers, &[&dead[..], &dead_later].concat()).await;
    let boots = [&dead[0], &dead_later[0]].map(|(session, user)| boot_name(&mut client, session, user));

    killed.signal("KILL");
    let died = Instant::now();
    // Near the end of the dead node's lease: so the survivor sleeps for less than its own lasts.
    let near_its_end = async || lease(&mut client, &boots[0]) < Duration::from_secs(4);
    eventually_async("the dead node's lease is near its end", near_its_end).await;
    broker.pause();
    survivor.signal("STOP");
    before.in_redis(&mut client);
    let left = |client: &mut RedisClient| -> usize {
        let users = sessions
            .iter()
            .flat_map(|session| stored(client, session).into_keys());
        users.filter(|user| user.starts_with("user-")).count()
    };
    eventually_async("the first leaves are in Redis", async || {
        left(&mut client) < dead.len()
    })
    .await;
    reaper.signal("KILL");
    let reaper_died = Instant::now();
    eprintln!(
        "{} of {} users left in Redis, {:.1?} after the death of their node, when the reaper died",
        left(&mut client),
        dead.len(),
        died.elapsed()
    );
    broker.resume();
    survivor.signal("CONT");

    let first = await_leaves_announced("the first node", died, &watchers, &dead).await;
    let second = await_leaves_announced("its reaper", reaper_died, &watchers, &dead_later).await;
    assert!(
        first.max(second) < TTL + SLACK,
        "with PRESENCE_TTL={ttl} the last leaves were announced after {first:?} and {second:?}"
    );
    truth.agreed(&[&survivor]).await;
    for boot in &boots {
        forgotten(&mut client, boot).await;
    }
    fence_all(&[&survivor], &watchers).await;
    truth.still(&[&survivor]);
    truth.in_redis(&mut client);
    dead.extend(dead_later);
    heard(&watchers, &dead, (1, 1));
    for (session, tab) in &watchers {
        tab.look(|seen| assert_eq!(seen.leaves(&tab.user), 0, "a watcher of {session} has not left"));
    }
    in_the_log(&cluster.topics, &dead);
}

/// Stopped for longer than its lease: its users have left, as far as anyone can know, and come back with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_was_stopped_for_too_long_returns_with_its_users() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let cluster = Cluster::on(&redis.url());
    let [awake, sleeper] = cluster.nodes(["node-awake", "node-sleeper"], Some("6s"));
    let sessions: Vec<_> = (0..10).map(|_| unique("session")).collect();
    let staying = people(&sessions, "awake", 1);
    let watchers = join_crowd(&awake, &staying, "agent").await;
    let sleeping = people(&sessions, "sleeper", 5);
    let sleepers = join_crowd(&sleeper, &sleeping, "customer").await;
    let mut asleep = Truth::default();
    joined(&mut asleep, &staying, "agent");
    let mut truth = asleep.clone();
    joined(&mut truth, &sleeping, "customer");
    let nodes = [&awake, &sleeper];
    truth.agreed(&nodes).await;
    await_joins_announced(&watchers, &sleeping).await;

    sleeper.signal("STOP");
    await_leaves_announced("SIGSTOP", Instant::now(), &watchers, &sleeping).await;
    asleep.agreed(&[&awake]).await;

    sleeper.signal("CONT");
    let right = truth.agreed(&nodes).await;
    eprintln!("SIGCONT: right again after {right:.1?}");
    fence_all(&nodes, &watchers).await;
    fence_all(&nodes, &sleepers).await;
    truth.still(&nodes);
    truth.in_redis(&mut client);
    heard(&watchers, &sleeping, (2, 1));
    // The sleepers themselves noticed nothing.
    for (session, tab) in &sleepers {
        tab.look(|seen| {
            assert_eq!(seen.ended, None, "a connection to {session} was closed");
            for (_, user) in sleeping.iter().chain(&staying).filter(|(of, _)| of == session) {
                assert_eq!(
                    seen.leaves(user),
                    0,
                    "{user} of {session} has not left, to {}",
                    tab.user
                );
            }
        });
    }
}

/// The user leaves while the join is being written: the node must not forget the session before the user is removed
/// from Redis.
#[test]
fn a_user_who_leaves_during_the_write_of_the_join_is_reaped_with_the_node() {
    let redis = PrivateRedis::started();
    let proxy = Proxy::to(&redis.url());
    let cluster = Cluster::on(&redis.url());
    let node = |name: &str| cluster.node(name).env("PRESENCE_TTL", "3s");
    let a = node("node-a").spawn();
    // The log answers within the window.
    let b = node("node-b")
        .env("REDIS_URL", &proxy.url)
        .env("PRESENCE_FLUSH", "300ms")
        .spawn();
    a.wait_ready();
    b.wait_ready();

    let session = unique("session");
    proxy.hold_answers_to(&["EVALSHA", &session]);
    let mut ann = RawWs::connect(&b, &session, "ann", "customer");
    proxy.wait_held();
    ann.send(Frame::close(1000, ""));
    assert!(ann.read_close().is_some(), "the echo of a close");
    drop(ann);
    // From the join on only what takes the session off the list names that.
    proxy.cut_after(&[":sessions", &session]);
    proxy.release();
    proxy.wait_cut();
    b.signal("KILL");
    b.wait_exit(PATIENCE);

    let mut client = redis.client();
    eventually("the dead node is forgotten", || {
        client.zrange("livechat:nodes").len() == 1
    });
    assert_eq!(client.keys_with(&session), [""; 0], "what is left of the session");
    assert_eq!(a.connection_status(&session)["users"], json!({}));
}
