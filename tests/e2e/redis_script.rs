//! The script that writes a session, on its own: what it considers damage, and for how long.

use std::time::Duration;

use crate::services::{RedisClient, Resp, redis_url, unique, users_key};

const APPLY: &str = include_str!("../../src/presence/redis/apply.lua");
const SUSPICION_MS: i64 = 60_000;

/// A session that the script writes, under two nodes' names.
struct Script {
    redis: RedisClient,
    users: String,
    meta: String,
}

/// What it answers, of damage.
#[derive(Debug)]
struct Answer {
    birth: String,
    /// When damage was last found; empty while nothing is suspect.
    damaged: String,
    suspect_for: i64,
}

impl Script {
    fn new() -> Self {
        let users = users_key(&unique("session"));
        Self {
            redis: RedisClient::connect(&redis_url()),
            meta: format!("{{{users}}}:meta"),
            users,
        }
    }

    /// A node holds one connection of each of these users.
    fn holds(&mut self, node: &str, birth: &str, users: &[&str]) -> Answer {
        let pending_leaves = format!("{{{}}}:untold:{node}", self.users);
        let suspicion = SUSPICION_MS.to_string();
        let mut command = vec!["EVAL", APPLY, "3", &self.users, &self.meta, &pending_leaves];
        command.extend([node, "some", "none", birth, &suspicion, ""]);
        for user in users {
            command.extend([user, "customer", "2026-01-01T00:00:00.000Z", "1", "0"]);
        }
        let Resp::Array(reply) = self.redis.command(&command) else {
            panic!("an array");
        };
        let (Resp::Text(birth), Resp::Text(damaged), Resp::Number(suspect_for)) =
            (&reply[4], &reply[5], &reply[6])
        else {
            panic!("{reply:?}");
        };
        Answer {
            birth: birth.clone(),
            damaged: damaged.clone(),
            suspect_for: *suspect_for,
        }
    }

    fn lose(&mut self, user: &str) {
        let (users, one) = (&self.users, Resp::Number(1));
        assert_eq!(
            self.redis.command(&["HDEL", users, user]),
            one,
            "{user} was there"
        );
    }

    /// As the old server writes one.
    fn old(&mut self, user: &str) {
        let value =
            format!(r#"{{"user_id":"{user}","user_type":"agent","joined_at":"2026-01-01T00:00:00Z"}}"#);
        self.redis.command(&["HSET", &self.users, user, &value]);
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.redis.ask(&["DEL", &self.users, &self.meta]);
    }
}

fn a_moment() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn suspicion_lasts_from_the_latest_damage() {
    let mut script = Script::new();
    let birth = script.holds("a+1", "", &["ann", "cid"]).birth;
    assert_eq!(script.holds("b+1", &birth, &["ben", "dan"]).damaged, "");
    script.lose("ann");
    let first = script.holds("a+1", &birth, &["ann"]);
    assert_eq!(first.suspect_for, SUSPICION_MS, "{first:?}");
    a_moment();
    let known = script.holds("b+1", &birth, &["ben"]);
    assert_eq!(known.damaged, first.damaged, "nothing else was lost");
    assert!(known.suspect_for < SUSPICION_MS, "{known:?}");
    script.lose("dan");
    let second = script.holds("a+1", &birth, &["ann"]);
    assert!(second.damaged > first.damaged, "{second:?} after {first:?}");
    assert_eq!(second.suspect_for, SUSPICION_MS);
    assert_eq!(script.holds("b+1", &birth, &["dan"]).damaged, second.damaged);
}

/// Each node finds that the keys are not those that it knew: that is the same damage.
#[test]
fn recreated_keys_are_one_incident() {
    let mut script = Script::new();
    let birth = script.holds("a+1", "", &["ann"]).birth;
    script.holds("b+1", &birth, &["ben"]);
    let (users, meta) = (script.users.clone(), script.meta.clone());
    script.redis.command(&["DEL", &users, &meta]);
    let first = script.holds("a+1", &birth, &["ann"]);
    assert_eq!(first.suspect_for, SUSPICION_MS, "{first:?}");
    a_moment();
    let second = script.holds("b+1", &birth, &["ben"]);
    assert_eq!((&second.damaged, &second.birth), (&first.damaged, &first.birth));
}

#[test]
fn changes_by_the_old_server_are_not_damage() {
    let mut script = Script::new();
    let birth = script.holds("a+1", "", &["ann", "ben"]).birth;
    for user in ["old-1", "old-2", "old-3"] {
        script.old(user);
    }
    script.holds("a+1", &birth, &["ann"]);
    script.lose("old-1");
    let answer = script.holds("a+1", &birth, &["ann"]);
    assert_eq!((answer.damaged.as_str(), answer.suspect_for), ("", 0));
    // One of each.
    script.lose("old-2");
    script.lose("ben");
    let answer = script.holds("a+1", &birth, &["ann"]);
    assert_eq!(answer.suspect_for, SUSPICION_MS, "{answer:?}");
    // Who connects to ours under the same id is ours.
    script.holds("a+1", &birth, &["ben", "old-3"]);
    a_moment();
    script.lose("old-3");
    let second = script.holds("a+1", &birth, &["ann"]);
    assert!(second.damaged > answer.damaged, "{second:?}");
}

/// The old server overwrites one of ours, and we write it again.
#[test]
fn an_overwritten_user_is_counted_once() {
    let mut script = Script::new();
    let birth = script.holds("a+1", "", &["ann", "ben"]).birth;
    script.old("ann");
    script.old("old");
    script.holds("a+1", &birth, &["ann", "old"]);
    let meta = script.redis.hgetall(&script.meta);
    assert_eq!(meta["total_customer"], "3", "{meta:?}");
    assert_eq!(meta.get("total_agent").map_or("0", String::as_str), "0");
}
