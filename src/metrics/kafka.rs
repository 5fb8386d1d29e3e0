//! Kafka metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Count, Level, Name};
use crate::protocol::record::Topic;

/// In seconds.
pub type Latency = Histogram;

const LATENCY_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTopic {
    topic: Name,
}

pub struct KafkaMetrics {
    pub producer_restarts: Count,
    pub publish_latency: Latency,
    pub delivery_latency: Latency,
    pub open_transaction: Level,
    lag: Family<OfTopic, Level>,
}

impl Default for KafkaMetrics {
    fn default() -> Self {
        let lag = Family::<OfTopic, Level>::default();
        for topic in Topic::ALL {
            drop(lag.get_or_create(&OfTopic {
                topic: Name(topic.name()),
            }));
        }
        Self {
            producer_restarts: Count::default(),
            publish_latency: latency(),
            delivery_latency: latency(),
            open_transaction: Level::default(),
            lag,
        }
    }
}

impl KafkaMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "kafka_producer_restarts",
            "Times the Kafka producer was recreated",
            self.producer_restarts.clone(),
        );
        registry.register(
            "kafka_publish_latency_seconds",
            "Time from sending a record to its acknowledgement",
            self.publish_latency.clone(),
        );
        registry.register(
            "kafka_delivery_latency_seconds",
            "Time from a message record's timestamp to its delivery, for the first record of each batch",
            self.delivery_latency.clone(),
        );
        registry.register(
            "kafka_consumer_lag",
            "Offsets between what this node has delivered and the end of the log, over all partitions",
            self.lag.clone(),
        );
        registry.register(
            "kafka_open_transaction_seconds",
            "How long another producer's open transaction has held records back",
            self.open_transaction.clone(),
        );
    }

    pub fn lag(&self, topic: Topic, lag: i64) {
        let topic = OfTopic {
            topic: Name(topic.name()),
        };
        self.lag.get_or_create(&topic).set(lag);
    }
}

pub fn latency() -> Latency {
    Histogram::new(LATENCY_BUCKETS)
}
