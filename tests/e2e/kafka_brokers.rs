//! Kafka brokers of a test's own, one or two.

use std::ops::Deref;
use std::path::PathBuf;

use super::Service;
use super::java::Kafka;

/// It is restarted often: let it register again before its old session times out by the default.
const SESSION_TIMEOUT: (&str, &str) = ("KAFKA_SESSION_TIMEOUT_MS", "3000");
/// With ACLs, which anyone may change, and which allow what they don't mention.
const AUTHORIZER: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true";

/// A Kafka broker of a test's own.
pub struct PrivateBroker(Service);

impl PrivateBroker {
    /// Reserves a folder and a port; nothing runs yet.
    #[track_caller]
    pub fn new() -> Self {
        Self(Service::new("kafka-local.sh", &[SESSION_TIMEOUT]))
    }

    #[track_caller]
    pub fn started() -> Self {
        let broker = Self::new();
        broker.start();
        broker
    }

    /// One that has ACLs: see [`Kafka::deny`].
    #[track_caller]
    pub fn with_acls() -> Self {
        Self::with_properties(AUTHORIZER)
    }

    /// One with more lines in its server.properties.
    #[track_caller]
    pub fn with_properties(lines: &'static str) -> Self {
        let broker = Self(Service::new(
            "kafka-local.sh",
            &[SESSION_TIMEOUT, ("KAFKA_PROPERTIES", lines)],
        ));
        broker.start();
        broker
    }

    pub fn kafka(&self) -> Kafka {
        Kafka::at(format!("127.0.0.1:{}", self.port))
    }

    /// Where it keeps a partition.
    pub fn partition(&self, topic: &str, partition: i32) -> PathBuf {
        self.dir.path().join(format!("data/{topic}-{partition}"))
    }
}

impl Deref for PrivateBroker {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

/// A cluster of two brokers. The first is also its controller, so that the second may be killed.
pub struct TwoBrokers {
    pub second: PrivateBroker,
    pub first: PrivateBroker,
}

impl TwoBrokers {
    #[track_caller]
    pub fn started() -> Self {
        // With the default's session timeout: on a busy machine a shorter one fences brokers that are only slow.
        let env = [("KAFKA_HEAP", "256m")];
        let first = PrivateBroker(Service::new("kafka-local.sh", &env));
        first.start();
        let mut second = Service::new("kafka-local.sh", &env);
        second.joins = Some(first.dir.path().to_owned());
        second.start();
        Self {
            second: PrivateBroker(second),
            first,
        }
    }

    /// Both of them.
    pub fn kafka(&self) -> Kafka {
        Kafka::at(format!(
            "{},{}",
            self.first.kafka().brokers,
            self.second.kafka().brokers
        ))
    }
}
