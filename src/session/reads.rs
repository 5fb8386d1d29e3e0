//! How far users have read, as this node has shown it: a receipt that is not newer is not shown again.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::Instant;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};

use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::receipt::{MAX_LISTED_READERS, ReadUpTo, Receipt};

/// The most readers that are remembered, of all sessions: some 30 MB. Beyond that, sessions in which nobody has read
/// anything for the longest time are forgotten.
const MAX_READERS: usize = 100_000;
/// The most of one session; beyond that, those who have read least are forgotten.
const MAX_OF_SESSION: usize = 1_000;
const SHARDS: usize = 16;

type Readers = HashMap<UserId, ReadUpTo, RandomState>;

/// What was shown, by session.
pub struct ReadStates {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// The most readers of a shard.
    most: usize,
}

#[derive(Default)]
struct Shard {
    sessions: HashMap<SessionId, SessionReaders, RandomState>,
    readers: usize,
}

struct SessionReaders {
    readers: Readers,
    changed: Instant,
}

impl Default for ReadStates {
    fn default() -> Self {
        Self::new(MAX_READERS)
    }
}

impl ReadStates {
    fn new(most: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            shards: Default::default(),
            most: most / SHARDS,
        }
    }

    /// Records a receipt and calls `show`, if it is newer than what was shown. Other receipts of the session wait: they
    /// are shown in this order.
    pub fn advance(&self, receipt: &Receipt, show: impl FnOnce()) -> bool {
        let mut shard = self.shard(&receipt.session_id);
        let is_newer = shard.record(&receipt.session_id, &receipt.user_id, &receipt.up_to);
        if is_newer {
            show();
            shard.shrink(self.most);
        }
        is_newer
    }

    /// Adds what the store knows of a session, and calls `show` with what is newer than what was shown: its own record
    /// may come later, and then is no news.
    pub fn merge(&self, session_id: &SessionId, stored: &[Receipt], mut show: impl FnMut(&Receipt)) {
        let mut shard = self.shard(session_id);
        for receipt in stored {
            if shard.record(session_id, &receipt.user_id, &receipt.up_to) {
                show(receipt);
            }
        }
        shard.shrink(self.most);
    }

    /// Calls `show` with how far users of the session have read, if anybody has: at most [`MAX_LISTED_READERS`], those
    /// with the newest messages. Receipts wait, so that what is sent here comes before newer ones.
    pub fn with_newest(&self, session_id: &SessionId, show: impl FnOnce(&[(UserId, ReadUpTo)])) {
        let shard = self.shard(session_id);
        let Some(session) = shard.sessions.get(session_id) else {
            return;
        };
        let mut newest: Vec<_> = session
            .readers
            .iter()
            .map(|(user_id, up_to)| (user_id.clone(), up_to.clone()))
            .collect();
        newest.sort_unstable_by(|(a, read_by_a), (b, read_by_b)| {
            let order = read_by_b.position.cmp(&read_by_a.position);
            order.then_with(|| a.cmp(b))
        });
        newest.truncate(MAX_LISTED_READERS);
        show(&newest);
    }

    fn shard(&self, session_id: &SessionId) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(session_id) as usize % SHARDS;
        self.shards[at].lock()
    }
}

impl Shard {
    /// Returns whether that is newer.
    fn record(&mut self, session_id: &SessionId, user_id: &UserId, up_to: &ReadUpTo) -> bool {
        let now = Instant::now();
        let session = self
            .sessions
            .entry(session_id.clone())
            .or_insert_with(|| SessionReaders {
                readers: Readers::default(),
                changed: now,
            });
        match session.readers.get_mut(user_id) {
            Some(known) if !up_to.is_after(known) => return false,
            Some(known) => known.clone_from(up_to),
            None => {
                session.readers.insert(user_id.clone(), up_to.clone());
                self.readers += 1;
            }
        }
        session.changed = now;
        if session.readers.len() > MAX_OF_SESSION {
            self.readers -= forget_least(&mut session.readers, user_id);
        }
        true
    }

    /// Forgets an eighth, at most: so it is rare.
    fn shrink(&mut self, most: usize) {
        if self.readers <= most {
            return;
        }
        let mut by_age: Vec<_> = self
            .sessions
            .iter()
            .map(|(session_id, session)| (session.changed, session_id.clone()))
            .collect();
        by_age.sort_unstable();
        for (_, session_id) in by_age {
            if self.readers <= most - most / 8 {
                break;
            }
            if let Some(session) = self.sessions.remove(&session_id) {
                self.readers -= session.readers.len();
            }
        }
    }
}

/// Forgets the tenth that has read least, but not `except`; returns how many those are.
fn forget_least(readers: &mut Readers, except: &UserId) -> usize {
    let others = readers.iter().filter(|(user_id, _)| *user_id != except);
    let mut others: Vec<_> = others
        .map(|(user_id, up_to)| (up_to.position, user_id.clone()))
        .collect();
    let tenth = others.len() / 10;
    others.select_nth_unstable(tenth);
    for (_, user_id) in &others[..tenth] {
        readers.remove(user_id);
    }
    tenth
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::receipt::ReadPosition;

    fn session(n: usize) -> SessionId {
        SessionId::parse(&format!("s{n}")).unwrap()
    }

    fn user(n: usize) -> UserId {
        UserId::parse(&format!("u{n:05}")).unwrap()
    }

    fn receipt(of: usize, by: usize, at: i64) -> Receipt {
        Receipt {
            session_id: session(of),
            user_id: user(by),
            user_type: "agent".into(),
            up_to: ReadUpTo {
                position: ReadPosition::of_record(at, 0),
                message_id: format!("m{at}").into(),
            },
            timestamp: "T".into(),
        }
    }

    fn newest(states: &ReadStates, of: usize) -> Vec<(String, String)> {
        let mut shown = Vec::new();
        states.with_newest(&session(of), |newest| {
            let text = |(user_id, up_to): &(UserId, ReadUpTo)| {
                (user_id.as_str().to_owned(), up_to.message_id.clone().into())
            };
            shown = newest.iter().map(text).collect();
        });
        shown
    }

    #[test]
    fn nobody_goes_back_and_nothing_is_shown_twice() {
        let states = ReadStates::default();
        let shows = |by, at| states.advance(&receipt(1, by, at), || {});
        assert!(shows(1, 5) && !shows(1, 5) && !shows(1, 4) && shows(2, 4) && shows(1, 6));
        let mut news = Vec::new();
        states.merge(&session(1), &[receipt(1, 1, 5), receipt(1, 2, 9)], |receipt| {
            news.push(receipt.user_id.clone());
        });
        assert_eq!(news, [user(2)]);
        let expected = [("u00002", "m9"), ("u00001", "m6")];
        assert_eq!(
            newest(&states, 1),
            expected.map(|(u, m)| (u.to_owned(), m.to_owned()))
        );
        assert!(!shows(2, 8) && newest(&states, 2).is_empty());
    }

    #[test]
    fn at_most_a_hundred_are_listed_and_a_thousand_kept() {
        let states = ReadStates::default();
        for by in 0..3_000 {
            assert!(states.advance(&receipt(1, by, by as i64 + 1), || {}));
        }
        let listed = newest(&states, 1);
        assert_eq!(
            (listed.len(), listed[0].1.as_str()),
            (MAX_LISTED_READERS, "m3000")
        );
        let shard = states.shard(&session(1));
        let kept = shard.sessions[&session(1)].readers.len();
        assert!((MAX_OF_SESSION / 2..=MAX_OF_SESSION).contains(&kept), "{kept}");
        assert_eq!(shard.readers, kept);
    }

    /// As in a large session whose users have all read the newest message.
    #[test]
    fn readers_of_the_same_message_are_forgotten_one_by_one() {
        let states = ReadStates::default();
        for by in 0..MAX_OF_SESSION + 1 {
            assert!(states.advance(&receipt(1, by, 5), || {}));
        }
        let shard = states.shard(&session(1));
        let readers = &shard.sessions[&session(1)].readers;
        assert_eq!(readers.len(), MAX_OF_SESSION + 1 - MAX_OF_SESSION / 10);
        assert!(readers.contains_key(&user(MAX_OF_SESSION)), "the last one");
        drop(shard);
        assert!(
            !states.advance(&receipt(1, MAX_OF_SESSION, 4), || {}),
            "goes back"
        );
    }

    #[test]
    fn sessions_that_are_quiet_for_the_longest_time_are_forgotten() {
        let states = ReadStates::new(SHARDS * 80);
        let all = 40 * SHARDS * 80;
        for of in 0..all {
            states.advance(&receipt(of, 1, 1), || {});
        }
        let kept: usize = states.shards.iter().map(|shard| shard.lock().readers).sum();
        assert!((SHARDS * 70..=SHARDS * 80).contains(&kept), "{kept}");
        assert!(newest(&states, 0).is_empty() && !newest(&states, all - 1).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_shown_only_grows(receipts in prop::collection::vec((0usize..3, 0usize..4, 0i64..20, any::<bool>()), 1..200)) {
            let states = ReadStates::default();
            let mut model: HashMap<(usize, usize), i64> = HashMap::new();
            for (of, by, at, is_stored) in receipts {
                let receipt = receipt(of, by, at);
                let known = model.get(&(of, by)).copied();
                let is_newer = known.is_none_or(|known| at > known);
                if is_stored {
                    states.merge(&session(of), &[receipt], |_| {});
                } else {
                    prop_assert_eq!(states.advance(&receipt, || {}), is_newer);
                }
                if is_newer {
                    model.insert((of, by), at);
                }
            }
            for of in 0..3 {
                let mut expected: Vec<_> = (0..4)
                    .filter_map(|by| Some((user(by).as_str().to_owned(), format!("m{}", model.get(&(of, by))?))))
                    .collect();
                let mut shown = newest(&states, of);
                expected.sort();
                shown.sort();
                prop_assert_eq!(shown, expected);
            }
        }
    }
}
