//! Which users are refused in which sessions, and until when. The table is bounded: when it is full, the refusals that
//! end soonest go.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

/// Some 25 MB if all ids are long.
pub const MAX_REFUSALS: usize = 100_000;

pub struct Refusals {
    most: usize,
    table: Mutex<Table>,
}

/// Keys are those of control records, times are milliseconds since 1970.
#[derive(Default)]
struct Table {
    until: HashMap<Arc<str>, i64, RandomState>,
    by_end: BTreeSet<(i64, Arc<str>)>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new(MAX_REFUSALS)
    }
}

impl Refusals {
    fn new(most: usize) -> Self {
        Self {
            most,
            table: Mutex::default(),
        }
    }

    /// Sets until when a user is refused. Returns how many other refusals had to go.
    pub fn set(&self, key: &str, until: Option<i64>, now: i64) -> u64 {
        let mut table = self.table.lock();
        table.expire(now);
        table.remove(key);
        let Some(until) = until.filter(|until| *until > now) else {
            return 0;
        };
        let key: Arc<str> = key.into();
        table.by_end.insert((until, Arc::clone(&key)));
        table.until.insert(key, until);
        let mut dropped = 0;
        while table.until.len() > self.most
            && let Some((_, soonest)) = table.by_end.pop_first()
        {
            table.until.remove(&soonest);
            dropped += 1;
        }
        dropped
    }

    /// Until when a user is refused.
    pub fn until(&self, key: impl FnOnce() -> String, now: i64) -> Option<i64> {
        let table = self.table.lock();
        // As a rule nobody is refused.
        if table.until.is_empty() {
            return None;
        }
        let until = table.until.get(key().as_str()).copied();
        until.filter(|until| *until > now)
    }

    /// Forgets those that have ended. Returns how many are left.
    pub fn expire(&self, now: i64) -> usize {
        let mut table = self.table.lock();
        table.expire(now);
        table.until.len()
    }
}

impl Table {
    fn remove(&mut self, key: &str) {
        if let Some((key, until)) = self.until.remove_entry(key) {
            self.by_end.remove(&(until, key));
        }
    }

    fn expire(&mut self, now: i64) {
        while self.by_end.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.by_end.pop_first() {
                self.until.remove(&key);
            }
        }
        if self.until.is_empty() {
            self.until.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_refused(refusals: &Refusals, key: &str, now: i64) -> bool {
        refusals.until(|| key.to_owned(), now).is_some()
    }

    #[test]
    fn a_refusal_holds_until_its_end_and_the_last_one_counts() {
        let refusals = Refusals::default();
        refusals.set("s/u", Some(100), 0);
        assert!(is_refused(&refusals, "s/u", 99) && !is_refused(&refusals, "s/u", 100));
        assert!(!is_refused(&refusals, "s/v", 0) && !is_refused(&refusals, "t/u", 0));
        refusals.set("s/u", Some(50), 0);
        assert!(!is_refused(&refusals, "s/u", 60), "shorter");
        refusals.set("s/u", Some(200), 0);
        assert!(is_refused(&refusals, "s/u", 199), "longer");
        refusals.set("s/u", None, 0);
        assert!(!is_refused(&refusals, "s/u", 0), "lifted");
        refusals.set("s/u", Some(5), 7);
        assert_eq!(refusals.expire(7), 0, "one that has ended is none");
    }

    #[test]
    fn a_full_table_keeps_the_longest() {
        let refusals = Refusals::new(2);
        assert_eq!(refusals.set("a", Some(10), 0), 0);
        assert_eq!(refusals.set("b", Some(30), 0), 0);
        assert_eq!(refusals.set("c", Some(20), 0), 1);
        assert!(!is_refused(&refusals, "a", 0) && is_refused(&refusals, "b", 0));
        assert!(is_refused(&refusals, "c", 0));
        assert_eq!(refusals.set("b", Some(40), 0), 0, "it is the same one");
        assert_eq!(refusals.set("d", Some(50), 25), 0, "those that ended make room");
    }

    proptest! {
        /// Whatever happens, it answers as a plain map would.
        #[test]
        fn it_is_a_map_of_ends(steps in prop::collection::vec((0u8..6, prop::option::of(0i64..100), 0i64..5), 0..80)) {
            let refusals = Refusals::default();
            let (mut model, mut now) = (HashMap::new(), 0);
            for (key, until, passes) in steps {
                now += passes;
                let key = key.to_string();
                refusals.set(&key, until, now);
                match until {
                    Some(until) => model.insert(key, until),
                    None => model.remove(&key),
                };
                for key in (0u8..6).map(|key| key.to_string()) {
                    let expected = model.get(&key).is_some_and(|until| *until > now);
                    prop_assert_eq!(is_refused(&refusals, &key, now), expected);
                }
                let in_force = model.values().filter(|until| **until > now).count();
                prop_assert_eq!(refusals.expire(now), in_force);
            }
        }
    }
}
