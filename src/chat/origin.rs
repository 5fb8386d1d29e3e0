//! A connection's address and start time, and the log lines for its start and end.

use std::net::{IpAddr, Ipv6Addr};

use super::Participant;
use crate::clock;
use crate::logging;
use crate::protocol::ids::{SessionId, UserId, UserType};

/// Kept small, because every idle connection has one.
pub struct ConnectionOrigin {
    /// An IPv4 address is stored as a mapped one.
    client: Ipv6Addr,
    /// In tenths of a second ([`clock::now_tenths`]).
    at: u32,
}

impl ConnectionOrigin {
    pub fn now(client: IpAddr) -> Self {
        Self {
            client: match client {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            },
            at: clock::now_tenths(),
        }
    }

    pub fn client(&self) -> IpAddr {
        IpAddr::V6(self.client).to_canonical()
    }
}

// These sentences are the old server's, and people search for them: in text format they stay unchanged. JSON adds
// fields to them.

pub(super) fn log_connected(participant: &Participant) {
    let (session, user, user_type) = names(participant);
    let shown = user.in_log();
    if logging::is_json() {
        tracing::info!(
            session_id = session.as_str(),
            user_id = user.as_str(),
            user_type = user_type.as_str(),
            client_address = %participant.origin.client(),
            "WebSocket client connected: {shown} ({user_type}) to session {session}"
        );
    } else {
        tracing::info!("WebSocket client connected: {shown} ({user_type}) to session {session}");
    }
}

pub(super) fn log_disconnected(participant: &Participant) {
    let (session, user, user_type) = names(participant);
    let shown = user.in_log();
    if logging::is_json() {
        let tenths = clock::now_tenths().saturating_sub(participant.origin.at);
        tracing::info!(
            session_id = session.as_str(),
            user_id = user.as_str(),
            user_type = user_type.as_str(),
            client_address = %participant.origin.client(),
            close_code = participant.member.writer.close_code(),
            duration_seconds = f64::from(tenths) / 10.0,
            "WebSocket client disconnected: {shown} ({user_type}) from session {session}"
        );
    } else {
        tracing::info!("WebSocket client disconnected: {shown} ({user_type}) from session {session}");
    }
}

fn names(participant: &Participant) -> (&SessionId, &UserId, UserType) {
    (
        &participant.session.id,
        &participant.member.user_id,
        participant.user_type,
    )
}
