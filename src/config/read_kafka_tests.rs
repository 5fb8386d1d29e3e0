//! Tests of what is read for Kafka.

use super::super::SecurityProtocol;
use super::super::read_kafka::KAFKA_TLS;
use super::tests::{read, wrong};

#[test]
fn kafka_brokers_wins_over_the_older_name() {
    let brokers = |pairs: &[(&str, &str)]| read(pairs).unwrap().kafka.map(|kafka| kafka.brokers);
    assert_eq!(brokers(&[("KAFKA_BROKER", "old:1")]).unwrap(), "old:1");
    assert_eq!(
        brokers(&[("KAFKA_BROKER", "old:1"), ("KAFKA_BROKERS", "")]).unwrap(),
        "old:1"
    );
    assert_eq!(
        brokers(&[("KAFKA_BROKER", "old:1"), ("KAFKA_BROKERS", "new:1,b")]).unwrap(),
        "new:1,b:9092"
    );
    let kafka = read(&[("KAFKA_BROKERS", "k")]).unwrap().kafka.unwrap();
    assert_eq!(
        (kafka.topic_messages.as_str(), kafka.topic_typing.as_str()),
        ("chat-messages", "typing-indicators")
    );
    assert_eq!(
        (kafka.topic_status.as_str(), kafka.partitions, kafka.replication),
        ("connection-status", 8, 1)
    );
    assert_eq!(
        (kafka.security, kafka.sasl, kafka.ssl_ca),
        (SecurityProtocol::Plaintext, None, None)
    );
}

#[test]
fn topics_are_four() {
    assert_eq!(
        wrong(&[("KAFKA_TOPIC_TYPING", "chat-messages")]).0,
        ["KAFKA_TOPIC_TYPING"]
    );
    let alike = [("KAFKA_TOPIC_MESSAGES", "a.b"), ("KAFKA_TOPIC_STATUS", "a_b")];
    assert_eq!(wrong(&alike).0, ["KAFKA_TOPIC_STATUS"]);
    let same = [("KAFKA_TOPIC_CONTROL", "connection-status")];
    assert_eq!(wrong(&same).0, ["KAFKA_TOPIC_CONTROL"]);
    let control = read(&[("KAFKA_BROKERS", "k")])
        .unwrap()
        .kafka
        .unwrap()
        .topic_control;
    assert_eq!(control, "livechat-control");
}

#[test]
fn kafka_security_needs_its_feature_and_all_its_parts() {
    for protocol in ["ssl", "SASL_SSL", "sasl_plaintext"] {
        let result = read(&[("KAFKA_SECURITY_PROTOCOL", protocol)]);
        if !KAFKA_TLS {
            assert!(result.unwrap_err().to_string().contains("kafka-tls"));
        } else if protocol != "ssl" {
            assert_eq!(
                result.unwrap_err().names(),
                ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"]
            );
        }
    }
    if KAFKA_TLS {
        let kafka = read(&[
            ("KAFKA_BROKERS", "k"),
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
            ("KAFKA_SASL_MECHANISM", "scram-sha-512"),
            ("KAFKA_SASL_USERNAME", "bob"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
        ]);
        let sasl = kafka.unwrap().kafka.unwrap().sasl.unwrap();
        assert_eq!(
            (sasl.mechanism.as_str(), &*sasl.password.value()),
            ("SCRAM-SHA-512", "hunter2")
        );
    }
    assert_eq!(
        wrong(&[("KAFKA_SASL_USERNAME", "bob")]).0,
        ["KAFKA_SASL_USERNAME"]
    );
    assert_eq!(wrong(&[("KAFKA_SSL_CA", "/nonexistent")]).0, ["KAFKA_SSL_CA"]);
    assert_eq!(
        wrong(&[("KAFKA_SECURITY_PROTOCOL", "tls")]).0,
        ["KAFKA_SECURITY_PROTOCOL"]
    );
}

#[test]
fn a_certificate_file_is_pem() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    assert!(wrong(&[("KAFKA_SSL_CA", path)]).1.contains("PEM"));
    std::fs::write(path, "-----BEGIN CERTIFICATE-----\n").unwrap();
    // It is a certificate now, but nothing would use it.
    assert!(
        wrong(&[("KAFKA_SSL_CA", path)])
            .1
            .contains("KAFKA_SECURITY_PROTOCOL")
    );
}
