//! What a node says of its users in a session, and what it wants to know.

use crate::protocol::ids::{UserId, UserType};

/// What one node holds of one user, absolute.
pub struct Held {
    pub user_id: UserId,
    pub user_type: UserType,
    pub joined_at: String,
    /// 0: in the grace; `None`: the user is gone.
    pub connections: Option<u32>,
    pub write: Write,
}

/// How a user's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Change,
    /// Meanwhile there was no connection.
    Anew,
    /// Whatever is there can't be read.
    Replace,
}

impl Write {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Change => "0",
            Self::Anew => "1",
            Self::Replace => "2",
        }
    }
}

/// Which users' values an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Nothing,
    /// The session's.
    Snapshot,
    /// Those that are listed.
    Listed,
}

impl Wants {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Snapshot => "all",
            Self::Listed => "listed",
        }
    }
}

impl Held {
    /// Nothing of this user.
    pub fn none(user_id: UserId) -> Self {
        Self {
            user_id,
            user_type: UserType::Customer,
            joined_at: String::new(),
            connections: None,
            write: Write::Change,
        }
    }
}

/// What a change says of a node's users in a session.
pub enum Listing<'a> {
    /// These; others stay.
    Some(&'a [Held]),
    /// These are all.
    All(&'a [Held]),
    /// None: the node has gone, and what that changes is kept until the log has it.
    Left,
}
