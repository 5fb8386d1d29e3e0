//! The script of the heartbeat, on its own: which nodes count as having written everything they hold.

use crate::services::{PrivateRedis, RedisClient, Resp};

const HEARTBEAT: &str = include_str!("../../src/presence/redis/heartbeat.lua");
const KEYS: [&str; 5] = [
    "livechat:nodes",
    "{livechat:nodes}:claims",
    "{livechat:nodes}:epoch",
    "{livechat:nodes}:writing",
    "{livechat:nodes}:left",
];

/// What the script answers.
#[derive(Debug)]
struct Answer {
    epoch: String,
    done: Vec<String>,
    writing: Vec<String>,
}

/// A heartbeat of a node that claims nobody.
fn heartbeat(redis: &mut RedisClient, node: &str, is_writing: bool, epoch: &str, retired: &[&str]) -> Answer {
    let is_writing = if is_writing { "1" } else { "0" };
    let mut command = vec!["EVAL", HEARTBEAT, "5"];
    command.extend(KEYS);
    command.extend([node, "60000", "0", is_writing, "0", epoch]);
    command.extend(retired);
    let Resp::Array(mut reply) = redis.command(&command) else {
        panic!("an array");
    };
    let mut names = || match reply.pop() {
        Some(Resp::Array(names)) => names.into_iter().map(text).collect(),
        other => panic!("{other:?}"),
    };
    let (writing, done, _claimed): (_, _, Vec<_>) = (names(), names(), names());
    let epoch = text(reply.pop().expect("an epoch"));
    Answer { epoch, done, writing }
}

fn text(reply: Resp) -> String {
    match reply {
        Resp::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_heartbeat_with_the_epoch_from_before_a_loss_does_not_count_as_everything_written() {
    let redis = PrivateRedis::started();
    let mut redis = redis.client();
    // A node that starts knows no epoch.
    let before = heartbeat(&mut redis, "a+1", false, "", &[]).epoch;
    let known = heartbeat(&mut redis, "a+1", false, &before, &[]);
    assert_eq!(known.epoch, before);
    assert_eq!((known.done, known.writing), (vec!["a+1".to_owned()], vec![]));

    redis.flushall();
    let unaware = heartbeat(&mut redis, "a+1", false, &before, &[]);
    assert_ne!(unaware.epoch, before);
    assert_eq!((unaware.done, unaware.writing), (vec![], vec!["a+1".to_owned()]));
    let aware = heartbeat(&mut redis, "a+1", false, &unaware.epoch, &[]);
    assert_eq!((aware.done, aware.writing), (vec!["a+1".to_owned()], vec![]));
}

#[test]
fn a_node_that_writes_under_another_name_does_not_count_by_its_retired_one() {
    let redis = PrivateRedis::started();
    let mut redis = redis.client();
    let epoch = heartbeat(&mut redis, "a+1", true, "", &[]).epoch;
    let renamed = heartbeat(&mut redis, "a+1.1", true, &epoch, &["a+1"]);
    assert_eq!(renamed.writing, ["a+1.1"]);
    let done = heartbeat(&mut redis, "a+1.1", false, &epoch, &["a+1"]);
    assert_eq!(done.writing, [""; 0]);
}
