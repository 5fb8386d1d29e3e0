//! A random script of joins, leaves and dying nodes, for `redis_churn`, and tests of it and of its model.

use fastrand::Rng;

use crate::presence_model::{
    Leave, MORTAL, MOST_OPEN, Model, NODES, SESSIONS, STEADY, Step, Tab, WATCHED, WORKERS,
};

const KILLS: usize = 6;
const STOPS: usize = 3;

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
            // Sometimes it is back before its absence can be noticed.
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
    use crate::presence_model::{Users, user_type};

    /// A plain list of connections, counted anew for every question.
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
                    assert!(!std::mem::replace(&mut is_down, true), "it is down already");
                    connections.retain(|(_, tab)| tab.node != MORTAL);
                }
                Step::Start => assert!(std::mem::replace(&mut is_down, false), "it runs already"),
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
