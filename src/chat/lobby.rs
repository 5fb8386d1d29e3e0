//! Agents in the lobby: they watch all sessions and are in none.

use std::sync::Arc;

use super::{Chat, ConnectionOrigin, Participant, origin};
use crate::auth::Sessions;
use crate::clock;
use crate::presence::lobby::Lobby;
use crate::protocol::code::{ErrorCode, WireError};
use crate::protocol::ids::{SessionId, UserType};
use crate::protocol::server::{self, Identity};
use crate::protocol::timestamp;
use crate::session::Member;

impl Chat {
    /// Greets an agent and adds them to the lobby, where they see what `scope` covers. `expires_at` is their token's end,
    /// in seconds since 1970.
    pub fn join_lobby(
        &self,
        member: Member,
        user_type: UserType,
        origin: ConnectionOrigin,
        expires_at: Option<i64>,
        scope: Sessions,
    ) -> Participant {
        let (session_id, user_id) = (SessionId::lobby(), &member.user_id);
        let who = Identity {
            session_id: &session_id,
            user_id,
            user_type,
        };
        let greeting = |_| server::connection_established(who, &timestamp(), None);
        let (session, _) = self.registry.join_lobby(&member, user_type, greeting);
        if let Some(expires_at) = expires_at {
            member.writer.set_token(expires_at, clock::unix_seconds());
        }
        self.presence.lobby.join(&member.writer, scope);
        let participant = Participant {
            session,
            member,
            user_type,
            origin,
        };
        origin::log_connected(&participant);
        participant
    }

    pub(super) fn leave_lobby(&self, participant: &Participant) {
        if self
            .registry
            .leave(&participant.session, &participant.member)
            .is_some()
        {
            self.presence.lobby.leave(&participant.member.writer);
            origin::log_disconnected(participant);
        }
    }

    /// The lobby, to be told of a renewed token.
    pub(super) fn lobby(&self) -> Arc<Lobby> {
        Arc::clone(&self.presence.lobby)
    }
}

impl Participant {
    pub(super) fn is_in_lobby(&self) -> bool {
        self.session.id.is_lobby()
    }
}

/// Frames that are for a session.
pub(super) fn not_allowed() -> WireError {
    WireError::new(ErrorCode::NotAllowed, "The lobby is no session")
}
