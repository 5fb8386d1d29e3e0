//! `message_read`: a user has read a session's messages up to one of them.

use super::{Chat, Participant};
use crate::clock;
use crate::history;
use crate::protocol::code::{ErrorCode, WireError};
use crate::protocol::correlation::Correlation;
use crate::protocol::receipt::{ReadPosition, ReadUpTo, Receipt};
use crate::protocol::timestamp;

/// How far the time in an id may be ahead of this node's clock, in milliseconds. With a later one, the user could not read
/// any further for as long.
const MAX_AHEAD_MS: i64 = 60_000;

impl Chat {
    pub(super) fn mark_read(&self, participant: &Participant, up_to: &str, correlation: Correlation<'_>) {
        let session_id = &participant.session.id;
        let position = match ReadPosition::of_id(up_to) {
            Some(position) if position.time() > clock::unix_ms() + MAX_AHEAD_MS => {
                let text = "data.up_to is the id of a message from the future";
                let error = WireError::new(ErrorCode::InvalidField, text);
                return self.refuse(participant, &error, correlation);
            }
            Some(position) => position,
            // What is not found is older than what is: it only counts while the user has read nothing else.
            None => history::find_message(&self.history, session_id.as_str(), up_to)
                .map(|(time, offset)| ReadPosition::of_record(time, offset))
                .unwrap_or_default(),
        };
        self.presence.mark_read(Receipt {
            session_id: session_id.clone(),
            user_id: participant.member.user_id.clone(),
            user_type: participant.user_type.as_str().to_owned(),
            up_to: ReadUpTo {
                position,
                message_id: up_to.into(),
            },
            timestamp: timestamp(),
        });
    }
}
