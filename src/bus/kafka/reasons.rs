//! Why brokers can't be reached, in plain words: librdkafka gives the reason only in the text of its errors.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The most brokers remembered.
const MAX_BROKERS: usize = 32;

/// The last error of each broker that a client has reported. It reports only while it is polled.
#[derive(Clone, Default)]
pub struct Reasons {
    by_broker: Arc<Mutex<BTreeMap<String, Reason>>>,
}

/// Why one broker can't be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    kind: Kind,
    /// librdkafka's message, which contains the address.
    message: String,
}

/// The kinds of reasons, the most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Password,
    Mechanism,
    Sasl,
    Untrusted,
    Tls,
    WantsTls,
    Http,
    NotKafka,
    Unresolved,
    Refused,
    Unreachable,
    HungUp,
    Silent,
    Other,
}

impl Kind {
    /// Contains no address: health shows it publicly.
    fn text(self) -> &'static str {
        match self {
            Self::Password => "wrong or missing user name or password (SASL)",
            Self::Mechanism => "the broker does not offer this SASL mechanism",
            Self::Sasl => "SASL authentication failed",
            Self::Untrusted => "the broker's TLS certificate is not trusted",
            Self::Tls => "the TLS handshake failed",
            Self::WantsTls => "the broker expects TLS",
            Self::Http => "not Kafka: an HTTP server answers at this address",
            Self::NotKafka => "not Kafka: something else answers at this address",
            Self::Unresolved => "the broker's name cannot be resolved",
            Self::Refused => "connection refused",
            Self::Unreachable => "no route to the broker",
            Self::HungUp => "the broker closes the connection: maybe not Kafka, or another security protocol",
            Self::Silent => "the broker does not answer in time",
            Self::Other => "the connection fails",
        }
    }

    fn of(code: Option<RDKafkaErrorCode>, message: &str) -> Self {
        use RDKafkaErrorCode as Code;
        let says = |what: &str| message.contains(what);
        if let Some(size) = response_size(message) {
            return match size.to_be_bytes() {
                [b'H', b'T', b'T', b'P'] => Self::Http,
                // A TLS alert: the broker expected a TLS handshake.
                [0x15, 3, ..] => Self::WantsTls,
                _ => Self::NotKafka,
            };
        }
        match code {
            Some(Code::Authentication | Code::SaslAuthenticationFailed)
                if says("mechanism") && !says("Authentication failed") =>
            {
                Self::Mechanism
            }
            Some(Code::Authentication | Code::SaslAuthenticationFailed)
                if says("Authentication failed") || says("nvalid") || says("credential") =>
            {
                Self::Password
            }
            Some(Code::Authentication | Code::SaslAuthenticationFailed) => Self::Sasl,
            Some(Code::UnsupportedSASLMechanism) => Self::Mechanism,
            Some(Code::SSL)
                if says("certificate verify failed") || says("certificate could not be verified") =>
            {
                Self::Untrusted
            }
            Some(Code::SSL) => Self::Tls,
            Some(Code::Resolve) => Self::Unresolved,
            _ if says("Failed to resolve") => Self::Unresolved,
            _ if says("Connection refused") => Self::Refused,
            _ if says("unreachable") || says("No route to host") => Self::Unreachable,
            _ if says("imed out") || says("timeout") => Self::Silent,
            _ if says("isconnected") => Self::HungUp,
            _ => Self::Other,
        }
    }
}

/// The response size in the message. If the peer is not Kafka, these are the first four bytes it sent.
fn response_size(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("Invalid response size ")?;
    let size = rest.split([' ', ':']).next()?.parse::<i64>().ok()?;
    // librdkafka prints it as a signed number.
    Some(size as u32)
}

impl Reasons {
    fn note(&self, error: &KafkaError, message: &str) {
        // `tls://10.0.0.1:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms …)`.
        // A message that names no broker only summarizes others.
        let Some((broker, _)) = message.split_once(": ") else {
            return;
        };
        if !broker.contains(':') || broker.contains(' ') {
            return;
        }
        let kind = Kind::of(error.rdkafka_error_code(), message);
        let mut by_broker = self.by_broker.lock();
        if let Some(known) = by_broker.get_mut(broker) {
            // The newest wins, but a vague reason does not replace a specific one: a broker that refuses a password
            // then closes the connection.
            let is_vague = kind >= Kind::HungUp;
            if !(is_vague && known.kind < Kind::Unresolved) {
                *known = Reason {
                    kind,
                    message: message.to_owned(),
                };
            }
        } else if by_broker.len() < MAX_BROKERS {
            by_broker.insert(
                broker.to_owned(),
                Reason {
                    kind,
                    message: message.to_owned(),
                },
            );
        }
    }

    /// Forgets all reasons: the brokers answer.
    pub fn clear(&self) {
        self.by_broker.lock().clear();
    }

    /// The most specific reason.
    pub fn first(&self) -> Option<Reason> {
        self.by_broker
            .lock()
            .values()
            .min_by_key(|reason| reason.kind)
            .cloned()
    }
}

impl Reason {
    /// Public: contains no address.
    pub fn text(&self) -> &'static str {
        self.kind.text()
    }

    /// For the log: contains the address.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// librdkafka repeats its messages while a broker is down, so they are logged at debug level; the monitor logs each
/// cause once.
impl ClientContext for Reasons {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
        self.note(&error, reason);
    }
}

impl ConsumerContext for Reasons {}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_for(errors: &[(RDKafkaErrorCode, &str)]) -> Option<&'static str> {
        let reasons = Reasons::default();
        for (code, message) in errors {
            reasons.note(&KafkaError::Global(*code), message);
        }
        reasons.first().map(|reason| reason.text())
    }

    #[test]
    fn librdkafka_messages_map_to_reasons() {
        use RDKafkaErrorCode as Code;
        let cases = [
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                "connection refused",
            ),
            (
                Code::Resolve,
                "nowhere.invalid:9092/bootstrap: Failed to resolve 'nowhere.invalid:9092': Name or service not known",
                "the broker's name cannot be resolved",
            ),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:80/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000): increase \
                 receive.message.max.bytes",
                "not Kafka: an HTTP server answers at this address",
            ),
            (
                Code::BadMessage,
                "127.0.0.1:80/bootstrap: Invalid response size 352518912 (0..100000000)",
                "the broker expects TLS",
            ),
            (
                Code::BadMessage,
                "127.0.0.1:80/bootstrap: Invalid response size -1684234850 (0..100000000)",
                "not Kafka: something else answers at this address",
            ),
            (
                Code::Authentication,
                "sasl_plaintext://127.0.0.1:9092/bootstrap: SASL authentication error: Authentication failed: Invalid \
                 username or password (after 300ms in state AUTH_REQ)",
                "wrong or missing user name or password (SASL)",
            ),
            (
                Code::Authentication,
                "sasl_plaintext://127.0.0.1:9092/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Unsupported \
                 SASL mechanism: broker's supported mechanisms: SCRAM-SHA-512",
                "the broker does not offer this SASL mechanism",
            ),
            (
                Code::SSL,
                "ssl://127.0.0.1:9092/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify \
                 failed: broker certificate could not be verified",
                "the broker's TLS certificate is not trusted",
            ),
            (
                Code::BrokerTransportFailure,
                "127.0.0.1:9092/1: 1 request(s) timed out: disconnect (average rtt 2.0ms) (after 9000ms in state UP)",
                "the broker does not answer in time",
            ),
        ];
        for (code, message, text) in cases {
            assert_eq!(reason_for(&[(code, message)]), Some(text), "{message}");
        }
        assert_eq!(
            reason_for(&[(Code::AllBrokersDown, "1/1 brokers are down")]),
            None
        );
    }

    #[test]
    fn the_most_specific_reason_is_reported() {
        use RDKafkaErrorCode as Code;
        let silent = (
            Code::OperationTimedOut,
            "a:1/bootstrap: ApiVersionRequest failed: Local: Timed out",
        );
        let refused = (
            Code::BrokerTransportFailure,
            "b:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
        );
        assert_eq!(reason_for(&[refused, silent]), Some("connection refused"));
        assert_eq!(reason_for(&[silent, refused]), Some("connection refused"));
        let wrong = (
            Code::Authentication,
            "a:1/bootstrap: SASL authentication error: Authentication failed",
        );
        let password = Some("wrong or missing user name or password (SASL)");
        assert_eq!(
            reason_for(&[wrong, silent]),
            password,
            "the timeout is a consequence"
        );
        let again = (
            Code::BrokerTransportFailure,
            "a:1/bootstrap: Connect to a failed: Connection refused",
        );
        assert_eq!(
            reason_for(&[again, silent]),
            Some("the broker does not answer in time")
        );
    }
}
