//! What a node writes about its users in a session, and what it requests in return.

use super::session_entry::{StateAfter, letter};
use crate::protocol::ids::{UserId, UserType};

/// What is written of one user: the connections on this node, an absolute number.
pub struct UserWrite {
    pub user_id: UserId,
    pub user_type: UserType,
    pub joined_at: String,
    /// 0: in the grace; `None`: the user has left.
    pub connections: Option<u32>,
    pub mode: WriteMode,
}

/// How a user's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    Change,
    /// There was no connection in between.
    Anew,
    /// What is stored can't be read.
    Replace,
}

impl WriteMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Change => "0",
            Self::Anew => "1",
            Self::Replace => "2",
        }
    }
}

/// Which users' values the answer is to contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    Nothing,
    /// All of the session.
    Snapshot,
    /// The listed ones.
    Listed,
}

impl Requested {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Snapshot => "all",
            Self::Listed => "listed",
        }
    }
}

impl UserWrite {
    /// No connections of this user.
    pub fn removal(user_id: UserId) -> Self {
        Self {
            user_id,
            user_type: UserType::Customer,
            joined_at: String::new(),
            connections: None,
            mode: WriteMode::Change,
        }
    }
}

/// Which of a node's users in a session a write lists.
pub enum Listing<'a> {
    /// These; the others stay.
    Some(&'a [UserWrite]),
    /// All of them.
    All(&'a [UserWrite]),
    /// None: the node is gone. The leaves that this causes are kept until the log has acknowledged them.
    NodeGone,
}

/// What a node knew of a session before it writes to it.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// Tells the session's keys from recreated ones; empty if unknown.
    pub birth: &'a str,
    /// Who waited for whom: kept while Redis has lost it.
    pub state: Option<StateAfter>,
}

impl Known<'_> {
    /// As `apply.lua` takes it: "state since".
    pub fn state(&self) -> String {
        match self.state.map(|after| after.state) {
            Some(Ok(summary)) => format!("{} {}", letter(summary.state), summary.since),
            _ => String::new(),
        }
    }
}
