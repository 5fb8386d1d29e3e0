//! Who is where, by the rules alone: a random script of joins, leaves and dying nodes, and what must be true after each of
//! its steps. Pure, so that it is tested against a simpler account of the same; `redis_churn` plays it with real nodes.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

/// The first node stays; the second dies and comes back under its name.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
pub const STEADY: usize = 0;
pub const MORTAL: usize = 1;

pub const SESSIONS: usize = 40;
/// In the first so many sessions somebody on each node watches until the end, or the node's.
pub const WATCHED: usize = 10;
/// The most connections that are open at a time, without those of the watchers.
pub const MOST_OPEN: usize = 300;

/// Clients that work at a time. Each tab belongs to one of them, by its number, so that it does not leave before it has
/// come.
pub const WORKERS: usize = 12;

const KILLS: usize = 6;
const STOPS: usize = 3;
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
    fn watcher(node: usize, session: usize) -> Self {
        let user = WATCHER + node;
        Self { node, session, user }
    }

    fn reloader(node: usize, session: usize) -> Self {
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
    fn is_resident(&self) -> bool {
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
    /// The client's half is shut, and nothing said.
    Half,
    /// Both halves are closed at once, and nothing said.
    Vanish,
}

/// Tabs are numbered in the order of their coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Join(usize, Tab),
    Leave(usize, Leave),
    /// The first goes and the second, of the same user, comes at once: nobody is to hear of it.
    Reload(usize, Leave, usize, Tab),
    /// SIGKILL of the mortal node.
    Kill,
    /// SIGTERM of the mortal node.
    Stop,
    /// The mortal node comes back.
    Start,
    /// Everybody must agree on who is there.
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
    tabs: BTreeMap<usize, Tab>,
    /// By session and user, how many connections each node holds; nobody is listed without one.
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

/// A script of so many joins, leaves, kills, stops and starts. At its end only the watchers are left.
pub fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut writer = Writer {
        rng: Rng::with_seed(seed),
        model: Model::default(),
        steps: Vec::with_capacity(steps + 2 * MOST_OPEN),
        open: Vec::new(),
        returning: None,
        target: MOST_OPEN,
        next_id: 0,
        reloaders: Vec::new(),
    };
    writer.write(steps);
    writer.steps
}

struct Writer {
    rng: Rng,
    model: Model,
    steps: Vec<Step>,
    /// Open tabs but the watchers'.
    open: Vec<usize>,
    /// Somebody who loads the page again.
    returning: Option<Tab>,
    /// How many tabs the crowd tends to: it swells and shrinks, so that sessions end and begin again.
    target: usize,
    next_id: usize,
    /// By session.
    reloaders: Vec<usize>,
}

impl Writer {
    fn write(&mut self, steps: usize) {
        let mut deaths = [[Step::Kill; KILLS].as_slice(), &[Step::Stop; STOPS]].concat();
        self.rng.shuffle(&mut deaths);
        self.watch(STEADY);
        self.watch(MORTAL);
        for session in 0..WATCHED {
            self.reloaders.push(self.next_id);
            self.join(Tab::reloader(STEADY, session));
        }
        let stretch = steps / deaths.len();
        for death in deaths {
            let end = self.steps.len() + stretch;
            let lifetime = self.rng.usize(..=stretch);
            self.wander(lifetime);
            self.push(death);
            self.open = self.model.tabs_of(STEADY);
            self.open.retain(|id| !self.model.tabs[id].is_resident());
            for session in 0..WATCHED {
                if self.model.tab(self.reloaders[session]).is_none() {
                    self.reloaders[session] = self.next_id;
                    self.join(Tab::reloader(STEADY, session));
                }
            }
            if self.rng.u8(..3) == 0 {
                self.push(Step::Agree);
            }
            // Now and then it is back before anybody can have missed it.
            let left = end.saturating_sub(self.steps.len());
            let absence = if self.rng.u8(..4) == 0 {
                0
            } else {
                self.rng.usize(..=left)
            };
            self.wander(absence);
            self.push(Step::Start);
            self.watch(MORTAL);
            if self.rng.bool() {
                self.push(Step::Agree);
            }
            self.wander(end.saturating_sub(self.steps.len()));
        }
        self.push(Step::Agree);
        self.open.append(&mut self.reloaders);
        self.rng.shuffle(&mut self.open);
        while let Some(id) = self.open.pop() {
            self.leave(id);
        }
        self.push(Step::Agree);
    }

    fn push(&mut self, step: Step) {
        self.model.apply(step);
        self.steps.push(step);
    }

    fn watch(&mut self, node: usize) {
        for session in 0..WATCHED {
            self.join(Tab::watcher(node, session));
        }
    }

    /// So many random joins and leaves.
    fn wander(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.rng.u16(..2000) == 0 {
                self.target = self.rng.usize(..=MOST_OPEN);
            }
            if let Some(mut tab) = self.returning.take() {
                if !self.model.is_up(tab.node) {
                    tab.node = STEADY;
                }
                self.join(tab);
                continue;
            }
            if self.rng.u8(..10) == 0 {
                self.reload();
                continue;
            }
            let joins = if self.open.len() < self.target { 6 } else { 4 };
            if self.open.is_empty() || (self.open.len() < MOST_OPEN && self.rng.u8(..10) < joins) {
                let tab = self.somebody();
                self.join(tab);
            } else {
                let at = self.rng.usize(..self.open.len());
                let id = self.open.swap_remove(at);
                let tab = self.model.tabs[&id];
                self.leave(id);
                if self.rng.u8(..4) == 0 {
                    self.returning = Some(tab);
                }
            }
        }
    }

    fn reload(&mut self) {
        let session = self.rng.usize(..WATCHED);
        let old = self.reloaders[session];
        let node = if self.model.is_up(MORTAL) {
            self.rng.usize(..NODES.len())
        } else {
            STEADY
        };
        // The same worker does both.
        while self.next_id % WORKERS != old % WORKERS {
            self.next_id += 1;
        }
        self.reloaders[session] = self.next_id;
        let how = self.how();
        self.push(Step::Reload(old, how, self.next_id, Tab::reloader(node, session)));
        self.next_id += 1;
    }

    fn how(&mut self) -> Leave {
        let how = [Leave::Close, Leave::Reset, Leave::Half, Leave::Vanish];
        how[self.rng.usize(..how.len())]
    }

    fn somebody(&mut self) -> Tab {
        // Some sessions are busy, some mostly empty; some have one user with many tabs, some dozens.
        let session = (self.rng.f64().powi(2) * SESSIONS as f64) as usize;
        let users = 1 + session * 17 % 40;
        Tab {
            node: if self.model.is_up(MORTAL) {
                self.rng.usize(..NODES.len())
            } else {
                STEADY
            },
            session,
            user: self.rng.usize(..users),
        }
    }

    fn join(&mut self, tab: Tab) {
        let id = self.next_id;
        self.next_id += 1;
        if !tab.is_resident() {
            self.open.push(id);
        }
        self.push(Step::Join(id, tab));
    }

    fn leave(&mut self, id: usize) {
        let how = self.how();
        self.push(Step::Leave(id, how));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The naive account: a list of connections, counted anew for every question.
    fn counted(connections: &[(usize, Tab)], session: usize) -> Users {
        let mut users = Users::new();
        for (_, tab) in connections.iter().filter(|(_, tab)| tab.session == session) {
            users.entry(tab.user).or_default()[tab.node] += 1;
        }
        users
    }

    fn agrees(model: &Model, connections: &[(usize, Tab)]) {
        for session in 0..SESSIONS {
            let users = counted(connections, session);
            assert_eq!(model.users(session), users);
            for of_type in ["customer", "agent", "admin"] {
                let of_type_there = users.keys().filter(|user| user_type(session, **user) == of_type);
                assert_eq!(model.total(session, of_type), of_type_there.count());
            }
            for node in 0..NODES.len() {
                let holds = connections
                    .iter()
                    .any(|(_, tab)| (tab.node, tab.session) == (node, session));
                assert_eq!(model.sessions_of(node).contains(&session), holds);
            }
        }
    }

    fn replay(steps: &[Step]) {
        let (mut model, mut connections, mut is_down) = (Model::default(), Vec::new(), false);
        for &step in steps {
            match step {
                Step::Join(id, tab) => {
                    assert!(tab.node != MORTAL || !is_down, "a join on a node that is down");
                    assert!(connections.iter().all(|(other, _)| *other != id), "{id} twice");
                    connections.push((id, tab));
                }
                Step::Leave(id, _) => {
                    let at = connections.iter().position(|(other, _)| *other == id);
                    let (_, tab) = connections.remove(at.expect("an open tab"));
                    assert!(!tab.is_watcher(), "watchers stay");
                }
                Step::Reload(old, _, new, tab) => {
                    assert!(tab.is_reloader() && old % WORKERS == new % WORKERS && old < new);
                    let at = connections.iter().position(|(other, _)| *other == old);
                    let (_, before) = connections.remove(at.expect("an open tab"));
                    assert_eq!((before.session, before.user), (tab.session, tab.user));
                    assert!(tab.node != MORTAL || !is_down, "a reload on a node that is down");
                    connections.push((new, tab));
                }
                Step::Kill | Step::Stop => {
                    assert!(!std::mem::replace(&mut is_down, true), "it is dead already");
                    connections.retain(|(_, tab)| tab.node != MORTAL);
                }
                Step::Start => assert!(std::mem::replace(&mut is_down, false), "it lives already"),
                Step::Agree => agrees(&model, &connections),
            }
            model.apply(step);
            assert_eq!(model.is_up(MORTAL), !is_down);
            if let Step::Join(_, tab) = step {
                assert_eq!(model.users(tab.session), counted(&connections, tab.session));
            }
            let residents = connections.iter().filter(|(_, tab)| tab.is_resident()).count();
            assert!(connections.len() - residents <= MOST_OPEN);
        }
        agrees(&model, &connections);
        assert!(!is_down);
        assert_eq!(
            connections.len(),
            NODES.len() * WATCHED,
            "only the watchers are left"
        );
        assert!(connections.iter().all(|(_, tab)| tab.is_watcher()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_model_agrees_with_a_plain_list_of_connections(seed in any::<u64>(), steps in 0usize..3000) {
            replay(&script(seed, steps));
        }

        #[test]
        fn a_seed_always_gives_the_same_script(seed in any::<u64>(), steps in 0usize..500) {
            prop_assert_eq!(script(seed, steps), script(seed, steps));
        }
    }

    #[test]
    fn a_script_has_deaths_reloads_and_users_on_both_nodes() {
        let steps = script(1, 100_000);
        let count = |is: fn(&Step) -> bool| steps.iter().filter(|step| is(step)).count();
        let (joins, leaves) = (
            count(|step| matches!(step, Step::Join(..))),
            count(|step| matches!(step, Step::Leave(..))),
        );
        let reloads = count(|step| matches!(step, Step::Reload(..)));
        assert!(
            (100_000..101_000).contains(&(joins + leaves + reloads)) && reloads > 5_000,
            "{joins} joins, {leaves} leaves, {reloads} reloads"
        );
        assert_eq!(count(|step| *step == Step::Kill), KILLS);
        assert_eq!(count(|step| *step == Step::Stop), STOPS);
        assert!(count(|step| *step == Step::Agree) >= 2);
        // Users with tabs on both nodes, sessions that end, and users who come back.
        let (mut model, mut on_both, mut ended) = (Model::default(), 0, 0);
        for &step in &steps {
            let before = match step {
                Step::Leave(id, _) => model.tabs.get(&id).copied(),
                _ => None,
            };
            model.apply(step);
            if let Step::Join(_, tab) = step {
                on_both += usize::from(model.users(tab.session)[&tab.user].iter().all(|tabs| *tabs > 0));
            }
            ended += usize::from(before.is_some_and(|tab| model.users(tab.session).is_empty()));
        }
        assert!(
            on_both > 1000 && ended > 1000,
            "{on_both} on both nodes, {ended} sessions ended"
        );
    }
}
