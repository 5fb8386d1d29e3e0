//! Messages on their way to the log: a client's `send_message`, and what a backend publishes.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::oneshot;

use super::attempts::Attempt;
use super::pending::{Outcome, PendingAnswer};
use super::{Chat, Participant};
use crate::bus::PublishError;
use crate::history::Sent;
use crate::protocol::client::SendMessage;
use crate::protocol::client_id;
use crate::protocol::code::WireError;
use crate::protocol::correlation::Correlation;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::json::Passthrough;
use crate::protocol::publication::Publication;
use crate::protocol::record::{Form, Outgoing, RecordKey, Topic};
use crate::protocol::server::{self, NewMessage};

/// A message, and who sends it where.
struct Draft<'a, 't, 'i> {
    session_id: &'a SessionId,
    sender_id: Option<&'a UserId>,
    sender_type: &'a str,
    message: &'a SendMessage<'t, 'i>,
    /// Whose client message ids these are: a user's, or, if empty, those of all backends.
    of_user: &'a str,
}

/// The record of a message can't be encoded, which is a bug.
#[derive(Debug)]
pub struct Unencodable;

impl Chat {
    pub(super) fn send_message(
        &self,
        participant: &Participant,
        message: &SendMessage<'_, '_>,
        correlation: Correlation<'_>,
    ) {
        let identity = participant.identity();
        let draft = Draft {
            session_id: identity.session_id,
            sender_id: Some(identity.user_id),
            sender_type: identity.user_type.as_str(),
            message,
            of_user: identity.user_id.as_str(),
        };
        let pending = PendingAnswer::new(&participant.member.writer, correlation, Arc::clone(&self.metrics));
        if self.write(&draft, pending).is_err() {
            self.refuse(participant, &WireError::internal(), correlation);
        }
    }

    /// Publishes a backend's message; the answer comes as that of a client's does. No user has an empty id, so no
    /// user's message is taken for a repeat of it.
    pub fn publish(
        &self,
        session_id: &SessionId,
        publication: &Publication<'_, '_>,
    ) -> Result<oneshot::Receiver<Outcome>, Unencodable> {
        let draft = Draft {
            session_id,
            sender_id: publication.sender_id.as_ref(),
            sender_type: publication.sender_type,
            message: &publication.message,
            of_user: "",
        };
        let (pending, outcome) = PendingAnswer::to_backend(Arc::clone(&self.metrics));
        self.write(&draft, pending)?;
        Ok(outcome)
    }

    /// Writes a message to the log, unless it is there or on its way; the answer follows.
    fn write(&self, draft: &Draft<'_, '_, '_>, pending: Arc<PendingAnswer>) -> Result<(), Unencodable> {
        let Draft {
            session_id,
            message,
            of_user,
            ..
        } = *draft;
        let sent = Sent::now();
        let (message_id, at) = (sent.message_id(), sent.timestamp());
        let frame = NewMessage {
            message_id: &message_id,
            session_id,
            sender_id: draft.sender_id,
            sender_type: draft.sender_type,
            message: message.message,
            message_type: message.message_type,
            attachments: Attachments(message.attachments),
            timestamp: &at,
            client_message_id: message.client_message_id,
        };
        let value = server::new_message(&frame).ok_or(Unencodable)?;
        if value.len() > self.max_record_bytes {
            pending.answer(Err(PublishError::TooLarge));
            return Ok(());
        }
        let outgoing = Outgoing {
            topic: Topic::Messages,
            key: RecordKey::Session(session_id.clone()),
            value,
            form: Form::Native,
            message_id: Some(message_id),
            client_id: message
                .client_message_id
                .map(|client_message_id| client_id::encode(of_user, client_message_id)),
        };
        let Some(client_message_id) = message.client_message_id else {
            let (answered, metrics) = (Arc::clone(&pending), Arc::clone(&self.metrics));
            let ack = move |outcome: Result<(), _>| {
                if outcome.is_ok() {
                    metrics.records_published.inc();
                }
                answered.answer(outcome.map(|()| &sent));
            };
            self.bus.publish(outgoing, Box::new(ack));
            self.pending.watch(pending);
            return Ok(());
        };
        let sent_before = &self.attempts.sent;
        let key = sent_before.key(
            session_id.as_str(),
            of_user.as_bytes(),
            client_message_id.as_bytes(),
        );
        match self.attempts.begin(key, &pending) {
            Attempt::Known(first) => pending.answer(Ok(&first)),
            Attempt::Refused => pending.answer(Err(PublishError::Full)),
            Attempt::Waits => self.pending.watch(pending),
            Attempt::First(number) => {
                let (attempts, metrics) = (Arc::clone(&self.attempts), Arc::clone(&self.metrics));
                let ack = move |outcome| match outcome {
                    // Answered when the record is read.
                    Ok(()) => drop(metrics.records_published.inc()),
                    Err(error) => attempts.failed(key, number, error),
                };
                self.bus.publish(outgoing, Box::new(ack));
                self.pending.watch(pending);
            }
        }
        Ok(())
    }
}

/// `attachments`: passed through by value; `[]` if none are given.
struct Attachments<'t, 'i>(Option<Passthrough<'t, 'i>>);

impl Serialize for Attachments<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(given) => given.serialize(serializer),
            None => serializer.collect_seq([(); 0]),
        }
    }
}
