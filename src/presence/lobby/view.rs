//! The sessions of all nodes by state, the longest in it first: what the lobby knows, and without Redis the source of
//! pages.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use foldhash::quality::RandomState;

use crate::protocol::ids::SessionId;
use crate::protocol::lobby::{ListedSession, Position, SessionPage, SessionState, StateFilter, Summary};

#[derive(Default)]
pub struct View {
    sessions: HashMap<SessionId, Entry, RandomState>,
    /// By state; a session is at its [`Position`].
    order: [BTreeSet<Position>; SessionState::ALL.len()],
    /// Numbers the loads: a session that the last one did not find is gone.
    load: u32,
}

struct Entry {
    summary: Summary,
    /// The load, or the change after it, that it was last found by.
    load: u32,
}

impl View {
    pub fn get(&self, session_id: &str) -> Option<Summary> {
        self.sessions.get(session_id).map(|entry| entry.summary)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Sets what is known of a session, and returns what was known before; `None`: nobody is in it.
    pub fn set(&mut self, session_id: &SessionId, summary: Option<Summary>) -> Option<Summary> {
        let before = match summary {
            Some(summary) => {
                let load = self.load;
                let entry = Entry { summary, load };
                self.sessions.insert(session_id.clone(), entry)
            }
            None => self.sessions.remove(session_id),
        };
        let before = before.map(|entry| entry.summary);
        let place = |of: Option<Summary>| of.map(|of| (of.state, of.since));
        if place(before) != place(summary) {
            let at = |since| Position {
                since,
                session_id: session_id.clone(),
            };
            if let Some((state, since)) = place(before) {
                self.order[state as usize].remove(&at(since));
            }
            if let Some((state, since)) = place(summary) {
                self.order[state as usize].insert(at(since));
            }
        }
        before
    }

    /// Everything is about to be [`set`](Self::set) again.
    pub fn begin_load(&mut self) {
        self.load = self.load.wrapping_add(1);
    }

    /// The sessions that were not set since the load began.
    pub fn not_found(&self) -> Vec<SessionId> {
        let old = self.sessions.iter().filter(|(_, entry)| entry.load != self.load);
        old.map(|(session_id, _)| session_id.clone()).collect()
    }

    /// At most `limit` sessions in these states, after a position.
    pub fn page(&self, filter: StateFilter, after: Option<&Position>, limit: usize) -> SessionPage {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: Vec<_> = filter
            .states()
            .iter()
            .flat_map(|state| {
                let of_state = &self.order[*state as usize];
                // One more than fits tells whether there are more.
                of_state.range((from, Bound::Unbounded)).take(limit + 1)
            })
            .collect();
        found.sort_unstable();
        let listed = found.into_iter().filter_map(|Position { session_id, .. }| {
            let summary = self.get(session_id.as_str())?;
            Some(ListedSession::new(session_id.clone(), summary))
        });
        first(listed.take(limit + 1).collect(), limit)
    }
}

/// A page of sessions that are in order; of those beyond `limit` only that there are some is told.
pub fn first(mut sessions: Vec<ListedSession>, limit: usize) -> SessionPage {
    let has_more = sessions.len() > limit;
    sessions.truncate(limit);
    let next = sessions.last().filter(|_| has_more).map(ListedSession::position);
    SessionPage { sessions, next }
}

/// A page of these sessions: for who may see only some.
pub fn page_of(
    mut sessions: Vec<ListedSession>,
    filter: StateFilter,
    after: Option<&Position>,
    limit: usize,
) -> SessionPage {
    sessions.retain(|session| {
        let is_asked_for = filter.states().contains(&session.state);
        is_asked_for && after.is_none_or(|after| session.position() > *after)
    });
    sessions.sort_unstable_by_key(ListedSession::position);
    sessions.dedup_by(|a, b| a.session_id == b.session_id);
    first(sessions, limit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::lobby::{MAX_PAGE, Totals};

    fn id(number: usize) -> SessionId {
        SessionId::parse(&format!("s{number}")).unwrap()
    }

    fn summary(customers: u32, agents: u32, since: i64) -> Summary {
        let totals = Totals { customers, agents };
        let state = SessionState::of(totals);
        Summary { state, totals, since }
    }

    fn filter() -> impl Strategy<Value = StateFilter> {
        use StateFilter::{Active, All, Desk, Waiting};
        prop::sample::select(vec![Waiting, Active, All, Desk])
    }

    type Model = BTreeMap<SessionId, Summary>;

    fn listed(model: &Model, filter: StateFilter) -> Vec<ListedSession> {
        let all = model
            .iter()
            .map(|(id, summary)| ListedSession::new(id.clone(), *summary));
        let mut all: Vec<_> = all
            .filter(|session| filter.states().contains(&session.state))
            .collect();
        all.sort_by_key(|session| (session.since, session.session_id.clone()));
        all
    }

    fn session() -> impl Strategy<Value = Option<Summary>> {
        let some = (0u32..3, 0u32..3, 0i64..20);
        prop::option::of(some.prop_map(|(customers, agents, since)| summary(customers, agents, since)))
    }

    proptest! {
        /// Pages of any size, put together, are a sorted list of what was set.
        #[test]
        fn pages_add_up_to_a_plain_list(
            changes in prop::collection::vec((0usize..30, session()), 0..200),
            filter in filter(),
            limit in 1usize..12,
        ) {
            let (mut view, mut model) = (View::default(), Model::new());
            for (number, summary) in changes {
                let before = match summary {
                    Some(summary) => model.insert(id(number), summary),
                    None => model.remove(&id(number)),
                };
                prop_assert_eq!(view.set(&id(number), summary), before);
            }
            prop_assert_eq!(view.len(), model.len());
            let expected = listed(&model, filter);
            let (mut read, mut after) = (Vec::new(), None);
            loop {
                let page = view.page(filter, after.as_ref(), limit);
                let all: Vec<_> = model.iter().map(|(id, of)| ListedSession::new(id.clone(), *of)).collect();
                prop_assert_eq!(&page_of(all, filter, after.as_ref(), limit), &page);
                prop_assert!(page.sessions.len() <= limit);
                read.extend(page.sessions);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(read, expected);
        }

        /// Sessions that stay in their state are on exactly one page, whatever the others do between two pages.
        #[test]
        fn who_stays_is_neither_missed_nor_doubled(
            staying in prop::collection::btree_map(0usize..20, (0u32..2, 0u32..2, 0i64..20), 0..20),
            rounds in prop::collection::vec(prop::collection::vec((20usize..40, session()), 0..10), 1..10),
            limit in 1usize..5,
        ) {
            let mut view = View::default();
            for (number, (customers, agents, since)) in &staying {
                view.set(&id(*number), Some(summary(*customers, *agents, *since)));
            }
            let (mut read, mut after, mut rounds) = (Vec::new(), None, rounds.into_iter().cycle());
            loop {
                let page = view.page(StateFilter::All, after.as_ref(), limit);
                read.extend(page.sessions.into_iter().map(|session| session.session_id));
                after = page.next;
                if after.is_none() || read.len() > 10_000 {
                    break;
                }
                for (number, summary) in rounds.next().unwrap_or_default() {
                    view.set(&id(number), summary);
                }
            }
            for number in staying.keys() {
                prop_assert_eq!(read.iter().filter(|read| **read == id(*number)).count(), 1);
            }
        }
    }

    #[test]
    fn a_load_finds_who_is_gone() {
        let mut view = View::default();
        for number in 0..4 {
            view.set(&id(number), Some(summary(1, 0, 5)));
        }
        view.begin_load();
        view.set(&id(1), Some(summary(1, 0, 5)));
        view.set(&id(3), Some(summary(1, 1, 6)));
        let mut gone = view.not_found();
        gone.sort();
        assert_eq!(gone, [id(0), id(2)]);
    }

    #[test]
    fn a_page_of_many_sessions_is_bounded_and_quick() {
        let mut view = View::default();
        for number in 0..100_000 {
            view.set(&id(number), Some(summary(1, 0, number as i64 / 7)));
        }
        let began = std::time::Instant::now();
        let page = view.page(StateFilter::Desk, None, MAX_PAGE);
        assert_eq!(page.sessions.len(), MAX_PAGE);
        let frame = crate::protocol::lobby::snapshot(&page.sessions, true).unwrap();
        assert!(frame.len() < 200 * MAX_PAGE, "{} bytes", frame.len());
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_millis(200), "{took:?}");
    }
}
