//! The last record about each user's refusal, and how new it is: with that a node tells what is older than what it knows
//! from what is newer, when Redis has lost some of the stream.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::protocol::control::Disconnect;

/// An entry's id: Redis's time in milliseconds, and a number. Those of a stream grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(u64, u64);

impl EntryId {
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, number) = text.split_once('-')?;
        Some(Self(ms.parse().ok()?, number.parse().ok()?))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// Bounded: the oldest records go first. Keys are those of users.
pub struct Ledger {
    most: usize,
    /// For how long records are kept, in milliseconds.
    lifetime: u64,
    last: HashMap<Arc<str>, (EntryId, Disconnect), RandomState>,
    by_age: BTreeSet<(EntryId, Arc<str>)>,
}

impl Ledger {
    pub fn new(most: usize, lifetime: u64) -> Self {
        Self {
            most,
            lifetime,
            last: HashMap::default(),
            by_age: BTreeSet::new(),
        }
    }

    /// Takes in a record of this age, unless one is known that is as new. Returns whether it did.
    pub fn take(&mut self, age: EntryId, record: &Disconnect, now: u64) -> bool {
        let key: Arc<str> = record.user_key().into();
        if let Some((known, _)) = self.last.get(&key) {
            if *known >= age {
                return false;
            }
            self.by_age.remove(&(*known, Arc::clone(&key)));
        }
        self.by_age.insert((age, Arc::clone(&key)));
        self.last.insert(key, (age, record.clone()));
        self.expire(now);
        true
    }

    /// Takes in a record that was asked for after all that are known, whatever Redis's clock says.
    pub fn take_news(&mut self, age: EntryId, record: &Disconnect, now: u64) {
        let known = self.last.get(record.user_key().as_str());
        let age = known.map_or(age, |(known, _)| {
            age.max(EntryId(known.0, known.1.saturating_add(1)))
        });
        self.take(age, record, now);
    }

    fn expire(&mut self, now: u64) {
        while let Some((age, _)) = self.by_age.first()
            && (self.by_age.len() > self.most || age.0.saturating_add(self.lifetime) <= now)
            && let Some((_, key)) = self.by_age.pop_first()
        {
            self.last.remove(&key);
        }
    }

    /// All that are newer than what the stream has of their users, the oldest first.
    pub fn missing(&mut self, stream: &HashMap<String, EntryId>, now: u64) -> Vec<(EntryId, Disconnect)> {
        self.expire(now);
        let is_missing = |key: &str, age: &EntryId| stream.get(key).is_none_or(|there| there < age);
        self.by_age
            .iter()
            .filter(|(age, key)| is_missing(key, age))
            .filter_map(|(_, key)| self.last.get(key).cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::control::Refusal;
    use crate::protocol::ids::{SessionId, UserId};

    fn record(user: &str, refusal: Refusal) -> Disconnect {
        let (session, user) = (SessionId::parse("s"), UserId::parse(user));
        Disconnect::new(&session.unwrap(), &user.unwrap(), 0, refusal)
    }

    fn users(missing: &[(EntryId, Disconnect)]) -> Vec<(u64, &str)> {
        let all = missing.iter();
        all.map(|(age, record)| (age.0, record.user_id.as_str()))
            .collect()
    }

    #[test]
    fn an_id_is_read_as_it_is_written_and_compared_as_numbers() {
        let id = |text| EntryId::parse(text);
        assert_eq!(id("1700000000000-12").unwrap().to_string(), "1700000000000-12");
        assert!(id("9-9") < id("10-0") && id("10-9") < id("10-10"));
        for bad in ["", "1", "1-", "-1", "a-b", "-"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }

    #[test]
    fn older_records_change_nothing_and_newer_ones_are_missed() {
        let mut ledger = Ledger::new(10, 100);
        assert!(ledger.take(EntryId(5, 0), &record("u", Refusal::Until(90)), 0));
        assert!(
            !ledger.take(EntryId(5, 0), &record("u", Refusal::Ends), 0),
            "the same"
        );
        assert!(
            !ledger.take(EntryId(4, 9), &record("u", Refusal::Ends), 0),
            "older"
        );
        assert!(ledger.take(EntryId(6, 0), &record("v", Refusal::Ends), 0));
        let there = |age| HashMap::from([("s/u".to_owned(), age)]);
        let missing = ledger.missing(&there(EntryId(4, 9)), 0);
        assert_eq!(users(&missing), [(5, "u"), (6, "v")], "also what ends a refusal");
        assert_eq!(users(&ledger.missing(&there(EntryId(5, 0)), 0)), [(6, "v")]);
        ledger.take_news(EntryId(3, 0), &record("u", Refusal::Ends), 0);
        assert!(!ledger.take(EntryId(5, 0), &record("u", Refusal::Until(90)), 0));
        assert_eq!(
            users(&ledger.missing(&HashMap::new(), 105)),
            [(6, "v")],
            "too old"
        );
    }

    #[test]
    fn it_keeps_the_newest() {
        let mut ledger = Ledger::new(2, 100);
        for (age, user) in [(2, "a"), (1, "b"), (3, "c"), (4, "a")] {
            ledger.take(EntryId(age, 0), &record(user, Refusal::Ends), 0);
        }
        assert_eq!(users(&ledger.missing(&HashMap::new(), 0)), [(3, "c"), (4, "a")]);
        assert_eq!((ledger.last.len(), ledger.by_age.len()), (2, 2));
    }

    proptest! {
        /// Nodes that have read the same entries, in whatever order and however often, know the same.
        #[test]
        fn the_order_of_restored_entries_makes_no_difference(
            entries in prop::collection::vec((0u64..50, 0u8..4), 0..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let [mut one, mut other] = [Ledger::new(100, 100), Ledger::new(100, 100)];
            let record = |user: u8| record(&user.to_string(), Refusal::Ends);
            for (age, user) in &entries {
                one.take(EntryId(*age, 0), &record(*user), 0);
            }
            let again = order.iter().filter(|_| !entries.is_empty()).map(|index| index.get(&entries));
            for (age, user) in again.chain(&entries) {
                other.take(EntryId(*age, 0), &record(*user), 0);
            }
            let (one, other) = (one.missing(&HashMap::new(), 0), other.missing(&HashMap::new(), 0));
            prop_assert_eq!(users(&one), users(&other));
        }
    }
}
