//! The agents' desk over several nodes: lists and lobbies are the same on all of them, whatever happens to a node, to
//! Redis or to its keys.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lobby_watcher::{Desk, LobbyWatcher, session};
use crate::presence_lobby::listed;
use crate::redis_cluster::Cluster;
use crate::services::{PrivateRedis, RedisClient, Resp, at_last, unique};
use crate::support::{RawWs, Server, eventually};

/// A connection that has been greeted.
fn join(node: &Server, session: &str, user: &str, user_type: &str) -> RawWs {
    RawWs::connect(node, session, user, user_type)
}

/// All sessions and their states, as this node lists them.
fn desk_of(node: &Server) -> Desk {
    listed(node, "all", 1000, "").iter().map(session).collect()
}

fn desk(sessions: &[(&str, &str)]) -> Desk {
    let owned = sessions
        .iter()
        .map(|(id, state)| ((*id).to_owned(), (*state).to_owned()));
    owned.collect()
}

fn since(node: &Server, session: &str) -> Value {
    let all = listed(node, "all", 1000, session);
    all.first().map_or(Value::Null, |entry| entry["since"].clone())
}

#[test]
fn each_node_tells_its_lobby_what_happens_on_the_other() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], Some("3s"));
    let lobbies = [&a, &b].map(|node| LobbyWatcher::enter("lobby", node.http_addr()));
    lobbies
        .iter()
        .for_each(|lobby| eventually("a snapshot", || lobby.desk().is_some()));
    let told = |events: &[&str]| {
        eventually(&format!("{events:?}"), || {
            lobbies.iter().all(|lobby| lobby.events("s") == events)
        });
    };
    let joined = Instant::now();
    let customer = join(&a, "s", "ann", "customer");
    told(&["waiting"]);
    // A window, the log and a round trip; not the next heartbeat, which is 250 ms.
    let took = joined.elapsed();
    let agent = join(&b, "s", "bob", "agent");
    told(&["waiting", "active"]);
    for node in [&a, &b] {
        eventually("the list", || desk_of(node) == desk(&[("s", "active")]));
    }
    drop(agent);
    told(&["waiting", "active", "waiting"]);
    let agent = join(&a, "s", "bob", "agent");
    told(&["waiting", "active", "waiting", "active"]);
    drop(customer);
    told(&["waiting", "active", "waiting", "active", "ended"]);
    eventually("the list", || desk_of(&b) == desk(&[("s", "idle")]));
    drop(agent);
    eventually("the end", || desk_of(&b).is_empty());
    lobbies.iter().for_each(LobbyWatcher::check);
    eprintln!("told after {took:?}");

    // The node with the customer dies: the other tells it once, within PRESENCE_TTL.
    let _customer = join(&a, "t", "ann", "customer");
    let lobby = &lobbies[1];
    eventually("the customer", || lobby.events("t") == ["waiting"]);
    a.signal("KILL");
    let killed = Instant::now();
    at_last("the end", || lobby.events("t") == ["waiting", "ended"]);
    // PRESENCE_TTL; the rest is for a busy machine.
    assert!(
        killed.elapsed() < Duration::from_secs(3 + 40),
        "{:?}",
        killed.elapsed()
    );
    eventually("an empty list", || desk_of(&b).is_empty());
    lobby.check();
    let late = LobbyWatcher::enter("late", b.http_addr());
    eventually("a snapshot", || late.desk() == Some(Desk::new()));
}

/// Redis is back without its data: nobody is told anything, and times stay what they were.
#[test]
fn a_redis_that_is_back_empty_changes_nothing() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], Some("12s"));
    let mut customers: Vec<_> = (0..30)
        .map(|n| join(&a, &format!("s{n}"), "ann", "customer"))
        .collect();
    let mut agents: Vec<_> = (10..30)
        .map(|n| Some(join(&b, &format!("s{n}"), "bob", "agent")))
        .collect();
    let lobbies = [&a, &b].map(|node| LobbyWatcher::enter("lobby", node.http_addr()));
    // Some wait again: when that began is nowhere but in Redis and in the nodes.
    agents[10..].fill_with(|| None);
    let expected: Desk = (0..30)
        .map(|n| {
            let state = if (10..20).contains(&n) {
                "active"
            } else {
                "waiting"
            };
            (format!("s{n}"), state.to_owned())
        })
        .collect();
    let agreed = || {
        lobbies
            .iter()
            .all(|lobby| lobby.desk().as_ref() == Some(&expected))
    };
    at_last("both lobbies", agreed);
    let events = || {
        lobbies.each_ref().map(|lobby| {
            (0..30)
                .map(|n| lobby.events(&format!("s{n}")))
                .collect::<Vec<_>>()
        })
    };
    let all_since = || (0..30).map(|n| since(&a, &format!("s{n}"))).collect::<Vec<_>>();
    at_last("the list", || desk_of(&a) == expected);
    // The customers' node knows it, too.
    for customer in &mut customers[20..] {
        while customer.read_json()["data"]["event_type"] != "user_disconnected" {}
    }
    let (before, times) = (events(), all_since());

    redis.kill();
    at_last("503", || {
        a.get("/api/sessions").status == 503 && b.get("/api/sessions").status == 503
    });
    // On a busy machine, some take longer.
    let quickest = [(); 5]
        .map(|()| {
            let asked = Instant::now();
            a.get("/api/sessions").assert_error(503);
            asked.elapsed()
        })
        .into_iter()
        .min();
    assert!(quickest < Some(Duration::from_secs(1)), "{quickest:?}");
    // It happens while nobody can write it.
    agents[0] = None;
    redis.start();
    at_last("the end of an active session's", || {
        lobbies
            .iter()
            .all(|lobby| lobby.state("s10").as_deref() == Some("waiting"))
    });
    at_last("the list", || {
        a.get("/api/sessions").status == 200 && desk_of(&a).len() == 30
    });
    let (after, later) = (events(), all_since());
    for (lobby, (before, after)) in before.iter().zip(&after).enumerate() {
        for (n, (before, after)) in before.iter().zip(after).enumerate() {
            let mut expected = before.clone();
            expected.extend((n == 10).then(|| "waiting".to_owned()));
            assert_eq!(*after, expected, "s{n} in lobby {lobby}");
        }
    }
    for (n, (before, after)) in times.iter().zip(&later).enumerate() {
        assert_eq!(before == after, n != 10, "s{n}: {before}, then {after}");
    }
    redis.client().flushall();
    at_last("the list again", || {
        redis.client().zrange("{livechat:sessions}:order").len() == 30
            && a.get("/api/sessions").status == 200
            && b.get("/api/sessions").status == 200
    });
    assert_eq!(all_since(), later, "emptied once more");
    assert_eq!(events(), after);
    lobbies.iter().for_each(LobbyWatcher::check);
    drop((customers, agents));
}

/// Keys of the index that are lost, or of another type, come back; what others have put there is not shown.
#[test]
fn a_damaged_index_heals() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let _clients = [
        join(&a, "s", "ann", "customer"),
        join(&b, "t", "ann", "customer"),
        join(&b, "t", "bob", "agent"),
    ];
    let expected = desk(&[("s", "waiting"), ("t", "active")]);
    let lobby = LobbyWatcher::enter("lobby", a.http_addr());
    let mut client = redis.client();
    let is_there = |lobby: &LobbyWatcher| {
        let has_answer = a.get("/api/sessions").status == 200;
        has_answer
            && desk_of(&a) == expected
            && desk_of(&b) == expected
            && lobby.desk().as_ref() == Some(&expected)
    };
    at_last("the list", || is_there(&lobby));
    let count = |lobby: &LobbyWatcher| lobby.events("s").len() + lobby.events("t").len();
    let before = count(&lobby);
    for key in ["entries", "order", "feed", "ended"].map(|key| format!("{{livechat:sessions}}:{key}")) {
        for command in [&["DEL", &key][..], &["SET", &key, "junk"]] {
            client.ask(&["DEL", &key]);
            client.command(command);
            at_last(&format!("{command:?}"), || is_there(&lobby));
            assert_eq!(count(&lobby), before, "no news");
        }
    }
    // Sessions that nobody is in.
    let ghost = |client: &mut RedisClient| {
        client.command(&[
            "ZADD",
            "{livechat:sessions}:order",
            "0",
            "w:000000000000001:ghost",
        ]);
        client.command(&["HSET", "{livechat:sessions}:entries", "ghost", "5 w 1 1 0"]);
    };
    ghost(&mut client);
    assert_eq!(desk_of(&a), expected);
    at_last("the ghost is gone", || {
        desk_of(&b);
        let order = client.zrange("{livechat:sessions}:order");
        !order.iter().any(|place| place.ends_with("ghost"))
    });
    assert_eq!(
        client.ask(&["ZCARD", "{livechat:sessions}:order"]),
        Resp::Number(2)
    );
    lobby.check();
}

/// A page and a snapshot of a very large index are as small as of any other, and quick.
#[test]
fn a_hundred_thousand_sessions_are_read_a_page_at_a_time() {
    const SESSIONS: usize = 100_000;
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let script = r"
        for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
            local id, since = string.format('many-%06d', n), 1700000000000 + math.floor(n / 7)
            redis.call('HSET', '{session:' .. id .. ':users}:meta', 'version', 1700000000000000, 'count', 1,
                'total_customer', 1, 'state', 'w', 'since', string.format('%.0f', since))
            redis.call('HSET', '{livechat:sessions}:entries', id, string.format('1700000000000000 w %.0f 1 0', since))
            redis.call('ZADD', '{livechat:sessions}:order', 0, string.format('w:%015.0f:%s', since, id))
            redis.call('ZADD', '{livechat:sessions}:feed', 1700000000000000 + n, id)
        end
        redis.call('HSET', '{livechat:sessions}:entries', '#seq', string.format('%.0f', 1700000000000000 + ARGV[2]))";
    for from in (0..SESSIONS).step_by(10_000) {
        let (from, to) = (from.to_string(), (from + 9_999).to_string());
        client.command(&["EVAL", script, "0", &from, &to]);
    }
    let node = Server::builder().env("REDIS_URL", redis.url()).start();
    let mut watcher = RawWs::connect_path(node.http_addr(), "/ws/@lobby/bob/agent");
    assert_eq!(watcher.read_json()["type"], "connection_established");
    // Presence is not held up while the lobby reads them all.
    let mut customer = join(&node, &unique("session"), "ann", "customer");
    let joined = Instant::now();
    while customer.read_json()["type"] != "connection_status_update" {}
    assert!(
        joined.elapsed() < Duration::from_secs(5),
        "{:?}",
        joined.elapsed()
    );
    let snapshot = watcher.read_json();
    assert_eq!(snapshot["type"], "lobby_snapshot");
    let sessions = snapshot["data"]["sessions"].as_array().expect("a list");
    assert_eq!(
        (sessions.len(), &snapshot["data"]["has_more"]),
        (1000, &true.into())
    );
    assert_eq!(sessions[999]["session_id"], "many-000999");
    let (mut read, mut cursor, mut times) = (0, String::new(), Vec::new());
    loop {
        let asked = Instant::now();
        let path = format!("/api/sessions?state=waiting&limit=1000&cursor={cursor}");
        let mut answer = node.get(&path);
        times.push(asked.elapsed());
        eventually("the presence store answers", || {
            if answer.status == 503 {
                answer = node.get(&path);
            }
            answer.status != 503
        });
        let answer = answer.json();
        let sessions = answer["data"]["sessions"].as_array().expect("a list");
        assert!(sessions.len() <= 1000);
        for session in sessions
            .iter()
            .filter(|session| session["session_id"].as_str().unwrap().starts_with("many-"))
        {
            assert_eq!(session["session_id"], format!("many-{read:06}"));
            read += 1;
        }
        match answer["data"]["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(read, SESSIONS);
    times.sort_unstable();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(700), "{times:?}");
    assert!(node.rss_kib() < 200 << 10, "{} KiB", node.rss_kib());
}
