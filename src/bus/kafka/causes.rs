//! What is wrong with Kafka, in plain words: for health, and for the log once in each outage.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Shared;
use crate::bus::Status;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Cause {
    /// For everybody: no address, no user.
    text: String,
    /// How much of the text says which cause it is; the rest names where, which changes while an outage goes on.
    key: usize,
    /// What else the log may say: addresses, librdkafka's words.
    more: Option<String>,
    /// For how long, where that is part of it.
    since: Option<Instant>,
}

impl Cause {
    pub fn new(text: impl Into<String>) -> Self {
        Self::naming(text, "")
    }

    /// A cause, and the partitions that it concerns at the moment.
    pub fn naming(text: impl Into<String>, names: &str) -> Self {
        let text = text.into();
        Self {
            key: text.len(),
            text: text + names,
            more: None,
            since: None,
        }
    }

    /// The same for all that is one cause.
    fn key(&self) -> &str {
        &self.text[..self.key]
    }

    pub fn with(mut self, more: impl Into<String>) -> Self {
        self.more = Some(more.into());
        self
    }

    pub fn since(mut self, since: Instant) -> Self {
        self.since = Some(since);
        self
    }

    pub fn is_about(&self, word: &str) -> bool {
        self.text.contains(word)
    }

    fn detail(&self) -> String {
        match self.since {
            Some(since) => format!("{} for {} s", self.text, since.elapsed().as_secs()),
            None => self.text.clone(),
        }
    }
}

/// How Kafka is, and what is wrong.
#[derive(Clone, Debug)]
pub struct Standing {
    pub status: Status,
    pub causes: Vec<Cause>,
}

impl Standing {
    /// `detail` of health.
    pub fn detail(&self) -> Option<String> {
        let details: Vec<_> = self.causes.iter().map(Cause::detail).collect();
        (!details.is_empty()).then(|| details.join("; "))
    }
}

/// Tells health how it is, and the log what is new: each cause once in an outage, and the end of the outage.
#[derive(Default)]
pub struct Teller {
    told: BTreeSet<String>,
}

impl Teller {
    pub fn tell(&mut self, shared: &Shared, status: Status, mut causes: Vec<Cause>) {
        let mut seen = BTreeSet::new();
        causes.retain(|cause| seen.insert(cause.text.clone()));
        for cause in &causes {
            if self.told.insert(cause.key().to_owned()) {
                let brokers = &shared.config.brokers;
                let more = cause.more.as_deref();
                tracing::warn!(cause = cause.text, more, brokers, "Kafka is degraded");
            }
        }
        let was = shared.status();
        if status == Status::Ok && was != Status::Ok {
            self.told.clear();
            tracing::info!(brokers = shared.config.brokers, "Kafka is connected");
        }
        shared.set_standing(Standing { status, causes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_the_same_wherever_it_is() {
        let one = Cause::naming("partitions without a leader: ", "a/0,a/1");
        let other = Cause::naming("partitions without a leader: ", "a/1");
        assert_eq!(one.key(), other.key());
        assert_eq!(other.detail(), "partitions without a leader: a/1");
        assert_ne!(
            Cause::new("connection refused").key(),
            Cause::new("timed out").key()
        );
    }
}
