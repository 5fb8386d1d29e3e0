//! `auth`: a connection's token is renewed.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use super::renewals::{Renewals, Turn};
use super::{Chat, Participant};
use crate::address::counted;
use crate::auth::{Auth, MAX_TOKEN, Principal, Refusal};
use crate::clock::{self, Moment};
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
            renewals: Arc::clone(&self.renewals),
            writer: Arc::downgrade(&participant.member.writer),
            lobby: participant.is_in_lobby().then(|| self.lobby()),
            session_id: participant.session.id.clone(),
            user_id: participant.member.user_id.clone(),
            user_type: participant.user_type,
            client: participant.origin.client(),
            correlation: correlation.to_owned(),
            // A longer one is as bad as none, and may have to wait.
            token: if token.len() > MAX_TOKEN { "" } else { token }.to_owned(),
        };
        let writer = renewal.writer.clone();
        match self.renewals.turn(&writer, renewal) {
            Turn::Now(renewal) => renewal.judge(),
            Turn::Waits => {}
            Turn::Full => {
                let error = WireError::new(ErrorCode::RateLimited, "Too many tokens wait for the first one");
                self.refuse(participant, &error, correlation);
            }
        }
    }
}

/// A token, and what is needed to answer, which may have to wait for a key set.
pub struct Renewal {
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    renewals: Arc<Renewals<Renewal>>,
    /// Weak, so that a closing connection is not kept open.
    writer: Weak<ConnectionWriter>,
    /// Where the connection is, if it is in no session.
    lobby: Option<Arc<Lobby>>,
    session_id: SessionId,
    user_id: UserId,
    user_type: UserType,
    client: IpAddr,
    correlation: OwnedCorrelation,
    token: String,
}

impl Renewal {
    fn judge(self) {
        if let Some(judged) = self.auth.verify_now(&self.token, counted(self.client)) {
            return self.settle(judged);
        }
        let waiting = self.renewals.wait(&self.writer);
        tokio::spawn(async move {
            let mut next = Some(self);
            while let Some(renewal) = next {
                let address = counted(renewal.client);
                let judged = renewal.auth.verify(&renewal.token, address).await;
                renewal.settle(judged);
                next = waiting.next();
            }
        });
    }

    fn settle(self, judged: Result<Principal, Refusal>) {
        let Some(writer) = self.writer.upgrade() else {
            return;
        };
        match judged {
            Ok(principal) if !principal.is(&self.user_id, self.user_type) => {
                let text = "The token is not this user's in this role";
                self.refuse(&writer, ErrorCode::InvalidToken, text);
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
                self.renewals.forgive(&self.writer);
            }
            Err(Refusal::NoKeys | Refusal::KeyPending(_) | Refusal::Busy) => {
                let text = "The key of this token is not known yet";
                self.refuse(&writer, ErrorCode::KeysUnavailable, text);
            }
            Err(Refusal::Invalid) => self.refuse_failure(&writer, "The token is not valid"),
            Err(Refusal::Expired) => self.refuse_failure(&writer, "The token has expired"),
        }
    }

    /// Refuses a token that counts as a failure of its address.
    fn refuse_failure(&self, writer: &Arc<ConnectionWriter>, text: &'static str) {
        if self.auth.count_failure(counted(self.client)).is_none() {
            return self.refuse(writer, ErrorCode::InvalidToken, text);
        }
        if self.renewals.strike(&self.writer, Moment::now()) {
            let reason = "too many refused tokens";
            writer.close(CloseCode::Policy, reason, BacklogPolicy::Discard);
        } else {
            let text = "Too many refused tokens from this address, slow down";
            self.refuse(writer, ErrorCode::RateLimited, text);
        }
    }

    fn refuse(&self, writer: &Arc<ConnectionWriter>, code: ErrorCode, text: &'static str) {
        self.metrics.frame_error(code);
        let error = WireError::new(code, text);
        writer.send_required(&server::error(&error, self.correlation.as_ref()));
    }
}
