//! Who is connected where after each step of a script of joins, leaves and dying nodes. `presence_script` writes such
//! scripts and tests this model; `redis_churn` plays them with real nodes.

use std::collections::{BTreeMap, BTreeSet};

/// The first node stays; the second dies and starts again with the same `NODE_ID`.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
pub const STEADY: usize = 0;
pub const MORTAL: usize = 1;

pub const SESSIONS: usize = 40;
/// In the first so many sessions somebody on each node watches until the end, or the node's.
pub const WATCHED: usize = 10;
/// The most connections that are open at a time, without those of the watchers.
pub const MOST_OPEN: usize = 300;

/// Clients that run at a time. Each tab belongs to one of them, by its number, so that it does not leave before it has
/// joined.
pub const WORKERS: usize = 12;

/// Users of a session are numbered from 0; a node's watchers have a number beyond them all, and behind them is, in each
/// watched session, one who does nothing but to load the page again, on the same or the other node.
const WATCHER: usize = 1000;
const RELOADER: usize = 2000;

/// One connection: where, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tab {
    pub node: usize,
    pub session: usize,
    pub user: usize,
}

impl Tab {
    pub fn watcher(node: usize, session: usize) -> Self {
        let user = WATCHER + node;
        Self { node, session, user }
    }

    pub fn reloader(node: usize, session: usize) -> Self {
        let user = RELOADER;
        Self { node, session, user }
    }

    pub fn is_watcher(&self) -> bool {
        (WATCHER..RELOADER).contains(&self.user)
    }

    pub fn is_reloader(&self) -> bool {
        self.user == RELOADER
    }

    /// Stays until the end, or its node's.
    pub fn is_resident(&self) -> bool {
        self.user >= WATCHER
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The close handshake.
    Close,
    /// A reset (RST).
    Reset,
    /// The client shuts down its half without a close frame.
    Half,
    /// The socket is closed without a close frame.
    Vanish,
}

/// Tabs are numbered in the order in which they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Join(usize, Tab),
    Leave(usize, Leave),
    /// The first leaves and the second, of the same user, joins at once: that is not announced.
    Reload(usize, Leave, usize, Tab),
    /// SIGKILL of the mortal node.
    Kill,
    /// SIGTERM of the mortal node.
    Stop,
    /// The mortal node comes back.
    Start,
    /// Everybody must agree on who is connected.
    Agree,
}

pub fn session_id(session: usize) -> String {
    format!("session-{session}")
}

pub fn user_id(user: usize) -> String {
    if user == RELOADER {
        return "reload".to_owned();
    }
    match user.checked_sub(WATCHER) {
        Some(node) => format!("watch-{}", NODES[node]),
        None => format!("user-{user}"),
    }
}

/// A user of a session is always of one type: which of two connections was first on two nodes, no client could say.
pub fn user_type(session: usize, user: usize) -> &'static str {
    match (session + user) % 4 {
        _ if user >= WATCHER => "admin",
        0 | 1 => "customer",
        2 => "agent",
        _ => "admin",
    }
}

/// What must be true now.
#[derive(Default)]
pub struct Model {
    pub tabs: BTreeMap<usize, Tab>,
    /// By session and user, how many connections each node holds; users without any are not listed.
    sessions: BTreeMap<usize, BTreeMap<usize, [usize; NODES.len()]>>,
    is_down: bool,
}

/// Users by number: connections on each node.
pub type Users = BTreeMap<usize, [usize; NODES.len()]>;

impl Model {
    pub fn apply(&mut self, step: Step) {
        match step {
            Step::Join(id, tab) => {
                let users = self.sessions.entry(tab.session).or_default();
                users.entry(tab.user).or_default()[tab.node] += 1;
                self.tabs.insert(id, tab);
            }
            Step::Leave(id, _) => self.remove(id),
            Step::Reload(old, _, new, tab) => {
                self.remove(old);
                self.apply(Step::Join(new, tab));
            }
            Step::Kill | Step::Stop => {
                self.is_down = true;
                for id in self.tabs_of(MORTAL) {
                    self.remove(id);
                }
            }
            Step::Start => self.is_down = false,
            Step::Agree => {}
        }
    }

    fn remove(&mut self, id: usize) {
        let tab = self.tabs.remove(&id).expect("an open tab");
        let users = self.sessions.get_mut(&tab.session).expect("its session");
        let nodes = users.get_mut(&tab.user).expect("its user");
        nodes[tab.node] -= 1;
        if *nodes == [0; NODES.len()] {
            users.remove(&tab.user);
        }
        if users.is_empty() {
            self.sessions.remove(&tab.session);
        }
    }

    pub fn is_up(&self, node: usize) -> bool {
        node != MORTAL || !self.is_down
    }

    pub fn tab(&self, id: usize) -> Option<Tab> {
        self.tabs.get(&id).copied()
    }

    pub fn tabs_of(&self, node: usize) -> Vec<usize> {
        let of_node = self.tabs.iter().filter(|(_, tab)| tab.node == node);
        of_node.map(|(id, _)| *id).collect()
    }

    /// Who is in a session; an unknown one is empty.
    pub fn users(&self, session: usize) -> Users {
        self.sessions.get(&session).cloned().unwrap_or_default()
    }

    /// How many users of this type are in a session.
    pub fn total(&self, session: usize, of_type: &str) -> usize {
        let users = self.sessions.get(&session).into_iter().flat_map(BTreeMap::keys);
        users.filter(|user| user_type(session, **user) == of_type).count()
    }

    /// The sessions that a node holds somebody in.
    pub fn sessions_of(&self, node: usize) -> BTreeSet<usize> {
        let held = |users: &Users| users.values().any(|nodes| nodes[node] > 0);
        let sessions = self.sessions.iter().filter(|(_, users)| held(users));
        sessions.map(|(session, _)| *session).collect()
    }
}
