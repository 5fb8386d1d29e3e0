//! Sends one frame, such as a status frame, a typing indicator or a read receipt, to the members of a session, from any
//! thread. Never waits for a reader.

use std::sync::Arc;

use bytes::Bytes;

use super::backend::Delivered;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::receipt::{self, Receipt};
use crate::protocol::server::{self, TypingIndicator};
use crate::session::reads::ReadStates;
use crate::session::typists::Typists;
use crate::session::{Member, Registry, Session};
use crate::writer::{ConnectionWriter, SharedChunk};

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
    if let Some(frame) = frame {
        to_others(session, user_id, frame);
    }
}

/// Shows everyone else in the session that a user has read further. What is not newer than what was shown before is not
/// shown again, so nobody sees a user go back. A client whose queue is full does not get it.
pub fn receipt(registry: &Registry, reads: &ReadStates, receipt: &Receipt) -> bool {
    reads.advance(receipt, || {
        let session = registry.get(receipt.session_id.as_str());
        if let (Some(session), Some(frame)) = (session, receipt.frame()) {
            to_others(&session, &receipt.user_id, frame);
        }
    })
}

/// Adds what the store knows of a session's readers. Who is there already is shown what is new in it; `joined`, who are
/// sent all of it, are not.
pub fn stored_receipts(
    registry: &Registry,
    reads: &ReadStates,
    session_id: &SessionId,
    stored: &[Receipt],
    joined: &[Arc<ConnectionWriter>],
) {
    let session = registry.get(session_id.as_str());
    reads.merge(session_id, stored, |receipt| {
        let (Some(session), Some(frame)) = (&session, receipt.frame()) else {
            return;
        };
        let chunk = SharedChunk::new(frame);
        let has_joined = |writer| joined.iter().any(|joined| Arc::ptr_eq(joined, writer));
        for member in session.members().iter() {
            if member.user_id != receipt.user_id && !has_joined(&member.writer) {
                member.writer.send_chunk(&chunk);
            }
        }
    });
}

/// Sends a connection how far the users of its session have read, if anybody has.
pub fn read_state(reads: &ReadStates, session_id: &SessionId, writer: &Arc<ConnectionWriter>) {
    reads.with_newest(session_id, |newest| {
        if let Some(frame) = receipt::read_state(session_id, newest) {
            writer.send_required(&frame);
        }
    });
}

/// A greeting, followed by an indicator for everyone else who is typing in the session. They are one write, before the
/// connection is a member: who stops typing later is shown after that.
pub fn with_typists(
    typists: &Typists,
    session_id: &SessionId,
    user_id: &UserId,
    at: &str,
    greeting: Bytes,
) -> Bytes {
    let mut frames = Vec::new();
    typists.with_typing(session_id, |typist, user_type| {
        let frame = server::typing_indicator(&TypingIndicator {
            session_id: session_id.as_str(),
            user_id: typist.as_str(),
            sender_type: user_type,
            is_typing: true,
            timestamp: at,
        });
        if let Some(frame) = frame.filter(|_| typist != user_id) {
            frames.extend_from_slice(&frame);
        }
    });
    match frames.is_empty() {
        true => greeting,
        false => [&greeting[..], &frames].concat().into(),
    }
}

fn to_others(session: &Session, user_id: &UserId, frame: Bytes) {
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
