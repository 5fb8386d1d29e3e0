//! What is wrong with Kafka, in plain words: for health, and for the log, once per outage.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Shared;
use crate::bus::Status;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Public: names no address and no user.
    text: String,
    /// The length of the part of `text` that identifies the cause; the rest names partitions, which may change during
    /// an outage.
    key: usize,
    /// Details for the log only: addresses, librdkafka's message.
    more: Option<String>,
    /// When it began, if the text is to say how long it has lasted.
    since: Option<Instant>,
}

impl Cause {
    pub fn new(text: impl Into<String>) -> Self {
        Self::naming(text, "")
    }

    /// A cause with the partitions it currently affects.
    pub fn naming(text: impl Into<String>, names: &str) -> Self {
        let text = text.into();
        Self {
            key: text.len(),
            text: text + names,
            more: None,
            since: None,
        }
    }

    /// Identifies the cause, whichever partitions it affects.
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

    pub fn mentions(&self, word: &str) -> bool {
        self.text.contains(word)
    }

    fn detail(&self) -> String {
        match self.since {
            Some(since) => format!("{} for {} s", self.text, since.elapsed().as_secs()),
            None => self.text.clone(),
        }
    }
}

/// Kafka's status, with the causes if it is not well.
#[derive(Clone, Debug)]
pub struct HealthReport {
    pub status: Status,
    pub causes: Vec<Cause>,
}

impl HealthReport {
    /// `detail` of health.
    pub fn detail(&self) -> Option<String> {
        let details: Vec<_> = self.causes.iter().map(Cause::detail).collect();
        (!details.is_empty()).then(|| details.join("; "))
    }
}

/// Updates health, and logs changes: each cause once per outage, and the end of the outage.
#[derive(Default)]
pub struct HealthReporter {
    logged: BTreeSet<String>,
}

impl HealthReporter {
    pub fn report(&mut self, shared: &Shared, status: Status, mut causes: Vec<Cause>) {
        let mut seen = BTreeSet::new();
        causes.retain(|cause| seen.insert(cause.text.clone()));
        for cause in &causes {
            if self.logged.insert(cause.key().to_owned()) {
                let brokers = &shared.config.brokers;
                let more = cause.more.as_deref();
                tracing::warn!(cause = cause.text, more, brokers, "Kafka is degraded");
            }
        }
        let previous = shared.status();
        if status == Status::Ok && previous != Status::Ok {
            self.logged.clear();
            tracing::info!(brokers = shared.config.brokers, "Kafka is connected");
        }
        shared.set_health(HealthReport { status, causes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_causes_key_does_not_depend_on_its_partitions() {
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
