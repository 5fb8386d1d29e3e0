//! Parses the answers of Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::{RedisError, Value};
use serde::Deserialize;

use super::keys::node_of;
use super::listing::Requested;
use super::session_entry::StateAfter;
use crate::protocol::ids::{UserId, UserType};
use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType};

/// The answer to a heartbeat.
pub struct Heartbeat {
    /// Whether our lease was there and had not ended.
    pub is_lease_valid: bool,
    pub epoch: String,
    /// Nodes that are dead or were shut down, and that this node has claimed.
    pub dead: Vec<String>,
    /// The live nodes that have written everything they hold, and those that have not.
    pub done: Vec<String>,
    pub writing: Vec<String>,
}

impl Heartbeat {
    /// How many nodes are alive, under however many names.
    pub fn nodes(&self) -> usize {
        let names = self.done.iter().chain(&self.writing);
        names.map(|name| node_of(name)).collect::<BTreeSet<_>>().len()
    }
}

pub fn read_heartbeat(answer: Value) -> Result<Heartbeat, RedisError> {
    type Reply = (i64, String, Vec<String>, Vec<String>, Vec<String>);
    let (lease_valid, epoch, dead, done, writing): Reply = redis::from_redis_value(answer)?;
    Ok(Heartbeat {
        is_lease_valid: lease_valid == 1,
        epoch,
        dead,
        done,
        writing,
    })
}

/// A session after a write.
#[derive(Default)]
pub struct Applied {
    pub version: u64,
    /// Who has joined and left by it, in order.
    pub changes: Vec<(EventType, UserId)>,
    /// The type of a user who stays has changed: that is no event, but others have to see it.
    pub is_retyped: bool,
    /// Leaves to publish after a node has died, each with its version.
    pub leaves: Vec<(UserId, u64)>,
    /// `Some` if requested.
    pub snapshot: Option<ConnectionStatus>,
    /// The snapshot has an unreadable value: a connected user may be missing from it.
    pub has_unreadable: bool,
    /// Of the listed users, those whose values can be read; `Some` if requested.
    pub readable: Option<BTreeSet<UserId>>,
    /// Tells this session's keys from recreated ones; empty while there are none.
    pub birth: String,
    pub damage: Option<Damage>,
    /// The users of the latest changes, oldest first; comes with a snapshot.
    pub latest: Vec<UserId>,
    /// Who waits for whom.
    pub state: Option<StateAfter>,
}

impl Applied {
    /// Who has joined by it.
    pub fn joined(&self) -> impl Iterator<Item = &UserId> {
        let joins = self
            .changes
            .iter()
            .filter(|(kind, _)| *kind == EventType::UserConnected);
        joins.map(|(_, user_id)| user_id)
    }
}

/// A session's keys were damaged: for a while, users who are missing from them may still be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// When that was found, in milliseconds by Redis's clock; it identifies the incident.
    pub found: u64,
    pub suspect_for: Duration,
}

pub fn read_applied(answer: Value, requested: Requested) -> Result<Applied, RedisError> {
    type Reply = (
        String,
        Vec<String>,
        Vec<(String, String)>,
        Vec<Vec<u8>>,
        String,
        String,
        u64,
        String,
        i64,
        String,
    );
    let reply: Reply = redis::from_redis_value(answer)?;
    let (version, changes, leaves, values, birth, damaged, suspect_for, latest, retyped, state) = reply;
    let version = version.parse().unwrap_or(0);
    let leaves = leaves
        .iter()
        .filter_map(|(id, version)| Some((UserId::parse(id)?, version.parse().ok()?)));
    let users = snapshot(values.iter().map(Vec::as_slice));
    let has_unreadable = requested == Requested::Snapshot && users.users.len() != values.len();
    let damage = damaged.parse().ok().map(|found| Damage {
        found,
        suspect_for: Duration::from_millis(suspect_for),
    });
    Ok(Applied {
        version,
        state: StateAfter::parse(&state, version),
        changes: changes.iter().filter_map(|change| read_change(change)).collect(),
        is_retyped: retyped == 1,
        leaves: leaves.collect(),
        readable: (requested == Requested::Listed).then(|| users.users.keys().cloned().collect()),
        has_unreadable,
        snapshot: (requested == Requested::Snapshot).then_some(users),
        birth,
        damage,
        latest: latest
            .lines()
            .filter_map(|line| Some(read_change(line.split_once(' ')?.1)?.1))
            .collect(),
    })
}

/// `+alice` or `-alice`.
fn read_change(change: &str) -> Option<(EventType, UserId)> {
    let (sign, id) = change.split_at_checked(1)?;
    let event_type = match sign {
        "+" => EventType::UserConnected,
        "-" => EventType::UserDisconnected,
        _ => return None,
    };
    Some((event_type, UserId::parse(id)?))
}

/// The users among a hash's values; foreign values are left out.
pub fn snapshot<'a>(values: impl Iterator<Item = &'a [u8]>) -> ConnectionStatus {
    #[derive(Deserialize)]
    struct Stored {
        user_id: String,
        user_type: String,
        joined_at: String,
        #[serde(default)]
        nodes: Option<BTreeMap<String, serde_json::Value>>,
    }
    ConnectionStatus::of(values.filter_map(|value| {
        let stored: Stored = serde_json::from_slice(value).ok()?;
        if stored.nodes.is_some_and(|nodes| nodes.is_empty()) {
            return None;
        }
        Some(ConnectedUser {
            user_id: UserId::parse(&stored.user_id)?,
            user_type: UserType::parse(&stored.user_type)?,
            joined_at: stored.joined_at,
        })
    }))
}

/// What a server reports about itself (`INFO`).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub run_id: Option<String>,
    /// Why presence is not safe in this server.
    pub warning: Option<String>,
}

impl Facts {
    pub fn of(info: &str) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        let mut warnings = Vec::new();
        if let Some(policy) = field("maxmemory_policy").filter(|policy| *policy != "noeviction") {
            warnings.push(format!(
                "maxmemory-policy is {policy}: Redis may evict who is connected, set it to noeviction"
            ));
        }
        if field("cluster_enabled") == Some("1") {
            warnings.push("this is a Redis Cluster, which is not supported: use a single Redis".to_owned());
        }
        let is_replica = field("role").is_some_and(|role| role == "slave" || role == "replica");
        // One that takes no writes says so at the first of them.
        if is_replica && field("slave_read_only") == Some("0") {
            warnings
                .push("this is a replica, whose writes its master does not know: use the master".to_owned());
        }
        Self {
            run_id: field("run_id").map(str::to_owned),
            warning: (!warnings.is_empty()).then(|| format!("Redis: {}", warnings.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_info() {
        assert_eq!(Facts::of(""), Facts::default());
        let good =
            "# Server\r\nrun_id:abc\r\nrole:master\r\ncluster_enabled:0\r\nmaxmemory_policy:noeviction\r\n";
        let replica = good.replace("role:master", "role:slave\r\nslave_read_only:1");
        for good in [good, &replica] {
            let facts = Facts::of(good);
            assert_eq!((facts.run_id.as_deref(), facts.warning), (Some("abc"), None));
        }
        for (from, to, word) in [
            ("noeviction", "allkeys-lru", "allkeys-lru"),
            ("cluster_enabled:0", "cluster_enabled:1", "Cluster"),
            ("role:master", "role:slave\r\nslave_read_only:0", "replica"),
        ] {
            let warning = Facts::of(&good.replace(from, to)).warning.unwrap();
            assert!(warning.contains(word), "{warning}");
        }
    }

    #[test]
    fn changes_have_a_sign() {
        let user = UserId::parse("-x").unwrap();
        assert_eq!(read_change("+-x"), Some((EventType::UserConnected, user.clone())));
        assert_eq!(read_change("--x"), Some((EventType::UserDisconnected, user)));
        for bad in ["", "x", "+", "\u{e9}x", "+a/b"] {
            assert_eq!(read_change(bad), None, "{bad}");
        }
    }

    #[test]
    fn foreign_values_are_skipped_and_the_old_servers_are_users() {
        let values: [&[u8]; 5] = [
            br#"{"user_id":"a","user_type":"agent","joined_at":"J","nodes":{"n+1":2}}"#,
            br#"{"user_id":"b","user_type":"customer","joined_at":"J"}"#,
            br#"{"user_id":"c","user_type":"customer","joined_at":"J","nodes":{}}"#,
            br#"{"user_id":"d/","user_type":"customer","joined_at":"J"}"#,
            b"junk",
        ];
        let status = snapshot(values.into_iter());
        assert_eq!(
            status.users.keys().map(UserId::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!((status.total_agent, status.total_customer), (1, 1));
    }
}
