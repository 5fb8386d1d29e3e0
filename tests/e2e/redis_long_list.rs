//! A node that holds, or held, very many sessions, behind a link so slow that the whole list of them would not arrive
//! before the timeout.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::presence_proxy::Proxy;
use crate::services::{OUTAGE, PrivateRedis, RedisClient, Resp};
use crate::support::{Server, eventually};

const MANY: usize = 50_000;
/// Bytes a second: the list of so many has some three million.
const PACE: u64 = 1_000_000;
/// On a link on which 500 entries don't come within a second.
const SOME: usize = 2_000;
const SLOW: u64 = 20_000;

/// What a node has left behind.
fn leave(client: &mut RedisClient, node: &str, sessions: usize) {
    let leave = r#"
        for n = 1, tonumber(ARGV[2]) do
            local session = 'a-session-with-an-id-of-usual-length-' .. n
            local value = { user_id = 'u', user_type = 'customer', joined_at = '2026-01-01T00:00:00.000Z',
                nodes = { [ARGV[1]] = 1 } }
            redis.call('HSET', 'session:' .. session .. ':users', 'u', cjson.encode(value))
            redis.call('ZADD', 'livechat:node:' .. ARGV[1] .. ':sessions', n, session)
        end
    "#;
    let left = client.command(&["EVAL", leave, "0", node, &sessions.to_string()]);
    assert_eq!(left, Resp::Nil);
}

fn start(proxy: &Proxy) -> Server {
    Server::builder()
        .env("REDIS_URL", &proxy.url)
        .env("PRESENCE_TTL", "12s")
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start()
}

/// As long as there is progress it may take any time.
fn await_reaped(client: &mut RedisClient, node: &Server, list: &str) {
    let began = Instant::now();
    let mut left = || match client.command(&["ZCARD", list]) {
        Resp::Number(count) => count,
        other => panic!("{other:?}"),
    };
    let mut last = (left(), Instant::now());
    while last.0 > 0 {
        assert!(
            last.1.elapsed() < OUTAGE,
            "{} sessions are left, and nothing happens: {}",
            last.0,
            node.health()
        );
        std::thread::sleep(Duration::from_millis(100));
        let now = left();
        if now < last.0 {
            last = (now, Instant::now());
        }
    }
    eprintln!("all sessions were reaped in {:.1?}", began.elapsed());
    assert_eq!(client.keys_with("a-session"), [""; 0]);
    let session = "a-session-with-an-id-of-usual-length-7";
    assert_eq!(node.connection_status(session)["users"], json!({}));
}

fn assert_dead_node_is_reaped(sessions: usize, pace: u64) {
    const DEAD: &str = "node-dead+0123456789ab";
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    leave(&mut client, DEAD, sessions);
    client.command(&["ZADD", "livechat:nodes", "1", DEAD]);
    let proxy = Proxy::slow(&redis.url(), pace);
    let node = start(&proxy);
    await_reaped(&mut client, &node, &format!("livechat:node:{DEAD}:sessions"));
    eventually("it is deregistered", || client.keys_with("node-dead").is_empty());
    eventually("it is counted", || {
        node.metric("livechat_nodes_reaped_total") as u64 == 1
    });
}

#[test]
fn a_dead_nodes_long_list_is_reaped_completely() {
    assert_dead_node_is_reaped(MANY, PACE);
}

#[test]
fn a_long_list_is_reaped_over_a_slow_link() {
    assert_dead_node_is_reaped(SOME, SLOW);
}

/// Its sessions ended while Redis accepted no writes: it goes through its own list.
#[test]
fn a_nodes_own_long_list_is_reclaimed_completely() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let proxy = Proxy::slow(&redis.url(), PACE);
    let node = start(&proxy);
    eventually("its lease", || client.zrange("livechat:nodes").len() == 1);
    let name = client.zrange("livechat:nodes").remove(0);
    leave(&mut client, &name, MANY);
    client.command(&["REPLICAOF", "127.0.0.1", "1"]);
    eventually("it takes no writes", || {
        node.health()["redis"]["status"] == "degraded"
    });
    client.command(&["REPLICAOF", "NO", "ONE"]);
    await_reaped(&mut client, &node, &format!("livechat:node:{name}:sessions"));
    eventually("all is well", || node.health()["redis"]["status"] == "ok");
}
