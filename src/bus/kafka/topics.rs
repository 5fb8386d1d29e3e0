//! The monitor's admin requests: it creates topics, and reads their settings where those may explain why writing fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use tokio::runtime::Handle;

use super::broker::ANSWER_TIMEOUT;
use super::causes::{Cause, HealthReport};
use super::outcomes::is_refusal;
use super::{RECORD_OVERHEAD, Shared};
use crate::bus::Status;
use crate::protocol::record::Topic;

/// Typing and status records are short-lived: an hour of them helps to investigate an incident.
const SHORT_RETENTION_MS: &str = "3600000";
/// Who is refused: longer than a refusal lasts. Only whole segments are compacted or deleted.
const CONTROL_RETENTION_MS: &str = "90000000";
const CONTROL_SEGMENT_MS: &str = "3600000";
/// Kafka's default of `max.message.bytes`, the largest batch that a topic accepts. A topic that we create accepts
/// `MAX_RECORD_BYTES`.
const KAFKA_DEFAULT_MAX_BYTES: usize = 1_048_588;
/// How long settings are cached.
const SETTINGS_AGE: Duration = Duration::from_secs(30);

/// A topic's settings that can make writing fail.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    asked: Instant,
    pub min_in_sync: Option<usize>,
    pub max_bytes: Option<usize>,
}

/// Creates topics and reads their settings.
pub(super) struct TopicAdmin {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Why topics could not be created.
    pub create_error: Option<String>,
    settings: HashMap<Topic, Settings>,
}

impl TopicAdmin {
    pub fn new(shared: Arc<Shared>, runtime: Handle) -> Self {
        Self {
            shared,
            runtime,
            create_error: None,
            settings: HashMap::new(),
        }
    }

    fn admin(&self) -> Option<AdminClient<DefaultClientContext>> {
        let made = self.shared.client_config().create();
        made.inspect_err(|error| tracing::error!(%error, "cannot create a Kafka admin client"))
            .ok()
    }

    /// Creates topics. Returns whether they all exist now; if one can't be created, health says why.
    pub fn create(&mut self, topics: &[Topic]) -> bool {
        let Some(admin) = self.admin() else { return false };
        let (partitions, replication) = (self.shared.config.partitions, self.shared.config.replication);
        let largest = (self.shared.max_record_bytes + RECORD_OVERHEAD).to_string();
        let takes_more = self.shared.max_record_bytes + RECORD_OVERHEAD > KAFKA_DEFAULT_MAX_BYTES;
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|&topic| {
                let new = NewTopic::new(
                    self.shared.topic_name(topic),
                    // There are few disconnects, and one partition has one order.
                    if topic == Topic::Control { 1 } else { partitions },
                    TopicReplication::Fixed(replication),
                );
                match topic {
                    Topic::Messages if takes_more => new.set("max.message.bytes", &largest),
                    Topic::Messages => new,
                    Topic::Typing | Topic::Status => new.set("retention.ms", SHORT_RETENTION_MS),
                    Topic::Control => new
                        .set("cleanup.policy", "compact,delete")
                        .set("retention.ms", CONTROL_RETENTION_MS)
                        .set("segment.ms", CONTROL_SEGMENT_MS),
                }
            })
            .collect();
        let options = AdminOptions::new()
            .operation_timeout(Some(ANSWER_TIMEOUT))
            .request_timeout(Some(2 * ANSWER_TIMEOUT));
        let created = self.runtime.block_on(admin.create_topics(&new, &options));
        self.create_error = None;
        for result in created.unwrap_or_else(|error| {
            self.create_error = Some(error.to_string());
            Vec::new()
        }) {
            match result {
                Ok(name) => tracing::info!(topic = name, "Kafka topic created"),
                // Another node has created it.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) if is_refusal(code) => {
                    self.create_error = Some("no permission (CREATE)".to_owned());
                }
                Err((_, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    self.create_error = Some(format!(
                        "there are fewer brokers than KAFKA_TOPIC_REPLICATION ({replication})"
                    ));
                }
                Err((_, code)) => self.create_error = Some(code.to_string()),
            }
        }
        self.create_error.is_none()
    }

    /// A topic's settings, if the broker returns them. They may take a while to fetch; `meanwhile` is what health says
    /// until then.
    pub fn settings(&mut self, topic: Topic, meanwhile: &str) -> Option<Settings> {
        let known = self.settings.get(&topic).copied();
        if known.is_some_and(|known| known.asked.elapsed() < SETTINGS_AGE) {
            return known;
        }
        if self.shared.status() == Status::Ok {
            self.shared.set_health(HealthReport {
                status: Status::Degraded,
                causes: vec![Cause::new(meanwhile)],
            });
        }
        let admin = self.admin()?;
        let resource = [ResourceSpecifier::Topic(self.shared.topic_name(topic))];
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let described = self.runtime.block_on(admin.describe_configs(&resource, &options));
        let found = described.ok().and_then(|found| found.into_iter().next()?.ok());
        let number = |name| found.as_ref()?.get(name)?.value.as_ref()?.parse().ok();
        let settings = Settings {
            asked: Instant::now(),
            min_in_sync: number("min.insync.replicas"),
            max_bytes: number("max.message.bytes"),
        };
        self.settings.insert(topic, settings);
        Some(settings)
    }
}
