//! Follows the index of all sessions for the lobby, while somebody is there: first everything, then what has changed.
//!
//! Each session is in the feed once, with the number of its last change; so changes of one session may be skipped, but
//! its last one never is. What was read before a loss of data is compared with all that is there afterwards.

use super::session_entry::parse_entry;
use crate::presence::lobby::Lobby;
use crate::protocol::ids::SessionId;

/// At most so many sessions are read at a time, so that presence is not held up.
pub const FEED_PAGE: usize = 500;

/// A part of the feed.
pub struct FeedPage {
    /// The number of the last change there is.
    pub last: u64,
    /// That of the last one that was forgotten: sessions that ended long ago.
    pub pruned: u64,
    /// Sessions with the number of their last change, and their entry in the index.
    pub changes: Vec<(String, u64, String)>,
    /// There may be more.
    pub is_full: bool,
}

#[derive(Default)]
pub struct LobbyFeed {
    /// The number of the last change that was read.
    cursor: u64,
    /// That of the last one there was when the load began.
    loaded_from: u64,
    is_loading: bool,
}

impl LobbyFeed {
    /// From where on to read, if that is wanted.
    pub fn next(&mut self, lobby: &Lobby) -> Option<u64> {
        if !lobby.is_wanted() {
            return None;
        }
        if lobby.must_load() {
            lobby.begin_load();
            *self = Self {
                is_loading: true,
                ..Self::default()
            };
        }
        Some(self.cursor)
    }

    /// Tells the lobby what was read. Returns whether there is more. `now` is in milliseconds since 1970.
    pub fn read(&mut self, from: u64, page: &FeedPage, lobby: &Lobby, now: i64) -> bool {
        if from != self.cursor {
            return true;
        }
        if from == 0 {
            self.loaded_from = page.last;
        }
        // A session that was read has ended, and that was forgotten before it was read.
        if page.pruned > self.cursor.max(self.loaded_from) {
            lobby.suspend();
            return true;
        }
        for (session_id, number, entry) in &page.changes {
            self.cursor = self.cursor.max(*number);
            if let (Some(session_id), Some(state)) = (SessionId::parse(session_id), parse_entry(entry)) {
                lobby.set(&session_id, state);
            }
        }
        if !page.is_full && std::mem::take(&mut self.is_loading) {
            // So that an empty index is not loaded again.
            self.cursor = self.cursor.max(1);
            lobby.finish_load(now);
        }
        page.is_full
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use fastrand::Rng;

    use super::*;
    use crate::protocol::lobby::{ListedSession, SessionState};

    const SESSIONS: usize = 12;
    /// So small that a load takes several pages.
    const PAGE: usize = 3;

    /// As `index.lua` keeps it: a session's last change, and whether it waits (w), is active (a) or has ended (e).
    #[derive(Default)]
    struct Model {
        sessions: BTreeMap<String, (u64, char)>,
        last: u64,
        pruned: u64,
    }

    impl Model {
        fn change(&mut self, rng: &mut Rng) {
            self.last += 1;
            let state = ['w', 'a', 'e'][rng.usize(..3)];
            let session = format!("s{}", rng.usize(..SESSIONS));
            self.sessions.insert(session, (self.last, state));
        }

        fn prune(&mut self) {
            let ended = self.sessions.iter().filter(|(_, (_, state))| *state == 'e');
            let oldest = ended.min_by_key(|(_, (number, _))| *number);
            if let Some((session, number)) = oldest.map(|(session, (number, _))| (session.clone(), *number)) {
                self.sessions.remove(&session);
                self.pruned = self.pruned.max(number);
            }
        }

        fn page(&self, from: u64) -> FeedPage {
            let after = self.sessions.iter().filter(|(_, (number, _))| *number > from);
            let mut changes: Vec<_> = after
                .map(|(session, (number, state))| {
                    let (customers, agents) = (u8::from(*state != 'e'), u8::from(*state == 'a'));
                    let entry = format!("{number} {state} {number} {customers} {agents}");
                    (session.clone(), *number, entry)
                })
                .collect();
            changes.sort_by_key(|(_, number, _)| *number);
            changes.truncate(PAGE);
            FeedPage {
                last: self.last,
                pruned: self.pruned,
                is_full: changes.len() == PAGE,
                changes,
            }
        }

        fn desk(&self) -> BTreeMap<String, SessionState> {
            let state = |letter| match letter {
                'w' => Some(SessionState::Waiting),
                'a' => Some(SessionState::Active),
                _ => None,
            };
            let live = self.sessions.iter();
            live.filter_map(|(session, (_, letter))| Some((session.clone(), state(*letter)?)))
                .collect()
        }
    }

    fn listed(sessions: Vec<ListedSession>) -> BTreeMap<String, SessionState> {
        let sessions = sessions.into_iter();
        sessions
            .map(|session| (session.session_id.to_string(), session.state))
            .collect()
    }

    /// Whatever changes, is forgotten and is lost between two pages: each event is news, and what is read adds up.
    #[test]
    fn what_is_read_adds_up_to_the_index() {
        for seed in 0..300 {
            let mut rng = Rng::with_seed(seed);
            let (mut model, mut feed) = (Model::default(), LobbyFeed::default());
            let lobby = Lobby::new(Arc::default());
            lobby.watch();
            let mut desk = BTreeMap::new();
            for step in 0..400 {
                let is_over = step >= 340;
                match rng.u8(..8) {
                    _ if is_over => {}
                    0 => model.prune(),
                    1 if rng.u8(..8) == 0 => lobby.suspend(),
                    2 if rng.u8(..20) == 0 => {
                        // Redis was emptied, which the node has noticed.
                        let last = model.last;
                        model = Model {
                            last,
                            ..Model::default()
                        };
                        lobby.suspend();
                    }
                    3..=6 => model.change(&mut rng),
                    _ => {}
                }
                if rng.bool() || is_over {
                    let from = feed.next(&lobby).expect("somebody is there");
                    feed.read(from, &model.page(from), &lobby, 0);
                }
                for event in lobby.take_events() {
                    let id = event.session_id.to_string();
                    let before = match event.state {
                        SessionState::Idle => desk.remove(&id),
                        state => desk.insert(id, state),
                    };
                    let now = Some(event.state).filter(|state| *state != SessionState::Idle);
                    assert_ne!(before, now, "seed {seed}: {event:?} is no news");
                }
            }
            assert_eq!(desk, model.desk(), "seed {seed}");
            let snapshot = lobby.snapshot().expect("everything is read");
            assert_eq!(listed(snapshot.sessions), desk, "seed {seed}");
        }
    }
}
