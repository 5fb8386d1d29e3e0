//! An hour of churn in a minute: random joins, leaves and deaths of a node, on two nodes. In the end Redis, the REST API of
//! both nodes and what clients were sent agree exactly with the model.
//!
//! `CHURN_SEED` repeats a run's script (the seed is printed; threads and nodes still race), `CHURN_STEPS` shortens it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http_routes::is_utc;
use crate::presence_model::{
    Leave, MORTAL, Model, NODES, SESSIONS, STEADY, Step, Tab, WATCHED, WORKERS, session_id, user_id,
    user_type,
};
use crate::presence_script::script;
use crate::presence_watcher::Watcher;
use crate::redis_cluster::{Cluster, ask_status};
use crate::services::{OUTAGE, PrivateRedis, RedisClient, users_key};
use crate::support::{Frame, PATIENCE, RawWs, Server};

const STEPS: usize = 100_000;
/// Short, as some steps wait until a dead node's users are removed; long enough for a busy machine's pauses.
const TTL: &str = "3s";
/// Half of the nodes' PRESENCE_GRACE, its default: a reload that took less was never a leave.
const QUICK: Duration = Duration::from_secs(1);

#[test]
fn after_an_hour_of_churn_everyone_agrees_on_who_is_connected() {
    let given = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect(name))
    };
    let seed = given("CHURN_SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = given("CHURN_STEPS").map_or(STEPS, |steps| steps as usize);
    eprintln!("CHURN_SEED={seed} CHURN_STEPS={count}");
    let mut churn = Churn::start(seed);
    let steps = script(seed, count);
    let (mut at, started) = (0, Instant::now());
    while at < steps.len() {
        churn.step = at;
        let crowd = steps[at..]
            .iter()
            .take_while(|step| matches!(step, Step::Join(..) | Step::Leave(..) | Step::Reload(..)));
        let end = at + crowd.count();
        churn.play(&steps[at..end]);
        if let Some(event) = steps.get(end) {
            churn.step = end;
            churn.happen(*event);
        }
        at = end + 1;
    }
    churn.step = steps.len();
    churn.everyone_leaves();
    let received = churn.received;
    eprintln!(
        "{} steps in {:.1?}; {received} events were sent to watchers",
        steps.len(),
        started.elapsed()
    );
    assert!(
        received > steps.len() as u64 / 100,
        "watchers received {received} events"
    );
}

/// The nodes, the clients, and what must be true of them.
struct Churn {
    seed: u64,
    step: usize,
    model: Model,
    /// By worker: the tabs that are open.
    crowds: Vec<HashMap<usize, RawWs>>,
    watchers: Vec<(Tab, Watcher)>,
    /// By watched session: how often the one who reloads may have been gone.
    excuses: [usize; WATCHED],
    /// Events that watchers received, including those on earlier nodes.
    received: u64,
    nodes: [Option<Server>; NODES.len()],
    stopping: Option<Stopping>,
    cluster: Cluster,
    redis: PrivateRedis,
}

/// A node that is shutting down, while clients of the other come and go.
struct Stopping {
    node: Server,
    clients: JoinHandle<()>,
    watchers: Vec<(Tab, Watcher)>,
}

impl Drop for Churn {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- churn failed at or behind step {}: CHURN_SEED={} repeats its script",
                self.step, self.seed
            );
        }
    }
}

impl Churn {
    fn start(seed: u64) -> Self {
        let redis = PrivateRedis::started();
        let mut churn = Self {
            seed,
            step: 0,
            model: Model::default(),
            crowds: (0..WORKERS).map(|_| HashMap::new()).collect(),
            watchers: Vec::new(),
            excuses: [0; WATCHED],
            received: 0,
            nodes: [None, None],
            stopping: None,
            cluster: Cluster::on(&redis.url()),
            redis,
        };
        churn.nodes = [STEADY, MORTAL].map(|node| Some(churn.spawn(node)));
        churn.up().for_each(|(_, node)| node.wait_ready());
        churn
    }

    fn spawn(&self, node: usize) -> Server {
        let node = self.cluster.node(NODES[node]);
        node.env("PRESENCE_TTL", TTL)
            .env("DRAIN_TIMEOUT", "2s")
            // Most of the crowd reads nothing until it leaves, not even pings.
            .env("PING_INTERVAL", "30m")
            // No line for each connection: after a failure the last lines should be of interest.
            .env("LOG_LEVEL", "info,livechat_ws::chat=warn")
            .spawn()
    }

    /// The running nodes.
    fn up(&self) -> impl Iterator<Item = (usize, &Server)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(node, server)| Some((node, server.as_ref()?)))
    }

    /// Joins and leaves, as fast as the workers get through.
    fn play(&mut self, steps: &[Step]) {
        let addresses = [0, 1].map(|node| self.nodes[node].as_ref().map(Server::http_addr));
        let slow = thread::scope(|scope| {
            let crowds = self.crowds.iter_mut().enumerate();
            let workers =
                crowds.map(|(worker, crowd)| scope.spawn(move || work(crowd, worker, steps, addresses)));
            let workers: Vec<_> = workers.collect();
            let slow = workers.into_iter().map(|worker| worker.join().expect("a worker"));
            slow.flatten().collect::<Vec<_>>()
        });
        for session in slow {
            self.excuses[session] += 1;
        }
        for &step in steps {
            self.model.apply(step);
            if let Step::Join(id, tab) = step
                && tab.is_watcher()
            {
                let ws = self.crowds[id % WORKERS]
                    .remove(&id)
                    .expect("the watcher's socket");
                let name = format!("{} in {}", user_id(tab.user), session_id(tab.session));
                self.watchers.push((tab, Watcher::start(name, ws)));
            }
        }
    }

    fn happen(&mut self, event: Step) {
        let dying: Vec<RawWs> = match event {
            Step::Kill | Step::Stop => {
                let ids = self.model.tabs_of(MORTAL);
                for tab in ids
                    .iter()
                    .filter_map(|id| self.model.tab(*id))
                    .filter(Tab::is_reloader)
                {
                    self.excuses[tab.session] += 1;
                }
                ids.iter()
                    .filter_map(|id| self.crowds[id % WORKERS].remove(id))
                    .collect()
            }
            _ => Vec::new(),
        };
        self.model.apply(event);
        match event {
            Step::Kill => {
                let node = self.nodes[MORTAL].take().expect("it runs");
                node.signal("KILL");
                node.wait_exit(PATIENCE);
                let watchers = self.watchers_of(MORTAL);
                self.dismiss(watchers);
            }
            Step::Stop => {
                let node = self.nodes[MORTAL].take().expect("it lives");
                node.signal("TERM");
                let clients = thread::spawn(move || {
                    for mut ws in dying {
                        assert_eq!(ws.expect_close(), 1001, "how a drained connection ends");
                    }
                });
                let watchers = self.watchers_of(MORTAL);
                self.stopping = Some(Stopping {
                    node,
                    clients,
                    watchers,
                });
            }
            Step::Start => {
                if let Some(Stopping {
                    node,
                    clients,
                    watchers,
                }) = self.stopping.take()
                {
                    assert_eq!(node.wait_exit(PATIENCE), Some(0), "the exit status after SIGTERM");
                    clients.join().expect("a close for every connection");
                    self.dismiss(watchers);
                }
                let node = self.spawn(MORTAL);
                node.wait_ready();
                self.nodes[MORTAL] = Some(node);
            }
            Step::Agree => self.agree(),
            Step::Join(..) | Step::Leave(..) | Step::Reload(..) => unreachable!("the crowd plays these"),
        }
    }

    fn watchers_of(&mut self, node: usize) -> Vec<(Tab, Watcher)> {
        self.watchers
            .extract_if(.., |(tab, _)| tab.node == node)
            .collect()
    }

    /// Waits for the end of these watchers' streams, and for what they have to say.
    fn dismiss(&mut self, watchers: Vec<(Tab, Watcher)>) {
        for (_, watcher) in watchers {
            self.received += watcher.end();
        }
    }

    fn everyone_leaves(&mut self) {
        let watchers = std::mem::take(&mut self.watchers);
        watchers.iter().for_each(|(_, watcher)| watcher.close());
        self.dismiss(watchers);
        self.model = Model::default();
        self.agree();
    }

    /// Waits until Redis, REST and the watchers agree with the model.
    fn agree(&self) {
        for (tab, watcher) in &self.watchers {
            watcher.check();
            let (leaves, excuses) = (watcher.leaves("reload"), self.excuses[tab.session]);
            assert!(
                leaves <= excuses,
                "CHURN_SEED={}: at step {} {} received {leaves} leaves of the user who reloads, not {excuses}",
                self.seed,
                self.step,
                watcher.name
            );
        }
        let started = Instant::now();
        loop {
            let differences = self.differences();
            if differences.is_empty() {
                return eprintln!("step {}: agreed after {:.1?}", self.step, started.elapsed());
            }
            assert!(
                started.elapsed() < OUTAGE,
                "CHURN_SEED={}: at step {} there is no agreement, {} differences:\n{}",
                self.seed,
                self.step,
                differences.len(),
                differences.join("\n")
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn differences(&self) -> Vec<String> {
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
        for (tab, watcher) in &self.watchers {
            let users = self.model.users(tab.session).into_keys().map(user_id);
            all.compare(&watcher.name, &watcher.there(), &Some(users.collect()));
        }
        all.0
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
        for name in ["birth", "changes", "damaged"] {
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

/// One worker's share of a stretch, in order; the sessions in which a reload was slow.
fn work(
    crowd: &mut HashMap<usize, RawWs>,
    worker: usize,
    steps: &[Step],
    addresses: [Option<SocketAddr>; NODES.len()],
) -> Vec<usize> {
    let mut slow = Vec::new();
    for &step in steps {
        match step {
            Step::Join(id, tab) if id % WORKERS == worker => {
                crowd.insert(id, join(tab, addresses));
            }
            Step::Reload(old, how, new, tab) if old % WORKERS == worker => {
                let began = Instant::now();
                leave(crowd.remove(&old).expect("an open tab"), how);
                crowd.insert(new, join(tab, addresses));
                if began.elapsed() >= QUICK {
                    slow.push(tab.session);
                }
            }
            Step::Leave(id, how) if id % WORKERS == worker => {
                leave(crowd.remove(&id).expect("an open tab"), how);
            }
            _ => {}
        }
    }
    slow
}

fn join(tab: Tab, addresses: [Option<SocketAddr>; NODES.len()]) -> RawWs {
    let address = addresses[tab.node].expect("a running node");
    let (user, of_type) = (user_id(tab.user), user_type(tab.session, tab.user));
    let mut ws = RawWs::connect_path(
        address,
        &format!("/ws/{}/{user}/{of_type}", session_id(tab.session)),
    );
    // From the greeting on the connection counts.
    assert_eq!(ws.read_json()["type"], "connection_established");
    ws
}

fn leave(mut ws: RawWs, how: Leave) {
    match how {
        Leave::Close => {
            ws.send(Frame::close(1000, ""));
            let echo = ws.read_close().and_then(|frame| frame.close_code());
            assert_eq!(echo, Some(1000), "the echo of a close");
        }
        Leave::Half => {
            ws.shutdown_write();
            while ws.read_frame().is_some() {}
        }
        Leave::Reset => ws.reset(),
        Leave::Vanish => drop(ws),
    }
}
