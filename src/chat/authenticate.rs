//! `auth`: a connection's token is renewed.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use super::{Chat, Participant};
use crate::address::counted;
use crate::auth::{Auth, Principal, Refusal};
use crate::clock;
use crate::metrics::Metrics;
use crate::presence::lobby::Lobby;
use crate::protocol::code::{CloseCode, ErrorCode, WireError};
use crate::protocol::correlation::{Correlation, OwnedCorrelation};
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::{format_seconds, server};
use crate::writer::{BacklogPolicy, ConnectionWriter};

impl Chat {
    pub(super) fn authenticate(&self, participant: &Participant, token: &str, correlation: Correlation<'_>) {
        if !self.auth.is_on() {
            let error = WireError::new(ErrorCode::AuthDisabled, "This server does not ask for tokens");
            return self.refuse(participant, &error, correlation);
        }
        let renewal = Renewal {
            auth: Arc::clone(&self.auth),
            metrics: Arc::clone(&self.metrics),
            writer: Arc::downgrade(&participant.member.writer),
            lobby: participant.is_in_lobby().then(|| self.lobby()),
            session_id: participant.session.id.clone(),
            user_id: participant.member.user_id.clone(),
            user_type: participant.user_type,
            client: participant.origin.client(),
            correlation: correlation.to_owned(),
        };
        if let Some(judged) = self.auth.verify_now(token) {
            return renewal.settle(judged);
        }
        let token = token.to_owned();
        tokio::spawn(async move {
            let judged = renewal.auth.verify(&token).await;
            renewal.settle(judged);
        });
    }
}

/// What is needed to answer, which may have to wait for a key set.
struct Renewal {
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    /// Weak, so that a closing connection is not kept open.
    writer: Weak<ConnectionWriter>,
    /// Where the connection is, if it is in no session.
    lobby: Option<Arc<Lobby>>,
    session_id: SessionId,
    user_id: UserId,
    user_type: UserType,
    client: IpAddr,
    correlation: OwnedCorrelation,
}

impl Renewal {
    fn settle(self, judged: Result<Principal, Refusal>) {
        let Some(writer) = self.writer.upgrade() else {
            return;
        };
        match judged {
            Ok(principal) if !principal.is(&self.user_id, self.user_type) => {
                self.refuse(&writer, "The token is not this user's in this role");
            }
            Ok(principal) if self.lobby.is_none() && !principal.sessions.cover(&self.session_id) => {
                let reason = "the token no longer covers this session";
                writer.close(CloseCode::Forbidden, reason, BacklogPolicy::Discard);
            }
            Ok(Principal {
                expires_at, sessions, ..
            }) => {
                let frame = server::authenticated(&format_seconds(expires_at), self.correlation.as_ref());
                writer.send_required(&frame);
                writer.set_token(expires_at, clock::unix_seconds());
                if let Some(lobby) = &self.lobby {
                    lobby.set_scope(&writer, sessions);
                }
            }
            Err(Refusal::NoKeys) => self.refuse(&writer, "The keys of tokens are not known yet"),
            Err(refusal) => {
                // Answered all the same: the rate of frames is limited, too.
                let _ = self.auth.count_failure(counted(self.client));
                let text = match refusal {
                    Refusal::Expired => "The token has expired",
                    _ => "The token is not valid",
                };
                self.refuse(&writer, text);
            }
        }
    }

    fn refuse(&self, writer: &Arc<ConnectionWriter>, text: &'static str) {
        self.metrics.frame_error(ErrorCode::InvalidToken);
        let error = WireError::new(ErrorCode::InvalidToken, text);
        writer.send_required(&server::error(&error, self.correlation.as_ref()));
    }
}
