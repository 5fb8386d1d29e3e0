//! Reads the variables for Kafka.

use std::path::PathBuf;
use std::time::Duration;

use super::parse::{self, choice, number};
use super::reader::Reader;
use super::{KafkaConfig, Sasl, SaslMechanism, SecurityProtocol};
use crate::secret::Secret;

/// Whether this build can speak TLS and SASL to Kafka.
pub(super) const KAFKA_TLS: bool = cfg!(feature = "kafka-tls");

pub(super) fn kafka(r: &mut Reader<'_>) -> Option<KafkaConfig> {
    // Both are checked, so that removing the newer name later cannot reveal a mistake in the older.
    let older = r.optional("KAFKA_BROKER", parse::brokers);
    let brokers = r.optional("KAFKA_BROKERS", parse::brokers).or(older);

    let names = [
        "KAFKA_TOPIC_MESSAGES",
        "KAFKA_TOPIC_TYPING",
        "KAFKA_TOPIC_STATUS",
        "KAFKA_TOPIC_CONTROL",
    ];
    let topics = names.map(|name| r.required(name, parse::topic));
    // Kafka's metrics can't tell a dot from an underscore, so it refuses names that differ only in that.
    let key = |topic: &str| topic.replace('.', "_");
    for (number, topic) in topics.iter().enumerate() {
        let mut before = topics[..number].iter();
        if let Some(other) = before.position(|other| key(other) == key(topic)) {
            let other = names[other];
            r.wrong(
                names[number],
                format!("expected a topic other than {other}'s ({topic})"),
            );
        }
    }
    let [topic_messages, topic_typing, topic_status, topic_control] = topics;
    let partitions = r.required("KAFKA_TOPIC_PARTITIONS", |text| number(text, 1..=10_000));
    let replication = r.required("KAFKA_TOPIC_REPLICATION", |text| {
        number(text, 1..=i32::from(i16::MAX))
    });
    let pace = r.duration("KAFKA_PACE", Duration::ZERO, Duration::from_millis(100));
    let (security, sasl, ssl_ca) = kafka_security(r);

    Some(KafkaConfig {
        brokers: brokers?,
        topic_messages,
        topic_typing,
        topic_status,
        topic_control,
        partitions,
        replication,
        pace,
        security,
        sasl,
        ssl_ca,
    })
}

fn kafka_security(r: &mut Reader<'_>) -> (SecurityProtocol, Option<Sasl>, Option<PathBuf>) {
    use SecurityProtocol::{Plaintext, SaslPlaintext, SaslSsl, Ssl};
    const PROTOCOL: &str = "KAFKA_SECURITY_PROTOCOL";
    const PASSWORD: &str = "KAFKA_SASL_PASSWORD";
    const PASSWORD_FILE: &str = "KAFKA_SASL_PASSWORD_FILE";
    let security = r.required(PROTOCOL, |text| {
        choice(
            text,
            &[Plaintext, Ssl, SaslPlaintext, SaslSsl].map(|protocol| (protocol.as_str(), protocol)),
        )
    });
    if security != Plaintext && !KAFKA_TLS {
        r.wrong(
            PROTOCOL,
            "this build has neither TLS nor SASL for Kafka (cargo feature kafka-tls): expected plaintext",
        );
    }
    let mechanism = r.required("KAFKA_SASL_MECHANISM", |text| {
        use SaslMechanism::{Plain, ScramSha256, ScramSha512};
        choice(
            text,
            &[Plain, ScramSha256, ScramSha512].map(|mechanism| (mechanism.as_str(), mechanism)),
        )
    });
    let username = r.text("KAFKA_SASL_USERNAME");
    let password = r.secret(PASSWORD, PASSWORD_FILE);
    let ssl_ca = r.optional("KAFKA_SSL_CA", |text| match std::fs::read(text) {
        Ok(content) if content.windows(11).any(|window| window == b"-----BEGIN ") => Ok(PathBuf::from(text)),
        Ok(_) => Err("expected a file with certificates in PEM form".to_owned()),
        Err(why) => Err(format!("expected a readable file: {why}")),
    });

    if !r.is_wrong(PROTOCOL) {
        for name in [
            "KAFKA_SASL_MECHANISM",
            "KAFKA_SASL_USERNAME",
            PASSWORD,
            PASSWORD_FILE,
        ] {
            let is_set = r.text(name).is_some();
            if !security.has_sasl() && is_set {
                r.wrong(
                    name,
                    format!("only accepted with {PROTOCOL}=sasl_ssl or sasl_plaintext"),
                );
            }
            let is_needed = match name {
                "KAFKA_SASL_USERNAME" => true,
                PASSWORD => r.text(PASSWORD_FILE).is_none(),
                _ => false,
            };
            if security.has_sasl() && !is_set && is_needed {
                r.wrong(name, format!("needed with {PROTOCOL}={}", security.as_str()));
            }
        }
        if !security.has_tls() && ssl_ca.is_some() {
            r.wrong(
                "KAFKA_SSL_CA",
                format!("only accepted with {PROTOCOL}=ssl or sasl_ssl"),
            );
        }
    }
    let sasl = security.has_sasl().then(|| Sasl {
        mechanism,
        username: username.unwrap_or_default(),
        password: password.unwrap_or_else(|| Secret::fixed(String::new())),
    });
    (security, sasl, ssl_ca)
}
