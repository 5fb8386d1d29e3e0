//! Two nodes, an agent in the lobby of each, and random joins, leaves, deaths of a node and losses of Redis' data. After
//! each step both agents have been told of each change of state, once, and of nothing else.
//!
//! `LOBBY_SEED` repeats a script, `LOBBY_STEPS` sets its length.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::lobby_watcher::{Desk, LobbyWatcher, session};
use crate::presence_lobby::try_listed;
use crate::redis_cluster::Cluster;
use crate::services::{OUTAGE, PrivateRedis};
use crate::support::{PATIENCE, RawWs, Server, eventually};

const STEPS: usize = 400;
const SESSIONS: usize = 8;
const NODES: [&str; 2] = ["node-a", "node-b"];
const MORTAL: usize = 1;
/// Of each kind, in each session.
const USERS: usize = 1;

/// Who is connected where.
type Place = (usize, String, &'static str, usize);

struct Churn {
    redis: PrivateRedis,
    cluster: Cluster,
    nodes: [Option<Server>; NODES.len()],
    lobbies: [Option<LobbyWatcher>; NODES.len()],
    clients: BTreeMap<Place, RawWs>,
    /// By node and session: the events that its agent must have got.
    events: [BTreeMap<String, Vec<&'static str>>; NODES.len()],
    sessions: Sessions,
    /// How many changes of state there were.
    told: usize,
}

/// Sessions with somebody connected: state, customers and agents.
type Sessions = BTreeMap<String, (&'static str, usize, usize)>;

#[test]
fn each_change_of_state_is_told_once_on_each_node() {
    let given = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect(name))
    };
    let seed = given("LOBBY_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = given("LOBBY_STEPS").map_or(STEPS, |steps| steps as usize);
    eprintln!("LOBBY_SEED={seed} LOBBY_STEPS={steps}");
    let mut rng = Rng::with_seed(seed);
    let mut churn = Churn::start();
    let began = Instant::now();
    for step in 0..steps {
        let what = churn.step(&mut rng);
        churn.agree(&format!("seed {seed}, step {step}, {what}"));
    }
    let told = churn.told;
    eprintln!("{steps} steps, {told} events in {:.1?}", began.elapsed());
    assert!(told > steps / 8, "{told} events");
}

impl Churn {
    fn start() -> Self {
        let redis = PrivateRedis::started();
        let mut churn = Self {
            cluster: Cluster::on(&redis.url()),
            redis,
            nodes: [None, None],
            lobbies: [None, None],
            clients: BTreeMap::new(),
            events: [BTreeMap::new(), BTreeMap::new()],
            sessions: Sessions::new(),
            told: 0,
        };
        (0..NODES.len()).for_each(|node| churn.run(node));
        churn
    }

    fn run(&mut self, node: usize) {
        let server = self
            .cluster
            .node(NODES[node])
            .env("PRESENCE_TTL", "6s")
            .env("PRESENCE_GRACE", "100ms")
            .env("PING_INTERVAL", "30m")
            .spawn();
        server.wait_ready();
        let lobby = LobbyWatcher::enter(NODES[node], server.http_addr());
        // What happens before it would be in it, and no event.
        eventually("a snapshot", || lobby.desk().is_some());
        self.lobbies[node] = Some(lobby);
        self.events[node].clear();
        self.nodes[node] = Some(server);
    }

    /// One random step, and what it means for the agents.
    fn step(&mut self, rng: &mut Rng) -> String {
        let node = rng.usize(..NODES.len());
        match rng.u8(..60) {
            0 => {
                self.redis.client().flushall();
                "emptied".to_owned()
            }
            1 => {
                self.redis.kill();
                self.redis.start();
                "restarted".to_owned()
            }
            2 | 3 => match self.nodes[MORTAL].take() {
                Some(server) => {
                    server.signal("KILL");
                    server.wait_exit(PATIENCE);
                    self.lobbies[MORTAL].take().expect("an agent there").end();
                    self.clients.retain(|(node, ..), _| *node != MORTAL);
                    self.change();
                    "killed".to_owned()
                }
                None => {
                    self.run(MORTAL);
                    "started".to_owned()
                }
            },
            _ if self.nodes[node].is_none() => "nothing".to_owned(),
            _ => {
                let of_type = ["customer", "agent", "admin"][rng.usize(..3)];
                let place = (
                    node,
                    format!("s{}", rng.usize(..SESSIONS)),
                    of_type,
                    rng.usize(..USERS),
                );
                let told = format!("{place:?}");
                if self.clients.remove(&place).is_none() {
                    let server = self.nodes[node].as_ref().expect("a running node");
                    let user = format!("{of_type}-{}", place.3);
                    let client = RawWs::connect(server, &place.1, &user, of_type);
                    self.clients.insert(place, client);
                }
                self.change();
                told
            }
        }
    }

    /// Notes which sessions are in another state now.
    fn change(&mut self) {
        let now = self.connected();
        let ids: BTreeSet<_> = self.sessions.keys().chain(now.keys()).cloned().collect();
        for id in ids {
            let shown = |of: &Sessions| of.get(&id).map(|of| of.0).filter(|state| *state != "idle");
            let (before, after) = (shown(&self.sessions), shown(&now));
            if before != after {
                self.told += 1;
                for events in &mut self.events {
                    let events = events.entry(id.clone()).or_default();
                    events.push(after.unwrap_or("ended"));
                }
            }
        }
        self.sessions = now;
    }

    /// Users count once, on however many nodes they are.
    fn connected(&self) -> Sessions {
        let mut users = BTreeMap::<String, BTreeSet<(&str, usize)>>::new();
        for (_, id, of_type, number) in self.clients.keys() {
            users.entry(id.clone()).or_default().insert((of_type, *number));
        }
        let summary = |users: BTreeSet<(&str, usize)>| {
            let total = |kind| users.iter().filter(|(of_type, _)| *of_type == kind).count();
            let (customers, agents) = (total("customer"), total("agent"));
            let state = match (customers, agents) {
                (0, _) => "idle",
                (_, 0) => "waiting",
                _ => "active",
            };
            (state, customers, agents)
        };
        users
            .into_iter()
            .map(|(id, users)| (id, summary(users)))
            .collect()
    }

    /// Waits until lists and lobbies of all nodes are what they must be, and checks what has been told.
    fn agree(&self, what: &str) {
        let expected = &self.sessions;
        let desk = expected.iter().map(|(id, of)| (id.clone(), of.0.to_owned()));
        let desk: Desk = desk.filter(|(_, state)| state != "idle").collect();
        let started = Instant::now();
        loop {
            let mut wrong = Vec::new();
            for node in (0..NODES.len()).filter(|node| self.nodes[*node].is_some()) {
                let (server, lobby) = (self.nodes[node].as_ref(), self.lobbies[node].as_ref());
                let (server, lobby) = (server.expect("running"), lobby.expect("an agent there"));
                lobby.check();
                if lobby.desk().as_ref() != Some(&desk) {
                    wrong.push(format!("{}: {:?}, not {desk:?}", NODES[node], lobby.desk()));
                }
                // Redis may not be back yet.
                let Some(list) = try_listed(server, "all", 3, "") else {
                    wrong.push(format!("{}: no list", NODES[node]));
                    continue;
                };
                // Totals, too: who has left an idle session may still be in the grace.
                let list = list.iter().map(|entry| {
                    let total = |field: &str| entry[field].as_u64().unwrap_or_default() as usize;
                    let (id, state) = session(entry);
                    (id, (state, total("total_customer"), total("total_agent")))
                });
                let list: BTreeMap<_, _> = list.collect();
                let expected = expected.iter().map(|(id, (state, customers, agents))| {
                    (id.clone(), ((*state).to_owned(), *customers, *agents))
                });
                let expected: BTreeMap<_, _> = expected.collect();
                if list != expected {
                    wrong.push(format!("the list of {}: {list:?}, not {expected:?}", NODES[node]));
                }
            }
            if wrong.is_empty() {
                break;
            }
            assert!(started.elapsed() < OUTAGE, "{what}: {}", wrong.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
        for (node, lobby) in self.lobbies.iter().enumerate() {
            let Some(lobby) = lobby else { continue };
            for (id, events) in &self.events[node] {
                assert_eq!(lobby.events(id), *events, "{what}: {id} on {}", NODES[node]);
            }
        }
    }
}
