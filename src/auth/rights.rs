//! The table of rights: who may do what. Every route and every frame has a row, and
//! `tests/e2e/auth_table.rs` walks all of it over real sockets.

use Action::{
    Authenticate, Connect, Disconnect, Health, JoinSession, ListSessions, Lobby, MarkRead, Ping, Publish,
    ReadMessages, ReadStatus, Rewind, SendMessage, Typing,
};
use Rule::{Covered, Key, No, Token, Yes};

use crate::protocol::ids::{SessionId, UserId, UserType};

/// Whoever bears a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Without one they are nobody in particular, and no path names them.
    pub user: Option<String>,
    /// Without a known one they may do nothing.
    pub role: Option<UserType>,
    pub sessions: Sessions,
    /// `exp`, in seconds since 1970.
    pub expires_at: i64,
}

/// The sessions that a token covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sessions {
    All,
    Listed(Vec<SessionId>),
}

impl Sessions {
    pub fn cover(&self, session_id: &SessionId) -> bool {
        match self {
            Self::All => true,
            Self::Listed(ids) => ids.contains(session_id),
        }
    }
}

impl Principal {
    /// Whether the token is this user's, in this role.
    pub fn is(&self, user_id: &UserId, user_type: UserType) -> bool {
        self.user.as_deref() == Some(user_id.as_str()) && self.role == Some(user_type)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Tokens are off: anybody may be anyone.
    Anyone,
    /// The same in production, where only unguessable session ids protect chats.
    AnyoneInProduction,
    /// Tokens are on, and there is none.
    Nobody,
    Bearer(Principal),
    /// A backend with an API key.
    Backend,
}

/// What can be asked for: the routes, then the frames of a connection, in its own session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Health and readiness.
    Health,
    Connect,
    /// To connect with `rewind`.
    Rewind,
    ReadStatus,
    ReadMessages,
    ListSessions,
    Lobby,
    Publish,
    Disconnect,
    JoinSession,
    Typing,
    SendMessage,
    MarkRead,
    Ping,
    Authenticate,
}

/// What the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Yes,
    /// In sessions that the token covers.
    Covered,
    /// A token is needed.
    Token,
    /// An API key is needed; 403 where none is set.
    Key,
    No,
}

/// Why something is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// 401: a token, or another one, may help.
    Unauthorized,
    /// 403.
    Forbidden,
}

/// Columns: anyone, anyone in production, nobody, customer, agent, admin, backend.
#[rustfmt::skip]
pub const TABLE: [(Action, [Rule; 7]); 15] = [
    (Health,       [Yes, Yes, Yes,   Yes,     Yes,     Yes,     Yes]),
    (Connect,      [Yes, Yes, Token, Covered, Covered, Covered, Token]),
    (Rewind,       [Yes, No,  Token, Covered, Covered, Covered, Token]),
    (ReadStatus,   [Yes, Yes, Token, Covered, Covered, Covered, Yes]),
    (ReadMessages, [Yes, No,  Token, Covered, Covered, Covered, Yes]),
    // Agents and admins see the sessions that their token covers.
    (ListSessions, [Yes, No,  Token, No,      Yes,     Yes,     Token]),
    (Lobby,        [Yes, No,  Token, No,      Yes,     Yes,     Token]),
    (Publish,      [Key, Key, Key,   Key,     Key,     Key,     Yes]),
    (Disconnect,   [Key, Key, Key,   Key,     Key,     Key,     Yes]),
    // Who is connected was let in; there are no frames for other sessions.
    (JoinSession,  [Yes, Yes, Token, Yes,     Yes,     Yes,     Token]),
    (Typing,       [Yes, Yes, Token, Yes,     Yes,     Yes,     Token]),
    (SendMessage,  [Yes, Yes, Token, Yes,     Yes,     Yes,     Token]),
    (MarkRead,     [Yes, Yes, Token, Yes,     Yes,     Yes,     Token]),
    (Ping,         [Yes, Yes, Token, Yes,     Yes,     Yes,     Token]),
    (Authenticate, [No,  No,  Token, Yes,     Yes,     Yes,     Token]),
];

/// The rule of the table.
pub fn rule(who: &Who, action: Action) -> Rule {
    let column = match who {
        Who::Anyone => 0,
        Who::AnyoneInProduction => 1,
        Who::Nobody => 2,
        Who::Bearer(principal) => match principal.role {
            Some(UserType::Customer) => 3,
            Some(UserType::Agent) => 4,
            Some(UserType::Admin) => 5,
            None => return if action == Health { Yes } else { No },
        },
        Who::Backend => 6,
    };
    let row = TABLE.iter().find(|(of, _)| *of == action);
    row.map_or(No, |(_, rules)| rules[column])
}

/// Whether the table allows it, in a session if it is about one. `has_api_keys`: whether any is set.
///
/// # Errors
///
/// Why not.
pub fn decide(
    who: &Who,
    action: Action,
    session_id: Option<&SessionId>,
    has_api_keys: bool,
) -> Result<(), Denied> {
    let covers = |session_id| match who {
        Who::Bearer(principal) => principal.sessions.cover(session_id),
        _ => false,
    };
    match rule(who, action) {
        Yes => Ok(()),
        Covered if session_id.is_some_and(covers) => Ok(()),
        Token => Err(Denied::Unauthorized),
        Key if has_api_keys => Err(Denied::Unauthorized),
        Covered | Key | No => Err(Denied::Forbidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_one_row() {
        for (action, _) in TABLE {
            assert_eq!(
                TABLE.iter().filter(|(of, _)| *of == action).count(),
                1,
                "{action:?}"
            );
        }
        let without_role = Who::Bearer(Principal {
            user: Some("u".to_owned()),
            role: None,
            sessions: Sessions::All,
            expires_at: 0,
        });
        let session = SessionId::parse("s").unwrap();
        for (action, _) in TABLE {
            let decided = decide(&without_role, action, Some(&session), true);
            assert_eq!(decided.is_ok(), action == Health, "{action:?}");
        }
    }
}
