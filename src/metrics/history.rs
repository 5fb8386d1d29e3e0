//! Metrics of the recent log and of clients that come back.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Count, Latency, Level, Name, latency};
use crate::protocol::resume::NotResumed;

/// Where replayed messages came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The recent log.
    Memory,
    /// The log itself.
    Log,
}

impl Source {
    const ALL: [Self; 2] = [Self::Memory, Self::Log];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Log => "log",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: Name,
    source: Name,
}

const RECOVERED: &str = "recovered";

pub struct HistoryMetrics {
    resumes: Family<Outcome, Count>,
    replayed: Count,
    log_reads: Latency,
    pub messages_left_out: Count,
    pub recent_log_bytes: Level,
    pub recent_log_age: Level,
    pub duplicates_skipped: Count,
    pub dedup_forgotten: Count,
    pub repeats_answered: Count,
}

impl Default for HistoryMetrics {
    fn default() -> Self {
        let resumes = Family::<Outcome, Count>::default();
        let outcomes = NotResumed::ALL.map(NotResumed::name);
        for outcome in outcomes.into_iter().chain([RECOVERED]) {
            for source in Source::ALL.map(Source::name) {
                drop(resumes.get_or_create(&Outcome {
                    outcome: Name(outcome),
                    source: Name(source),
                }));
            }
        }
        Self {
            resumes,
            replayed: Count::default(),
            log_reads: latency(),
            messages_left_out: Count::default(),
            recent_log_bytes: Level::default(),
            recent_log_age: Level::default(),
            duplicates_skipped: Count::default(),
            dedup_forgotten: Count::default(),
            repeats_answered: Count::default(),
        }
    }
}

impl HistoryMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "resumes",
            "Clients that came back, by outcome and by where their messages came from",
            self.resumes.clone(),
        );
        registry.register(
            "replayed_messages",
            "Messages replayed to clients that came back",
            self.replayed.clone(),
        );
        registry.register(
            "log_read_seconds",
            "Time of one pass over older records of the log, for all clients that waited for it",
            self.log_reads.clone(),
        );
        registry.register(
            "messages_left_out",
            "Payloads that are not one JSON value, left out of messages loaded over HTTP",
            self.messages_left_out.clone(),
        );
        registry.register(
            "recent_log_bytes",
            "Memory of the recent log",
            self.recent_log_bytes.clone(),
        );
        registry.register(
            "recent_log_age_seconds",
            "How far back the recent log goes",
            self.recent_log_age.clone(),
        );
        registry.register(
            "duplicates_skipped",
            "Records that repeat a message, passed over",
            self.duplicates_skipped.clone(),
        );
        registry.register(
            "dedup_forgotten",
            "Messages forgotten within DEDUP_WINDOW, because DEDUP_BYTES is full",
            self.dedup_forgotten.clone(),
        );
        registry.register(
            "repeats_answered",
            "Repeated messages of clients that were answered without writing a record",
            self.repeats_answered.clone(),
        );
    }

    /// The log was read for clients that came back.
    pub fn log_read(&self, took: Duration) {
        self.log_reads.observe(took.as_secs_f64());
    }

    /// A client came back, and so many messages are replayed to it.
    pub fn resumed(&self, outcome: Result<usize, NotResumed>, source: Source) {
        let label = Outcome {
            outcome: Name(outcome.map_or_else(NotResumed::name, |_| RECOVERED)),
            source: Name(source.name()),
        };
        self.resumes.get_or_create(&label).inc();
        self.replayed.inc_by(outcome.unwrap_or(0) as u64);
    }
}
