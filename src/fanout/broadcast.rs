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

/// What to do with a frame for a reader whose queue is full.
#[derive(Clone, Copy)]
pub enum OverflowPolicy {
    /// Drop the frame.
    Drop,
    /// Queue it beyond the limit, up to twice the limit; beyond that, close the connection.
    Require,
}

/// Sends a typing indicator to everyone in the session except the typist.
pub fn typing(session: &Session, user_id: &UserId, user_type: &str, is_typing: bool, at: &str) {
    let frame = server::typing_indicator(&TypingIndicator {
        session_id: session.id.as_str(),
        user_id: user_id.as_str(),
        sender_type: user_type,
        is_typing,
        timestamp: at,
    });
    if let Some(frame) = frame {
        deliver(&session.members(), &frame, Some(user_id), OverflowPolicy::Drop);
    }
}

/// Sends `chunk` to each of `members` except the user `except`.
pub fn deliver(
    members: &[Member],
    chunk: &Bytes,
    except: Option<&UserId>,
    overflow: OverflowPolicy,
) -> Delivered {
    deliver_shared(members, &SharedChunk::new(chunk.clone()), except, overflow)
}

fn deliver_shared(
    members: &[Member],
    chunk: &SharedChunk,
    except: Option<&UserId>,
    overflow: OverflowPolicy,
) -> Delivered {
    let mut delivered = Delivered::default();
    for member in members {
        if except.is_some_and(|user_id| *user_id == member.user_id) {
            continue;
        }
        let sent = match overflow {
            OverflowPolicy::Drop => member.writer.send(chunk),
            OverflowPolicy::Require => member.writer.send_required(chunk),
        };
        delivered.count(sent);
    }
    delivered
}

/// [`deliver`] for tasks on the runtime: yields after each slice.
pub async fn deliver_in_slices(members: &[Member], chunk: &Bytes) -> Delivered {
    let (mut delivered, chunk) = (Delivered::default(), SharedChunk::new(chunk.clone()));
    for slice in members.chunks(SLICE) {
        delivered += deliver_shared(slice, &chunk, None, OverflowPolicy::Require);
        if members.len() > SLICE {
            tokio::task::yield_now().await;
        }
    }
    delivered
}
