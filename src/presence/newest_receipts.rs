//! Read receipts that wait for the store: of each user only the newest.

use std::collections::HashMap;

use foldhash::quality::RandomState;

use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::receipt::Receipt;

/// At most so many users' receipts wait; beyond that, those of further users are dropped.
const MAX_WAITING: usize = 20_000;

#[derive(Default)]
pub struct NewestReceipts(HashMap<(SessionId, UserId), Receipt, RandomState>);

impl NewestReceipts {
    /// Adds it, unless what waits is at least as new. Returns whether it was added.
    pub fn add(&mut self, receipt: Receipt) -> bool {
        let is_full = self.0.len() >= MAX_WAITING;
        let key = (receipt.session_id.clone(), receipt.user_id.clone());
        match self.0.get_mut(&key) {
            Some(known) if !receipt.up_to.is_after(&known.up_to) => return false,
            Some(known) => *known = receipt,
            None if is_full => return false,
            None => drop(self.0.insert(key, receipt)),
        }
        true
    }

    /// Forgets it, unless a newer one waits now.
    pub fn remove(&mut self, receipt: &Receipt) {
        let key = (receipt.session_id.clone(), receipt.user_id.clone());
        if self.0.get(&key) == Some(receipt) {
            self.0.remove(&key);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Receipt> {
        self.0.values()
    }

    pub fn into_values(self) -> impl Iterator<Item = Receipt> {
        self.0.into_values()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::receipt::{ReadPosition, ReadUpTo};

    fn receipt(by: usize, at: i64) -> Receipt {
        Receipt {
            session_id: SessionId::parse("s").unwrap(),
            user_id: UserId::parse(&format!("u{by}")).unwrap(),
            user_type: "agent".into(),
            up_to: ReadUpTo {
                position: ReadPosition::of_record(at, 0),
                message_id: format!("m{at}").into(),
            },
            timestamp: "T".into(),
        }
    }

    #[test]
    fn an_older_receipt_does_not_replace_a_newer_one_that_waits() {
        let mut waiting = NewestReceipts::default();
        assert!(waiting.add(receipt(1, 5)));
        assert!(!waiting.add(receipt(1, 4)) && !waiting.add(receipt(1, 5)));
        assert!(waiting.iter().eq([&receipt(1, 5)]));
        assert!(waiting.add(receipt(1, 6)));
        waiting.remove(&receipt(1, 5));
        assert!(waiting.iter().eq([&receipt(1, 6)]), "a newer one waits");
        waiting.remove(&receipt(1, 6));
        assert!(waiting.is_empty());
    }

    #[test]
    fn who_waits_already_is_kept_current_when_it_is_full() {
        let mut waiting = NewestReceipts::default();
        for by in 0..MAX_WAITING {
            assert!(waiting.add(receipt(by, 1)));
        }
        assert!(!waiting.add(receipt(MAX_WAITING, 1)), "full");
        assert!(waiting.add(receipt(0, 2)));
        assert_eq!(waiting.into_values().count(), MAX_WAITING);
    }
}
