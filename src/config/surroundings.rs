//! The environment around our variables: misspelt names, and those that Kubernetes injects.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::{Problem, VARIABLES, Variable};

/// The part of the environment that concerns us.
#[derive(Default)]
pub(super) struct Surroundings {
    /// Our variables.
    pub(super) values: BTreeMap<String, String>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Surroundings {
    pub(super) fn read(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut read = Self::default();
        let mut links = Vec::new();
        for (name, value) in environment {
            // A name that is not UTF-8 is not one of ours.
            let Ok(name) = name.into_string() else { continue };
            let is_ours = Variable::named(&name).is_some();
            match value.into_string() {
                Ok(value) if is_service_link(&name, &value) => {
                    if is_ours {
                        links.push(format!("{name}={value}"));
                    }
                }
                Ok(value) if is_ours => {
                    read.values.insert(name, value);
                }
                Err(_) if is_ours => read.problems.push(Problem {
                    name,
                    value: None,
                    accepted: "the value is not UTF-8".to_owned(),
                }),
                _ => read.warnings.extend(unknown(&name)),
            }
        }
        if !links.is_empty() {
            read.warnings.push(format!(
                "{} was set by a Kubernetes service link and counts as unset: set enableServiceLinks: false in the \
                 pod's spec",
                links.join(", ")
            ));
        }
        read
    }
}

/// Whether Kubernetes set this variable for a service: `REDIS_PORT=tcp://10.96.12.7:6379`, and with it
/// `REDIS_SERVICE_HOST`, `REDIS_PORT_6379_TCP_ADDR` and others.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_of_port = |rest: &str| {
        let number = rest.split('_').next().unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name
        .split_once("_PORT_")
        .is_some_and(|(_, rest)| is_of_port(rest))
    {
        return true;
    }
    name.ends_with("_PORT") && is_link(value)
}

/// Exactly an address: `tcp://10.96.12.7:6379`.
fn is_link(value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .find_map(|scheme| value.strip_prefix(scheme));
    address.is_some_and(|address| address.parse::<std::net::SocketAddr>().is_ok())
}

/// Names that look like ours and belong to other programs.
const OTHERS: [&str; 3] = ["NODE_IP", "REDIS_VERSION", "KAFKA_VERSION"];

/// Our prefixes: any other name with one of them was meant for us. `KAFKA_` alone is not one: brokers use it, too.
const OURS: [&str; 15] = [
    "REDIS_",
    "KAFKA_TOPIC_",
    "KAFKA_SASL_",
    "KAFKA_SSL_",
    "KAFKA_SECURITY_",
    "KAFKA_GROUP",
    "KAFKA_CONSUMER",
    "PRESENCE_",
    "RATE_LIMIT_",
    "MAX_CONNECTIONS_",
    "SEND_QUEUE_",
    "TRUSTED_PROX",
    "ALLOWED_ORIGIN",
    "JWT_CLAIM_",
    "JWKS_",
];

/// The warning for a name that is not ours but looks like it.
pub(super) fn unknown(name: &str) -> Option<String> {
    if OTHERS.contains(&name) || name.starts_with("REDIS_DOWNLOAD_") {
        return None;
    }
    let ignored = "is not a variable of this server and is ignored";
    let plain = name.to_ascii_uppercase().replace(['-', '.'], "_");
    let closest = VARIABLES
        .iter()
        .map(|variable| (distance(&plain, variable.name), variable.name))
        .min()?;
    // One typo in a short name, two in a long one; the shortest names are too similar to others.
    let allowed = match closest.1.len() {
        ..=5 => 0,
        6..=8 => 1,
        _ => 2,
    };
    if closest.0 <= allowed {
        return Some(format!("{name} {ignored}: did you mean {}?", closest.1));
    }
    OURS.iter()
        .any(|beginning| plain.starts_with(beginning))
        .then(|| format!("{name} {ignored}: --help lists all of them"))
}

/// How many insertions, deletions, substitutions and swaps of neighbours turn one into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // Rows for the first i bytes of a: two back, one back, the current one.
    let mut rows = [
        Vec::new(),
        (0..=b.len()).collect::<Vec<_>>(),
        vec![0; b.len() + 1],
    ];
    for i in 1..=a.len() {
        rows[2][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[1][j] + 1).min(rows[2][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[0][j - 2] + 1);
            }
            rows[2][j] = least;
        }
        rows.rotate_left(1);
        rows[2].resize(b.len() + 1, 0);
    }
    rows[1][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> Surroundings {
        let pairs = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Surroundings::read(pairs)
    }

    #[test]
    fn service_links_count_as_unset() {
        let read = read(&[
            ("REDIS_PORT", "tcp://10.96.12.7:6379"),
            ("WS_PORT", "tcp://[fd00::7]:80"),
            ("KAFKA_PORT", "tcp://10.96.12.8:9092"),
            ("REDIS_SERVICE_HOST", "10.96.12.7"),
            ("REDIS_SERVICE_PORT", "6379"),
            ("REDIS_SERVICE_PORT_REDIS", "6379"),
            ("REDIS_PORT_6379_TCP", "tcp://10.96.12.7:6379"),
            ("REDIS_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PORT_6379_TCP_ADDR", "10.96.12.7"),
            ("PORT", "8000"),
        ]);
        assert_eq!(read.values.len(), 1, "{:?}", read.values);
        let [warning] = &read.warnings[..] else {
            panic!("{:?}", read.warnings)
        };
        assert!(
            warning.contains("REDIS_PORT=tcp")
                && warning.contains("WS_PORT=tcp")
                && warning.contains("enableServiceLinks"),
            "{warning}"
        );
    }

    #[test]
    fn what_only_looks_like_a_link_is_a_value() {
        for (name, value) in [
            ("REDIS_PORT", "tcp://redis:6379"),
            ("REDIS_PORT", "tcp://10.96.12.7"),
            ("REDIS_PORT", "tcp://10.96.12.7:6379/"),
            ("REDIS_PORT", "http://10.96.12.7:6379"),
            ("REDIS_HOST", "tcp://10.96.12.7:6379"),
            ("PORT", "tcp://10.96.12.7:6379"),
        ] {
            assert_eq!(
                read(&[(name, value)]).values.get(name).map(String::as_str),
                Some(value)
            );
        }
    }

    #[test]
    fn misspelt_names_cause_a_warning() {
        for (name, meant) in [
            ("KAFKA_BROKRS", "KAFKA_BROKERS"),
            ("KAFKA_BROKRES", "KAFKA_BROKERS"),
            ("REDIS_PASWORD", "REDIS_PASSWORD"),
            ("REDIS_PASSWD", "REDIS_PASSWORD"),
            ("ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
            ("LOGLEVEL", "LOG_LEVEL"),
            ("MAX_CONNECTION", "MAX_CONNECTIONS"),
            ("redis_url", "REDIS_URL"),
            ("WS-PORT", "WS_PORT"),
            ("port", "PORT"),
        ] {
            let warning = unknown(name).unwrap_or_else(|| panic!("{name} is not warned of"));
            assert!(warning.starts_with(name) && warning.contains(meant), "{warning}");
        }
        for name in [
            "REDIS_DB",
            "KAFKA_SASL_JAAS_CONFIG",
            "KAFKA_GROUP_ID",
            "RATE_LIMIT_WINDOW",
        ] {
            assert!(unknown(name).is_some(), "{name}");
        }
    }

    #[test]
    fn names_of_other_programs_are_ignored() {
        for name in [
            "PATH",
            "HOME",
            "HOSTNAME",
            "USER",
            "PWD",
            "LANG",
            "TERM",
            "SHELL",
            "EDITOR",
            "POD_IP",
            "NODE_IP",
            "NODE_NAME",
            "NODE_ENV",
            "KAFKA_HEAP_OPTS",
            "KAFKA_OPTS",
            "KAFKA_JMX_PORT",
            "KAFKA_HOME",
            "KAFKA_LOG4J_OPTS",
            "KAFKA_ADVERTISED_LISTENERS",
            "KUBERNETES_SERVICE_HOST",
            "RUST_LOG",
            "RUST_BACKTRACE",
            "TZ",
            "SSL_CERT_FILE",
            "MIMALLOC_PURGE_DELAY",
            "LOG_FILE",
            "PORTS",
            "REDIS_VERSION",
            "SSH_CLIENT",
            "COMPOSE_PROJECT_NAME",
        ] {
            assert_eq!(unknown(name), None, "{name}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("abc", "abd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }
}
