//! An hour of churn in a minute: random joins, leaves and deaths of a node, on two nodes. In the end Redis, the REST API of
//! both nodes and what clients were sent agree exactly with the model; so do the lists of sessions and the lobbies.
//!
//! `CHURN_SEED` repeats a run's script (the seed is printed; threads and nodes still race), `CHURN_STEPS` shortens it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lobby_watcher::LobbyWatcher;
use crate::presence_model::{
    Leave, MORTAL, Model, NODES, STEADY, Step, Tab, WATCHED, WORKERS, session_id, user_id, user_type,
};
use crate::presence_script::script;
use crate::presence_watcher::Watcher;
use crate::redis_cluster::Cluster;
use crate::services::{OUTAGE, PrivateRedis};
use crate::support::{Frame, PATIENCE, RawWs, Server};

#[path = "redis_churn_agreement.rs"]
mod agreement;

const STEPS: usize = 100_000;
/// Short, as some steps wait until a dead node's users are removed; long enough for a busy machine's pauses.
const TTL: &str = "5s";
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
    /// An agent in the lobby of each running node.
    lobbies: [Option<LobbyWatcher>; NODES.len()],
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
            lobbies: [None, None],
            excuses: [0; WATCHED],
            received: 0,
            nodes: [None, None],
            stopping: None,
            cluster: Cluster::on(&redis.url()),
            redis,
        };
        churn.nodes = [STEADY, MORTAL].map(|node| Some(churn.spawn(node)));
        churn.up().for_each(|(_, node)| node.wait_ready());
        churn.lobbies = [STEADY, MORTAL].map(|node| Some(churn.enter_lobby(node)));
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

    fn enter_lobby(&self, node: usize) -> LobbyWatcher {
        let address = self.nodes[node].as_ref().map(Server::http_addr);
        LobbyWatcher::enter(NODES[node], address.expect("a running node"))
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
                self.lobbies[MORTAL].take().expect("an agent there").end();
            }
            Step::Stop => {
                let node = self.nodes[MORTAL].take().expect("it lives");
                node.signal("TERM");
                self.lobbies[MORTAL].take().expect("an agent there").end();
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
                self.lobbies[MORTAL] = Some(self.enter_lobby(MORTAL));
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
        let lobbies = std::mem::take(&mut self.lobbies).into_iter().flatten();
        for lobby in lobbies {
            lobby.close();
            let events = lobby.end();
            eprintln!("{events} events in a lobby");
        }
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
        self.lobbies.iter().flatten().for_each(LobbyWatcher::check);
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
