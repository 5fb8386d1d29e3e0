//! The end of a connection's token: a notice, then a close.

use std::sync::Arc;

use super::{BacklogPolicy, ConnectionWriter};
use crate::protocol::code::CloseCode;
use crate::protocol::{format_seconds, server};
use crate::writer::expiry::Due;

impl ConnectionWriter {
    /// The connection lives as long as this token, which expires at this time, in seconds since 1970. If it ends soon,
    /// the client is told at once.
    pub fn set_token(self: &Arc<Self>, expires_at: i64, now: i64) {
        let due = {
            let mut state = self.state.lock();
            let leeway = self.context.token_leeway;
            state.expiry.set(expires_at.saturating_add(leeway));
            state.expiry.due(now)
        };
        self.act_on(due);
    }

    pub(super) fn act_on(self: &Arc<Self>, due: Due) {
        match due {
            Due::Nothing => {}
            Due::Notice => {
                let ends_at = self.state.lock().expiry.ends_at();
                let expires_at = format_seconds(ends_at - self.context.token_leeway);
                self.send_required(&server::token_expiring(&expires_at));
            }
            Due::End => {
                let reason = "the token has expired";
                self.close(CloseCode::Unauthenticated, reason, BacklogPolicy::Discard);
            }
        }
    }
}
