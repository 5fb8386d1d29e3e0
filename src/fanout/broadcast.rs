//! Sends one frame, such as a status frame or a typing indicator, to every member of a session, from any thread. Never
//! waits for a reader.

use bytes::Bytes;

use super::backend::Delivered;
use crate::protocol::ids::UserId;
use crate::protocol::server::{self, TypingIndicator};
use crate::session::{Member, Session};
use crate::writer::SharedChunk;

/// How many members are served before another session, or another task, gets its turn.
pub const SLICE: usize = 256;

/// Sends a typing indicator to everyone in the session except the typist. A client whose queue is full does not get it.
pub fn typing(session: &Session, user_id: &UserId, user_type: &str, is_typing: bool, at: &str) {
    let frame = server::typing_indicator(&TypingIndicator {
        session_id: session.id.as_str(),
        user_id: user_id.as_str(),
        sender_type: user_type,
        is_typing,
        timestamp: at,
    });
    let Some(frame) = frame else { return };
    let chunk = SharedChunk::new(frame);
    let members = session.members();
    for member in members.iter().filter(|member| member.user_id != *user_id) {
        member.writer.send_chunk(&chunk);
    }
}

/// Sends `chunk` to each of `members` on the runtime, and yields after each slice. The queue of a client may exceed its
/// limit for it, up to twice the limit; beyond that, the connection is closed.
pub async fn deliver_in_slices(members: &[Member], chunk: &Bytes) -> Delivered {
    let (mut delivered, chunk) = (Delivered::default(), SharedChunk::new(chunk.clone()));
    for slice in members.chunks(SLICE) {
        for member in slice {
            delivered.count(member.writer.send_required(&chunk));
        }
        if members.len() > SLICE {
            tokio::task::yield_now().await;
        }
    }
    delivered
}
