//! A backend disconnects a user from a session, on every node.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Chat;
use crate::bus::PublishError;
use crate::clock;
use crate::protocol::control::{Disconnect, Refusal};
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::record::{Outgoing, RecordKey, Topic};

/// How long the answer may take: within five seconds.
const PATIENCE: Duration = Duration::from_millis(4_600);

impl Chat {
    /// Closes a user's connections in a session and, if `refused_for` is given, refuses the user there for that time;
    /// zero ends a refusal. Without it, a user who is refused stays so. Returns once this is in force here, with the
    /// time until which the user is refused, in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// Where disconnects are kept they can't be written, or whether they were is not known.
    pub async fn disconnect(
        &self,
        session_id: &SessionId,
        user_id: &UserId,
        refused_for: Option<Duration>,
    ) -> Result<Option<i64>, PublishError> {
        let now = clock::unix_ms();
        let refusal = match refused_for {
            // This node need not know it yet, so the record can't repeat it.
            None => Refusal::Stays,
            Some(Duration::ZERO) => Refusal::Ends,
            Some(length) => Refusal::Until(now + i64::try_from(length.as_millis()).unwrap_or(0)),
        };
        let record = Disconnect::new(session_id, user_id, now, refusal);
        let in_force = self.disconnects.expect(record.id);
        let written = async {
            self.write_disconnect(&record).await?;
            Ok(in_force.wait().await)
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap_or_else(|_| {
            self.bus.unanswered();
            Err(PublishError::Unknown)
        })
    }

    /// Into the log, else into Redis; without both, there is only this node.
    async fn write_disconnect(&self, record: &Disconnect) -> Result<(), PublishError> {
        if self.bus.is_shared() {
            let (sender, outcome) = oneshot::channel();
            let value = record.value().ok_or(PublishError::Unavailable)?;
            let outgoing = Outgoing::legacy(Topic::Control, RecordKey::User(record.key()), value);
            let ack = move |acknowledged| {
                // The backend may have gone.
                let _ = sender.send(acknowledged);
            };
            self.bus.publish(outgoing, Box::new(ack));
            return outcome.await.unwrap_or(Err(PublishError::Unknown));
        }
        match &self.presence.control {
            Some(stream) => stream.write(record).await,
            None => {
                self.disconnects.read(record);
                Ok(())
            }
        }
    }
}
