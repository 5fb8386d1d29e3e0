//! The scripts of the index of sessions, on their own: compared with a plain model, and what a session's own script says
//! about who waits.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::services::{RedisClient, Resp, redis_url, unique, users_key};

const APPLY: &str = include_str!("../../src/presence/redis/apply.lua");
const INDEX: &str = include_str!("../../src/presence/redis/index.lua");
const FEED: &str = include_str!("../../src/presence/redis/feed.lua");
/// Ended sessions are remembered as long as the test runs, and at most so many.
const KEEP: &str = "3600000";
const MOST_ENDED: usize = 20;

struct Index {
    redis: RedisClient,
    keys: [String; 4],
    /// Sessions: version, state, since, customers, agents.
    model: BTreeMap<String, [String; 5]>,
}

fn text(answer: &Resp) -> String {
    let Resp::Text(text) = answer else {
        panic!("a text: {answer:?}");
    };
    text.clone()
}

fn array(answer: Resp) -> Vec<Resp> {
    let Resp::Array(answers) = answer else {
        panic!("an array: {answer:?}");
    };
    answers
}

impl Index {
    fn new() -> Self {
        let name = unique("index");
        Self {
            redis: RedisClient::connect(&redis_url()),
            keys: ["entries", "order", "feed", "ended"].map(|key| format!("{{{name}}}:{key}")),
            model: BTreeMap::new(),
        }
    }

    fn write(&mut self, rows: &[(String, [String; 5])], most: usize) {
        let most = most.to_string();
        let mut command = vec!["EVAL", INDEX, "4"];
        command.extend(self.keys.iter().map(String::as_str));
        command.extend([KEEP, &most]);
        for (id, row) in rows {
            command.push(id);
            command.extend(row.iter().map(String::as_str));
            command.push("0");
            let known = self.model.get(id).map(|known| known[0].parse::<u64>().unwrap());
            if known.is_none_or(|known| row[0].parse::<u64>().unwrap() >= known) {
                self.model.insert(id.clone(), row.clone());
            }
        }
        self.redis.command(&command);
    }

    /// What has changed behind this number, and the number of the last change.
    fn read(&mut self, from: u64) -> (u64, BTreeMap<String, [String; 5]>) {
        let from = from.to_string();
        let command = ["EVAL", FEED, "2", &self.keys[0], &self.keys[2], &from, "100000"];
        let mut reply = array(self.redis.command(&command));
        let changes = array(reply.remove(2));
        let changes = changes.chunks(3).map(|change| {
            let entry = text(&change[2]);
            let fields: Vec<_> = entry.split(' ').map(str::to_owned).collect();
            (text(&change[0]), fields.try_into().expect("five fields"))
        });
        (text(&reply[0]).parse().expect("a number"), changes.collect())
    }

    fn check(&mut self) {
        let mut order = self.redis.zrange(&self.keys[1]);
        let live = self.model.iter().filter(|(_, row)| row[1] != "e");
        let mut expected: Vec<_> = live
            .map(|(id, row)| format!("{}:{:0>15}:{id}", row[1], row[2]))
            .collect();
        expected.sort();
        assert!(order.is_sorted());
        order.sort();
        assert_eq!(order, expected);
        assert_eq!(self.read(0).1, self.model);
        let ended = self.model.values().filter(|row| row[1] == "e").count();
        assert_eq!(self.redis.zrange(&self.keys[3]).len(), ended);
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let mut command = vec!["DEL"];
        command.extend(self.keys.iter().map(String::as_str));
        self.redis.ask(&command);
    }
}

/// The same version always means the same.
fn row(rng: &mut Rng) -> (String, [String; 5]) {
    let version = rng.u64(1..200);
    let mut rng = Rng::with_seed(version);
    let states = [("w", 1, 0), ("a", 1, 1), ("i", 0, 1), ("e", 0, 0)];
    let (state, customers, agents): (_, u32, u32) = states[rng.usize(..states.len())];
    let (id, since) = (format!("s{}", rng.usize(..12)), rng.u64(..1000));
    let [version, since] = [version, since].map(|number| number.to_string());
    let [customers, agents] = [customers, agents].map(|total| total.to_string());
    (id, [version, state.to_owned(), since, customers, agents])
}

/// Rows in any order, repeated, late: the newest of each session is what counts, and each change is in the feed behind the
/// number that was read before.
#[test]
fn late_and_repeated_writes_change_nothing() {
    for seed in 0..20 {
        let (mut rng, mut index) = (Rng::with_seed(seed), Index::new());
        for _ in 0..40 {
            let (last, _) = index.read(0);
            let before = index.model.clone();
            let rows: Vec<_> = (0..rng.usize(1..6)).map(|_| row(&mut rng)).collect();
            index.write(&rows, 1000);
            index.check();
            let (_, changed) = index.read(last);
            for (id, row) in &index.model {
                if before.get(id) != Some(row) {
                    assert_eq!(changed.get(id), Some(row), "seed {seed}: {id} has changed");
                }
            }
            let written = |id: &String| rows.iter().any(|(written, _)| written == id);
            assert!(changed.keys().all(written), "seed {seed}: nothing else has");
        }
    }
}

/// What was seen while a session's keys were damaged is better than nothing, and worse than anything else.
#[test]
fn a_suspect_state_replaces_no_other() {
    let mut index = Index::new();
    let mut entry = |version: &str, state: &str, suspect: &str| {
        let mut command = vec!["EVAL", INDEX, "4"];
        command.extend(index.keys.iter().map(String::as_str));
        command.extend([KEEP, "9", "s", version, state, "5", "1", "1", suspect]);
        index.redis.command(&command);
        let entry = index.redis.hget(&index.keys[0], "s").expect("an entry");
        (
            entry.starts_with(&format!("{version} {state} ")),
            entry.ends_with(" s"),
        )
    };
    assert_eq!(entry("1", "w", "1"), (true, true));
    assert_eq!(entry("2", "a", "1"), (true, true));
    assert_eq!(entry("2", "a", "0"), (true, false));
    assert_eq!(entry("3", "w", "1"), (false, false));
    assert_eq!(entry("3", "w", "0"), (true, false));
    assert_eq!(entry("3", "w", "0"), (true, false));
}

#[test]
fn ended_sessions_are_forgotten_and_readers_are_told() {
    let mut index = Index::new();
    let row = |n: usize, state: &str| {
        let fields = [
            n.to_string(),
            state.to_owned(),
            "5".into(),
            "0".into(),
            "0".into(),
        ];
        (format!("s{n}"), fields)
    };
    let rows: Vec<_> = (1..=3 * MOST_ENDED).map(|n| row(n, "e")).collect();
    index.write(&rows, MOST_ENDED);
    let (last, _) = index.read(0);
    index.write(&[row(1000, "w")], MOST_ENDED);
    let ended = index.redis.zrange(&index.keys[3].clone());
    assert_eq!(ended.len(), MOST_ENDED);
    let (_, left) = index.read(0);
    assert_eq!(left.len(), MOST_ENDED + 1);
    // A reader that has not read as far may have missed something.
    let pruned = index
        .redis
        .hget(&index.keys[0].clone(), "#pruned")
        .expect("a number");
    let pruned = pruned.parse::<u64>().unwrap();
    let possible = last - MOST_ENDED as u64..=last;
    assert!(possible.contains(&pruned), "{pruned}, not one of {possible:?}");
}

/// A session and its script, under two nodes' names.
struct Session {
    redis: RedisClient,
    users: String,
}

impl Session {
    fn new() -> Self {
        Self {
            redis: RedisClient::connect(&redis_url()),
            users: users_key(&unique("session")),
        }
    }

    /// Users with type, joined_at and connections; returns news, state and since when.
    fn write(&mut self, node: &str, known: &str, users: &[(&str, &str, &str, &str)]) -> (bool, String, i64) {
        let (meta, leaves) = (
            format!("{{{}}}:meta", self.users),
            format!("{{{}}}:untold:{node}", self.users),
        );
        let mut command = vec!["EVAL", APPLY, "3", &self.users, &meta, &leaves];
        command.extend([node, "some", "none", "", "10000", known]);
        for (user, kind, joined_at, connections) in users {
            command.extend([user, kind, joined_at, connections, "0"]);
        }
        let reply = array(self.redis.command(&command));
        let answer = text(&reply[9]);
        let fields: Vec<_> = answer.split(' ').collect();
        (
            fields[0] == "1",
            fields[1].to_owned(),
            fields[2].parse().expect("milliseconds"),
        )
    }
}

const TEN: &str = "2026-01-01T10:00:00.000Z";
const ELEVEN: &str = "2026-01-01T11:00:00.000Z";

fn ms(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().expect("a time").as_millisecond()
}

#[test]
fn since_is_when_the_session_entered_its_state() {
    let mut session = Session::new();
    let (ann, bob) = (("ann", "customer", TEN, "1"), ("bob", "agent", ELEVEN, "1"));
    let began = jiff::Timestamp::now().as_millisecond();
    assert_eq!(session.write("a+1", "", &[]).1, "e");
    assert_eq!(session.write("a+1", "", &[ann]), (true, "w".into(), ms(TEN)));
    assert_eq!(session.write("a+1", "", &[ann]), (false, "w".into(), ms(TEN)));
    let eve = ("eve", "admin", ELEVEN, "1");
    assert_eq!(session.write("a+1", "", &[eve]), (true, "w".into(), ms(TEN)));
    assert_eq!(session.write("b+1", "", &[bob]), (true, "a".into(), ms(ELEVEN)));
    let (_, state, since) = session.write("b+1", "", &[("bob", "agent", ELEVEN, "-1")]);
    assert!(state == "w" && since >= began, "{since}");
    let (_, state, since) = session.write("a+1", "", &[("ann", "customer", TEN, "-1")]);
    assert!(state == "i" && since >= began, "{since}");
    assert_eq!(session.write("a+1", "", &[("eve", "admin", TEN, "-1")]).1, "e");
}

/// Redis has lost the keys, and the nodes write them again, in whichever order: times are what they were.
#[test]
fn since_survives_a_loss_of_data() {
    let (ann, bob) = (("ann", "customer", TEN, "1"), ("bob", "agent", TEN, "1"));
    let active = format!("a {}", ms(ELEVEN));
    for order in [["a+1", "b+1"], ["b+1", "a+1"]] {
        let mut session = Session::new();
        for node in order {
            let user = if node == "a+1" { ann } else { bob };
            session.write(node, &active, &[user]);
        }
        let (_, state, since) = session.write("a+1", "", &[]);
        assert_eq!((state.as_str(), since), ("a", ms(ELEVEN)), "{order:?}");
    }
    // An agent has left long ago.
    let mut session = Session::new();
    let waiting = format!("w {}", ms(ELEVEN));
    assert_eq!(session.write("a+1", &waiting, &[ann]).2, ms(ELEVEN));
    // What a node knew of a state that has ended since is of no use.
    session.write("b+1", "", &[bob]);
    session.write("b+1", "", &[("bob", "agent", TEN, "-1")]);
    let before = session.write("a+1", "", &[]).2;
    session.write("b+1", "", &[bob]);
    let (_, state, since) = session.write("b+1", &waiting, &[("bob", "agent", TEN, "-1")]);
    assert!(state == "w" && since >= before && before > ms(ELEVEN), "{since}");
}

/// A node of an older version writes totals, and no state.
#[test]
fn an_older_nodes_changes_are_noticed() {
    let mut session = Session::new();
    session.write(
        "a+1",
        "",
        &[("ann", "customer", TEN, "1"), ("bob", "agent", TEN, "1")],
    );
    let meta = format!("{{{}}}:meta", session.users);
    session.redis.command(&["HSET", &meta, "total_agent", "0"]);
    let (is_news, state, since) = session.write("a+1", "", &[]);
    assert!(is_news && state == "w" && since > ms(ELEVEN), "{state} {since}");
    session.redis.command(&["HDEL", &meta, "state", "since"]);
    let again = session.write("a+1", "", &[]);
    assert_eq!((again.0, again.1.as_str()), (true, "w"));
}
