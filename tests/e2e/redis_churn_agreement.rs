//! Whether Redis, the REST API of all nodes and their clients agree with the model of the churn.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde_json::{Value, json};

use super::Churn;
use crate::http_routes::is_utc;
use crate::lobby_watcher::{Desk, session};
use crate::presence_lobby::listed;
use crate::presence_model::{NODES, SESSIONS, session_id, user_id, user_type};
use crate::redis_cluster::ask_status;
use crate::services::{RedisClient, users_key};

impl Churn {
    pub(super) fn differences(&self) -> Vec<String> {
        let mut all = Differences::default();
        let mut redis = self.redis.client();
        let leases = redis.zrange("livechat:nodes");
        // A killed node has no lease left, and its successor is another node.
        let lease_of = |node: usize| {
            let of_node = leases
                .iter()
                .filter(|id| id.starts_with(&format!("{}+", NODES[node])));
            of_node.collect::<Vec<_>>()
        };
        let mut ids = [const { String::new() }; NODES.len()];
        for (node, id) in ids.iter_mut().enumerate() {
            match lease_of(node)[..] {
                [one] if self.model.is_up(node) => id.clone_from(one),
                [] if !self.model.is_up(node) => {}
                _ => all.0.push(format!(
                    "leases: {leases:?}, up are {:?}",
                    self.up().map(|up| up.0).collect::<Vec<_>>()
                )),
            }
        }
        let mut keys = BTreeSet::from(["livechat:nodes", "{livechat:nodes}:epoch"].map(str::to_owned));
        for session in 0..SESSIONS {
            if !self.model.users(session).is_empty() {
                let users = users_key(&session_id(session));
                keys.extend([format!("{{{users}}}:meta"), users]);
            }
            self.compare_session(&mut redis, session, &ids, &mut all);
        }
        for (node, _) in self.up() {
            let key = format!("livechat:node:{}:sessions", ids[node]);
            let expected: BTreeSet<_> = self.model.sessions_of(node).into_iter().map(session_id).collect();
            let listed = redis.zrange(&key).into_iter().collect();
            all.compare(&format!("the sessions of {}", ids[node]), &listed, &expected);
            if !expected.is_empty() {
                keys.insert(key);
            }
        }
        all.compare("keys", &redis.keys("*").into_iter().collect(), &keys);
        self.compare_desk(&mut redis, &mut all);
        for (tab, watcher) in &self.watchers {
            let users = self.model.users(tab.session).into_keys().map(user_id);
            all.compare(&watcher.name, &watcher.there(), &Some(users.collect()));
        }
        all.0
    }

    /// The index, the lists of all nodes and their lobbies.
    fn compare_desk(&self, redis: &mut RedisClient, all: &mut Differences) {
        let of_model = (0..SESSIONS).filter(|session| !self.model.users(*session).is_empty());
        let expected: Desk = of_model
            .map(|session| {
                let total = |of_type| self.model.total(session, of_type);
                let state = match (total("customer"), total("agent")) {
                    (0, _) => "idle",
                    (_, 0) => "waiting",
                    _ => "active",
                };
                (session_id(session), state.to_owned())
            })
            .collect();
        let places = redis.zrange("{livechat:sessions}:order");
        let indexed = places.iter().map(|place| {
            let (letter, id) = (&place[..1], place.rsplit(':').next().unwrap_or_default());
            let state = ["waiting", "active", "idle"]
                .into_iter()
                .find(|state| state.starts_with(letter));
            (id.to_owned(), state.unwrap_or(place).to_owned())
        });
        all.compare("the index", &indexed.collect(), &expected);
        all.compare("places in the index", &places.len(), &expected.len());
        let mut desk = expected.clone();
        desk.retain(|_, state| state != "idle");
        for (node, server) in self.up() {
            let list = listed(server, "all", 7, "").iter().map(session).collect();
            all.compare(&format!("the list of {}", NODES[node]), &list, &expected);
            let lobby = self.lobbies[node].as_ref().expect("an agent there");
            let told = lobby.desk();
            all.compare(
                &format!("the lobby of {}", NODES[node]),
                &told,
                &Some(desk.clone()),
            );
        }
    }

    /// Redis and the REST of all nodes about one session.
    fn compare_session(
        &self,
        redis: &mut RedisClient,
        session: usize,
        ids: &[String],
        all: &mut Differences,
    ) {
        let id = session_id(session);
        let stored: BTreeMap<String, Value> = redis
            .hgetall(&users_key(&id))
            .into_iter()
            .map(|(user, value)| (user, serde_json::from_str(&value).expect("JSON in Redis")))
            .collect();
        let (mut in_redis, mut in_rest) = (BTreeMap::new(), BTreeMap::new());
        for (user, nodes) in self.model.users(session) {
            let name = user_id(user);
            // Only the nodes know when somebody joined; but all must agree.
            let joined_at = stored
                .get(&name)
                .map_or(Value::Null, |value| value["joined_at"].clone());
            if !is_utc(&joined_at) {
                all.0.push(format!("{id}: {name} joined at {joined_at}"));
            }
            let shown =
                json!({"user_id": name, "user_type": user_type(session, user), "joined_at": joined_at});
            let mut value = shown.clone();
            let counts = ids.iter().zip(nodes).filter(|(_, count)| *count > 0);
            value["nodes"] = counts
                .map(|(id, count)| (id.clone(), Value::from(count)))
                .collect();
            in_redis.insert(name.clone(), value);
            in_rest.insert(name, shown);
        }
        all.compare(&format!("Redis about {id}"), &stored, &in_redis);

        let total = |of_type: &str| self.model.total(session, of_type);
        let (customers, agents) = (total("customer"), total("agent"));
        let mut meta = redis.hgetall(&format!("{{{}}}:meta", users_key(&id)));
        let has_version = meta
            .remove("version")
            .is_some_and(|version| version.parse::<u64>().is_ok());
        all.compare(
            &format!("whether the meta of {id} has a version"),
            &has_version,
            &!in_redis.is_empty(),
        );
        let count = meta.remove("count").unwrap_or_else(|| "0".to_owned());
        all.compare(&format!("the count of {id}"), &count, &in_redis.len().to_string());
        for name in ["birth", "changes", "damaged", "state", "since"] {
            meta.remove(name);
        }
        meta.retain(|_, total| total != "0");
        let totals = [
            ("customer", customers),
            ("agent", agents),
            ("admin", total("admin")),
        ];
        let totals = totals.into_iter().filter(|(_, total)| *total > 0);
        let totals = totals.map(|(of_type, total)| (format!("total_{of_type}"), total.to_string()));
        all.compare(&format!("the meta of {id}"), &meta, &totals.collect());

        let status = json!({
            "users": in_rest,
            "customer_connected": customers > 0,
            "agent_connected": agents > 0,
            "total_customer": customers,
            "total_agent": agents,
        });
        for (node, server) in self.up() {
            let answer = ask_status(server, &id);
            let received = if answer.status == 200 {
                answer.json()["data"].take()
            } else {
                Value::from(answer.text())
            };
            all.compare(&format!("REST of {} about {id}", NODES[node]), &received, &status);
        }
    }
}

#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare<T: PartialEq + Debug>(&mut self, what: &str, is: &T, should_be: &T) {
        if is != should_be {
            self.0.push(format!("{what}: {is:?}\n  should be {should_be:?}"));
        }
    }
}
