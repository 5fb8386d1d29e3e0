//! Tests of the configuration as a whole, on a machine that always has the same name and limits.

use std::collections::HashMap;

use super::super::read_redis::redis_tls;
use super::super::{RedisConfig, Sasl, SaslMechanism, VARIABLES, Variable};
use super::*;
use crate::secret::Secret;

fn machine() -> Machine {
    Machine {
        descriptors: 10_000,
        hostname: "chat host".to_owned(),
        memory: Some(8 << 30),
    }
}

pub(super) fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let map: HashMap<String, String> = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    for name in map.keys() {
        assert!(Variable::named(name).is_some(), "{name} is not in the table");
    }
    config(&|name| map.get(name).cloned(), &machine())
}

/// Reads what must be wrong, and returns the names of the wrong variables and the whole message.
pub(super) fn wrong(pairs: &[(&str, &str)]) -> (Vec<String>, String) {
    let error = read(pairs).unwrap_err();
    (
        error.names().into_iter().map(str::to_owned).collect(),
        error.to_string(),
    )
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = read(&[]).unwrap();
    assert_eq!((config.port, config.ws_port), (8082, Some(8081)));
    assert_eq!(config.host.to_string(), "0.0.0.0");
    assert_eq!(config.admin_addr.unwrap().to_string(), "127.0.0.1:9464");
    assert_eq!(config.environment, Environment::Development);
    assert_eq!(
        (config.allowed_origins, config.allow_credentials),
        (Origins::Any, false)
    );
    assert_eq!((config.redis, config.kafka), (None, None));
    assert_eq!(config.node_id, "chat-host");
    assert_eq!(config.presence_ttl, Duration::from_secs(60));
    assert_eq!(config.presence_flush, Duration::from_millis(10));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.max_record_bytes, 1_048_576);
    assert_eq!(
        (config.log_level.as_str(), config.log_format),
        ("info", LogFormat::Text)
    );
    assert_eq!(
        config.limits,
        Limits {
            max_message_bytes: 65_536,
            send_queue_bytes: 1_048_576,
            send_memory_bytes: 2 << 30,
            send_timeout: Duration::from_secs(10),
            rate_limit_messages: 20,
            rate_limit_burst: 40,
            max_connections: 9_500,
            max_connections_per_ip: 0,
            max_connections_per_user: 0,
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
        }
    );
}

#[test]
fn empty_variables_count_as_unset_except_for_the_two_listeners() {
    let all: Vec<(&str, &str)> = VARIABLES.iter().map(|variable| (variable.name, "")).collect();
    let empty = read(&all).unwrap();
    assert_eq!((empty.ws_port, empty.admin_addr), (None, None));
    let unset = read(&[]).unwrap();
    assert_eq!(
        Config {
            ws_port: unset.ws_port,
            admin_addr: unset.admin_addr,
            ..empty
        },
        unset
    );
}

#[test]
fn every_default_in_the_table_is_accepted_when_written_out() {
    let all: Vec<(&str, &str)> = VARIABLES
        .iter()
        .filter(|variable| variable.name != "KAFKA_SASL_MECHANISM")
        .map(|variable| (variable.name, variable.default))
        .collect();
    assert_eq!(read(&all), read(&[]));
}

#[test]
fn every_variable_is_read() {
    // Nonsense for each variable: only these few may accept it.
    let free_text = ["REDIS_PASSWORD", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"];
    for variable in VARIABLES {
        let (names, message) = wrong(&[(variable.name, "\u{1}!")]);
        assert!(
            names.iter().any(|name| name == variable.name),
            "{}: {message}",
            variable.name
        );
        let secret = variable.name.strip_suffix("_FILE").and_then(Variable::named);
        let is_secrets_file = secret.is_some_and(|variable| variable.secret);
        if !free_text.contains(&variable.name) && !is_secrets_file {
            assert_eq!(message.contains("\\u{1}!"), !variable.secret, "{message}");
        }
    }
}

#[test]
fn all_problems_are_reported_at_once_in_the_tables_order() {
    let (names, message) = wrong(&[
        ("LOG_FORMAT", "xml"),
        ("PORT", "99999"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("PING_INTERVAL", "10"),
        ("HOST", "localhost:1"),
    ]);
    assert_eq!(
        names,
        ["PORT", "HOST", "TRUSTED_PROXIES", "LOG_FORMAT", "PING_INTERVAL"]
    );
    assert!(
        message.contains("PORT=\"99999\": expected an integer from 0 to 65535"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 6);
}

#[test]
fn the_second_port() {
    assert_eq!(read(&[("WS_PORT", "8082")]).unwrap().ws_port, None);
    assert_eq!(read(&[("WS_PORT", " ")]).unwrap().ws_port, None);
    assert_eq!(read(&[("PORT", "0"), ("WS_PORT", "0")]).unwrap().ws_port, None);
    assert_eq!(read(&[("PORT", "1"), ("WS_PORT", "0")]).unwrap().ws_port, Some(0));
    assert_eq!(wrong(&[("ADMIN_ADDR", "127.0.0.1:8082")]).0, ["ADMIN_ADDR"]);
    assert_eq!(
        wrong(&[("ADMIN_ADDR", "0.0.0.0:8081"), ("HOST", "127.0.0.1")]).0,
        ["ADMIN_ADDR"]
    );
    assert!(read(&[("ADMIN_ADDR", "127.0.0.2:8082"), ("HOST", "127.0.0.1")]).is_ok());
}

#[test]
fn any_origin_with_credentials_is_for_development_only() {
    let credentials = ("ALLOW_CREDENTIALS", "true");
    assert!(read(&[credentials]).is_ok());
    assert_eq!(
        wrong(&[credentials, ("ENVIRONMENT", "production")]).0,
        ["ALLOW_CREDENTIALS"]
    );
    let listed = [
        credentials,
        ("ENVIRONMENT", "Production"),
        ("ALLOWED_ORIGINS", "https://a.example"),
    ];
    assert_eq!(read(&listed).unwrap().environment, Environment::Production);
}

#[test]
fn redis_url_wins_over_its_parts() {
    let url = |pairs: &[(&str, &str)]| read(pairs).unwrap().redis.map(|redis| redis.url);
    assert_eq!(url(&[("REDIS_PORT", "6380")]), None);
    assert_eq!(url(&[("REDIS_HOST", "cache")]).unwrap(), "redis://cache:6379");
    assert_eq!(
        url(&[("REDIS_HOST", "::1"), ("REDIS_PORT", "1")]).unwrap(),
        "redis://[::1]:1"
    );
    assert_eq!(
        url(&[("REDIS_HOST", "cache"), ("REDIS_URL", "redis://other/2")]).unwrap(),
        "redis://other/2"
    );
    assert_eq!(wrong(&[("REDIS_PASSWORD", "x")]).0, ["REDIS_PASSWORD"]);
    for host in ["cache:6379", "a b", "redis://cache", "a/b"] {
        assert_eq!(wrong(&[("REDIS_HOST", host)]).0, ["REDIS_HOST"], "{host:?}");
    }
    for url in [
        "http://cache",
        "cache:6379",
        "redis://",
        "redis://cache:port",
        "redis://cache/db",
    ] {
        assert_eq!(wrong(&[("REDIS_URL", url)]).0, ["REDIS_URL"], "{url:?}");
    }
}

#[test]
fn a_password_is_taken_as_it_is() {
    let config = read(&[("REDIS_HOST", "cache"), ("REDIS_PASSWORD", " p@:/% ß$ss")]).unwrap();
    let redis = config.redis.unwrap();
    assert_eq!(&*redis.password.unwrap().value(), " p@:/% ß$ss");
    assert_eq!(redis.url, "redis://cache:6379");
}

/// A file with this in it, and the folder that goes with it.
fn file(content: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn a_secret_may_come_from_a_file() {
    let (_dir, path) = file("pa$ss \n");
    let password = |pairs: &[(&str, &str)]| {
        let redis = read(pairs).unwrap().redis.unwrap();
        redis.password.map(|password| password.value().to_string())
    };
    let of_file = ("REDIS_PASSWORD_FILE", path.as_str());
    assert_eq!(password(&[("REDIS_HOST", "cache"), of_file]).unwrap(), "pa$ss ");
    assert_eq!(
        password(&[("REDIS_URL", "rediss://cache"), of_file]).unwrap(),
        "pa$ss "
    );
    // The URL overrides the variable, and a file beside its own password is a contradiction.
    assert_eq!(
        password(&[("REDIS_URL", "redis://cache"), ("REDIS_PASSWORD", "x")]),
        None
    );
    let (names, message) = wrong(&[("REDIS_URL", "redis://:hunter2@cache"), of_file]);
    assert_eq!(names, ["REDIS_PASSWORD_FILE"]);
    assert!(
        message.contains("REDIS_URL") && !message.contains("hunter2"),
        "{message}"
    );
    assert_eq!(wrong(&[of_file]).0, ["REDIS_PASSWORD_FILE"], "without a host");
}

#[test]
fn a_secret_and_its_file_exclude_each_other() {
    let (dir, path) = file("hunter2");
    let missing = dir.path().join("missing");
    for (name, of_file) in [
        ("REDIS_PASSWORD", "REDIS_PASSWORD_FILE"),
        ("KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD_FILE"),
    ] {
        let host = ("REDIS_HOST", "cache");
        let (names, message) = wrong(&[host, (name, "hunter3"), (of_file, &path)]);
        assert!(names.contains(&of_file.to_owned()), "{names:?}");
        let line = message.lines().find(|line| line.contains(of_file)).unwrap();
        assert!(line.contains(&format!("{name} is set")), "{line}");
        assert!(!message.contains("hunter"), "{message}");
        let (names, message) = wrong(&[host, (of_file, missing.to_str().unwrap())]);
        assert!(names.contains(&of_file.to_owned()), "{names:?}");
        assert!(message.contains("/missing"), "{message}");
    }
}

#[test]
fn tls_for_redis_is_accepted_or_clearly_refused() {
    let url = [("REDIS_URL", "rediss://:hunter2@cache")];
    if redis_tls() {
        assert_eq!(
            read(&url).unwrap().redis.unwrap().redacted(),
            "rediss://:***@cache"
        );
    } else {
        let (names, message) = wrong(&url);
        assert_eq!(names, ["REDIS_URL"]);
        assert!(
            message.contains("no TLS for Redis") && !message.contains("hunter2"),
            "{message}"
        );
    }
}

#[test]
fn secrets_are_never_shown() {
    let redis = RedisConfig {
        url: "redis://bob:hunter2@cache:1/3?x=hunter2".to_owned(),
        password: Some(Secret::fixed("hunter2".to_owned())),
    };
    assert_eq!(redis.redacted(), "redis://bob:***@cache:1/3");
    let sasl = Sasl {
        mechanism: SaslMechanism::Plain,
        username: "bob".into(),
        password: Secret::fixed("hunter2".to_owned()),
    };
    let shown = format!(
        "{redis:?} {sasl:?} {:?}",
        RedisConfig {
            url: "hunter2".into(),
            password: None,
        }
    );
    assert!(shown.contains("bob") && !shown.contains("hunter2"), "{shown}");
    for name in ["REDIS_URL", "REDIS_PASSWORD", "KAFKA_SASL_PASSWORD"] {
        let message = wrong(&[(name, "hunter2")]).1;
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_record_must_fit_into_a_queue() {
    let unset = read(&[("SEND_QUEUE_BYTES", "65536")]).unwrap();
    assert_eq!(unset.max_record_bytes, 65_536);
    let unset = read(&[("SEND_QUEUE_BYTES", "2097152"), ("MAX_RECORD_BYTES", "")]).unwrap();
    assert_eq!(unset.max_record_bytes, 1_048_576);
    let (names, message) = wrong(&[("SEND_QUEUE_BYTES", "65536"), ("MAX_RECORD_BYTES", "65537")]);
    assert_eq!(names, ["MAX_RECORD_BYTES"]);
    assert!(
        message.contains("65537") && message.contains("SEND_QUEUE_BYTES (65536)"),
        "{message}"
    );
    assert!(read(&[("SEND_QUEUE_BYTES", "65536"), ("MAX_RECORD_BYTES", "65536")]).is_ok());
    assert_eq!(wrong(&[("MAX_RECORD_BYTES", "1048577")]).0, ["MAX_RECORD_BYTES"]);
}

#[test]
fn all_queues_together_have_a_limit() {
    let limit = |value| read(&[("SEND_MEMORY_BYTES", value)]).map(|config| config.limits.send_memory_bytes);
    assert_eq!(limit("100000").unwrap(), 100_000);
    assert_eq!(limit("").unwrap(), 2 << 30);
    for bad in ["0", "65535", "1G"] {
        assert_eq!(limit(bad).unwrap_err().names(), ["SEND_MEMORY_BYTES"]);
    }
}

#[test]
fn the_grace_fits_into_the_ttl() {
    let grace = |pairs: &[(&str, &str)]| read(pairs).map(|config| config.presence_grace.as_millis());
    assert_eq!(grace(&[]).unwrap(), 2000);
    assert_eq!(grace(&[("PRESENCE_GRACE", "0s")]).unwrap(), 0);
    assert_eq!(
        grace(&[("PRESENCE_TTL", "1s")]).unwrap(),
        1000,
        "unset, it follows"
    );
    let (names, text) = wrong(&[("PRESENCE_TTL", "5s"), ("PRESENCE_GRACE", "6s")]);
    assert_eq!(names, ["PRESENCE_GRACE"]);
    assert!(text.contains("PRESENCE_TTL (5s)"), "{text}");
}

#[test]
fn a_pong_comes_before_the_next_ping() {
    let limits = read(&[("PING_INTERVAL", "2s")]).unwrap().limits;
    assert_eq!(
        (limits.ping_interval, limits.pong_timeout),
        (2 * SECOND, 2 * SECOND)
    );
    assert_eq!(wrong(&[("PONG_TIMEOUT", "26s")]).0, ["PONG_TIMEOUT"]);
    assert_eq!(wrong(&[("PONG_TIMEOUT", "0s")]).0, ["PONG_TIMEOUT"]);
    assert_eq!(
        wrong(&[("PRESENCE_TTL", "1s"), ("PRESENCE_FLUSH", "300ms")]).0,
        ["PRESENCE_FLUSH"]
    );
}

#[test]
fn either_zero_turns_the_rate_limit_off() {
    for name in ["RATE_LIMIT_MESSAGES", "RATE_LIMIT_BURST"] {
        let limits = read(&[(name, "0")]).unwrap().limits;
        assert_eq!((limits.rate_limit_messages, limits.rate_limit_burst), (0, 0));
    }
}

#[test]
fn connections_fit_the_descriptors() {
    assert_eq!(
        read(&[("MAX_CONNECTIONS", "7")]).unwrap().limits.max_connections,
        7
    );
    assert_eq!(
        read(&[("MAX_CONNECTIONS", "0")]).unwrap().limits.max_connections,
        9_500
    );
    let (names, message) = wrong(&[("MAX_CONNECTIONS", "9501")]);
    assert_eq!(names, ["MAX_CONNECTIONS"]);
    assert!(
        message.contains("from 0 to 9500") && message.contains("10000"),
        "{message}"
    );
    let small = |descriptors| {
        config(
            &|_| None,
            &Machine {
                descriptors,
                hostname: String::new(),
                memory: None,
            },
        )
    };
    assert_eq!(small(1024).unwrap().limits.max_connections, 960);
    assert_eq!(small(1024).unwrap().limits.send_memory_bytes, 256 << 20);
    assert_eq!(small(65).unwrap().limits.max_connections, 1);
    assert_eq!(small(64).unwrap_err().names(), ["MAX_CONNECTIONS"]);
    assert_eq!(
        small(64)
            .unwrap_err()
            .to_string()
            .matches("MAX_CONNECTIONS")
            .count(),
        1
    );
}

#[test]
fn this_machine_has_limits_and_a_name() {
    let machine = Machine::this();
    assert!(machine.descriptors > 0 && machine.descriptors <= MOST_DESCRIPTORS);
    assert!(Config::from_lookup(&|_| None).is_ok());
}
