//! A dead node that held very many sessions, behind a link on which its list does not come within one answer's time.

use std::time::Instant;

use serde_json::json;

use crate::presence_proxy::Proxy;
use crate::services::{OUTAGE, PrivateRedis, Resp};
use crate::support::{Server, eventually};

const SESSIONS: usize = 50_000;
const DEAD: &str = "node-dead+0123456789ab";
/// Bytes a second: the list has some three million.
const PACE: u64 = 1_000_000;

#[test]
fn redis_long_list_of_a_dead_node_is_taken_back_whole() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    // What it has left behind, its lease included.
    let leave = r#"
        for n = 1, tonumber(ARGV[2]) do
            local session = 'a-session-with-an-id-of-usual-length-' .. n
            local value = { user_id = 'u', user_type = 'customer', joined_at = '2026-01-01T00:00:00.000Z',
                nodes = { [ARGV[1]] = 1 } }
            redis.call('HSET', 'session:' .. session .. ':users', 'u', cjson.encode(value))
            redis.call('ZADD', 'livechat:node:' .. ARGV[1] .. ':sessions', n, session)
        end
        redis.call('ZADD', 'livechat:nodes', 1, ARGV[1])
    "#;
    let left = client.command(&["EVAL", leave, "0", DEAD, &SESSIONS.to_string()]);
    assert_eq!(left, Resp::Nil);
    let proxy = Proxy::slow(&redis.url(), PACE);
    let node = Server::builder()
        .env("REDIS_URL", &proxy.url)
        .env("PRESENCE_TTL", "12s")
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start();
    let began = Instant::now();
    let mut left = || match client.command(&["ZCARD", &format!("livechat:node:{DEAD}:sessions")]) {
        Resp::Number(count) => count,
        other => panic!("{other:?}"),
    };
    // As long as there is progress it may take what it takes.
    let mut last = (left(), Instant::now());
    while last.0 > 0 {
        assert!(
            last.1.elapsed() < OUTAGE,
            "{} sessions are left, and nothing happens: {}",
            last.0,
            node.health()
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = left();
        if now < last.0 {
            last = (now, Instant::now());
        }
    }
    eprintln!("{SESSIONS} sessions were taken back in {:.1?}", began.elapsed());
    eventually("it is forgotten", || {
        redis.client().keys_with("node-dead").is_empty()
    });
    assert_eq!(redis.client().keys_with("a-session"), [""; 0]);
    assert_eq!(node.metric("livechat_nodes_reaped_total") as u64, 1);
    assert_eq!(
        node.connection_status("a-session-with-an-id-of-usual-length-7")["users"],
        json!({})
    );
}
