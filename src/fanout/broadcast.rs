//! One frame to every member of a session, from whichever thread has it: a status frame, a typing indicator. It waits for
//! no reader.

use bytes::Bytes;

use super::backend::Delivered;
use crate::protocol::ids::UserId;
use crate::session::Member;
use crate::writer::SharedChunk;

/// How many members are served before another session, or another task, gets its turn.
pub const SLICE: usize = 256;

/// What to do about a reader whose queue is full, where nobody may wait for it.
#[derive(Clone, Copy)]
pub enum Patience {
    /// What may be left out is.
    Drop,
    /// It may not be left out.
    Insist,
}

/// Sends `chunk` to each of `members` but those of `except`.
pub fn deliver(members: &[Member], chunk: &Bytes, except: Option<&UserId>, patience: Patience) -> Delivered {
    deliver_shared(members, &SharedChunk::new(chunk.clone()), except, patience)
}

fn deliver_shared(
    members: &[Member],
    chunk: &SharedChunk,
    except: Option<&UserId>,
    patience: Patience,
) -> Delivered {
    let mut delivered = Delivered::default();
    for member in members {
        if except.is_some_and(|user_id| *user_id == member.user_id) {
            continue;
        }
        let sent = match patience {
            Patience::Drop => member.writer.send(chunk),
            Patience::Insist => member.writer.insist(chunk),
        };
        delivered.count(sent);
    }
    delivered
}

/// [`deliver`] on the runtime: after each slice other tasks get their turn.
pub async fn deliver_in_slices(members: &[Member], chunk: &Bytes) -> Delivered {
    let (mut delivered, chunk) = (Delivered::default(), SharedChunk::new(chunk.clone()));
    for slice in members.chunks(SLICE) {
        delivered += deliver_shared(slice, &chunk, None, Patience::Insist);
        if members.len() > SLICE {
            tokio::task::yield_now().await;
        }
    }
    delivered
}
