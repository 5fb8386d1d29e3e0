//! What is to be written, or looked at, of one session.

use super::listing::{Held, Wants, Write};
use crate::presence::inbox::Change;
use crate::protocol::format_timestamp;
use crate::protocol::ids::UserId;
use crate::protocol::status::StatusEvent;
use crate::session::Session;

#[derive(Default)]
pub struct Pending {
    pub change: Change,
    /// All users are to be written, and whoever is not here is not.
    pub is_all: bool,
    /// All users are to be written, as they should stand there already.
    pub is_checked: bool,
    /// What stands there of them can't be read.
    pub is_replaced: bool,
    /// Clients here are to be shown it; a mere check shows nothing.
    pub is_shown: bool,
    /// Other nodes are to be told, whatever Redis says has changed: an earlier time failed, or was not seen.
    pub is_news: bool,
    /// Events they have not been told.
    pub events: Vec<StatusEvent>,
}

impl Pending {
    pub fn merge(&mut self, other: Self) {
        self.change.merge(other.change);
        self.is_all |= other.is_all;
        self.is_checked |= other.is_checked;
        self.is_replaced |= other.is_replaced;
        self.is_shown |= other.is_shown;
        self.is_news |= other.is_news;
        self.events.extend(other.events);
    }

    /// Whether all users who are here are written, changed or not.
    pub fn lists_all(&self) -> bool {
        self.is_all || self.is_checked
    }

    /// What is wanted with the answer, if a snapshot would be shown at once.
    pub fn wants(&self, would_be_shown: bool) -> Wants {
        match (would_be_shown && self.is_shown, self.is_checked) {
            (true, _) => Wants::Snapshot,
            (false, true) => Wants::Listed,
            (false, false) => Wants::Nothing,
        }
    }

    /// What this node holds of the users that are to be written, from the session of this moment, in the order in which
    /// they came and went.
    pub fn held(&self, session: Option<&Session>) -> Vec<Held> {
        let marks = &self.change.users;
        let mut ids: Vec<UserId> = marks.keys().cloned().collect();
        if let Some(session) = session.filter(|_| self.lists_all()) {
            let here = session.with_users(|users| users.ids());
            ids.extend(here.into_iter().filter(|id| !marks.contains_key(id)));
        }
        let of_roster = |user_id: UserId| {
            let mark = marks.get(&user_id).copied().unwrap_or_default();
            match session.and_then(|session| session.with_users(|users| users.held(&user_id))) {
                Some(held) => {
                    let write = match (self.is_replaced, mark.has_left) {
                        (true, _) => Write::Replace,
                        (false, true) => Write::Anew,
                        (false, false) => Write::Change,
                    };
                    let held_there = Held {
                        user_id,
                        user_type: held.user_type,
                        joined_at: format_timestamp(held.joined_at),
                        connections: Some(held.connections),
                        write,
                    };
                    (Some(held.came), held_there)
                }
                None => (mark.gone, Held::none(user_id)),
            }
        };
        let mut held: Vec<_> = ids.into_iter().map(of_roster).collect();
        held.sort_by_key(|(when, _)| *when);
        held.into_iter().map(|(_, held)| held).collect()
    }
}
