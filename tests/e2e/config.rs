//! Configuration as an operator meets it: `--help`, `--check-config`, wrong values, sources, busy ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::support::{Exit, Server, ServerBuilder};

/// Every variable of the contract.
const VARIABLES: [&str; 67] = [
    "PORT",
    "WS_PORT",
    "HOST",
    "ADMIN_ADDR",
    "ENVIRONMENT",
    "ALLOWED_ORIGINS",
    "ALLOW_CREDENTIALS",
    "JWT_SECRET",
    "JWT_SECRET_FILE",
    "JWT_PUBLIC_KEY",
    "JWT_PUBLIC_KEY_FILE",
    "JWKS_FILE",
    "JWKS_URL",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
    "JWT_LEEWAY",
    "JWT_CLAIM_USER",
    "JWT_CLAIM_ROLE",
    "JWT_CLAIM_SESSIONS",
    "API_KEYS",
    "API_KEYS_FILE",
    "AUTH_FAILURES_PER_MINUTE",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "REDIS_URL",
    "KAFKA_BROKERS",
    "KAFKA_BROKER",
    "KAFKA_TOPIC_MESSAGES",
    "KAFKA_TOPIC_TYPING",
    "KAFKA_TOPIC_STATUS",
    "KAFKA_TOPIC_CONTROL",
    "KAFKA_SECURITY_PROTOCOL",
    "KAFKA_SASL_MECHANISM",
    "KAFKA_SASL_USERNAME",
    "KAFKA_SASL_PASSWORD",
    "KAFKA_SASL_PASSWORD_FILE",
    "KAFKA_SSL_CA",
    "NODE_ID",
    "PRESENCE_TTL",
    "PRESENCE_FLUSH",
    "PRESENCE_GRACE",
    "DRAIN_TIMEOUT",
    "TRUSTED_PROXIES",
    "SESSION_ID_FORMAT",
    "FANOUT_IO",
    "MAX_RECORD_BYTES",
    "KAFKA_TOPIC_PARTITIONS",
    "KAFKA_PACE",
    "KAFKA_TOPIC_REPLICATION",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "MAX_MESSAGE_BYTES",
    "SEND_QUEUE_BYTES",
    "SEND_MEMORY_BYTES",
    "SEND_TIMEOUT",
    "RATE_LIMIT_MESSAGES",
    "RATE_LIMIT_BURST",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_IP",
    "MAX_CONNECTIONS_PER_USER",
    "PING_INTERVAL",
    "PONG_TIMEOUT",
    "check-config",
    "help",
    "version",
];

/// A free port, below the kernel's ephemeral range so that it is not assigned meanwhile.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The builder without anything set, so that the defaults count.
fn bare() -> ServerBuilder {
    let bare = Server::builder();
    ["PORT", "WS_PORT", "HOST", "ADMIN_ADDR"]
        .into_iter()
        .fold(bare, ServerBuilder::env_remove)
}

#[track_caller]
fn check(builder: ServerBuilder) -> Exit {
    builder.arg("--check-config").run()
}

#[test]
fn config_help_lists_every_variable_with_its_default() {
    let exit = bare().arg("--help").run();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    for name in VARIABLES {
        assert!(
            exit.stdout.contains(name),
            "--help does not mention {name}:\n{}",
            exit.stdout
        );
    }
    let defaults = [
        "8082",
        "8081",
        "0.0.0.0",
        "127.0.0.1:9464",
        "development",
        "6379",
        "chat-messages",
        "typing-indicators",
        "connection-status",
        "plaintext",
        "60s",
        "30s",
        "1048576",
        "info",
        "text",
        "65536",
        "10s",
        "25s",
    ];
    for default in defaults {
        assert!(
            exit.stdout.contains(default),
            "--help does not mention {default}:\n{}",
            exit.stdout
        );
    }
}

#[test]
fn config_check_accepts_the_defaults_and_exits() {
    let exit = check(bare());
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(!exit.stderr.contains("listening"), "{exit:?}");
}

#[test]
fn config_check_accepts_every_documented_variable() {
    for (name, value) in [
        ("REDIS_HOST", "redis.internal"),
        ("REDIS_URL", "redis://:secret@redis.internal:6380/2"),
        ("KAFKA_BROKERS", "a:9092,b:9092"),
        ("KAFKA_BROKER", "a:9092"),
        ("ENVIRONMENT", "production"),
        ("SESSION_ID_FORMAT", "uuid"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
        ("RATE_LIMIT_MESSAGES", "0"),
        ("PRESENCE_TTL", "500s"),
        ("SEND_TIMEOUT", "500ms"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.1"),
        ("WS_PORT", "8082"),
        ("WS_PORT", ""),
    ] {
        let exit = check(bare().env(name, value));
        assert_eq!(exit.code, Some(0), "{name}={value}: {exit:?}");
    }
}

#[test]
fn config_check_accepts_redis_over_tls() {
    let exit = check(bare().env("REDIS_URL", "rediss://:secret@redis.internal:6380"));
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

#[test]
fn config_a_wrong_value_exits_64_and_is_named() {
    for (name, value, accepted) in [
        ("PORT", "70000", "65535"),
        ("PORT", "eighty", "65535"),
        ("WS_PORT", "-1", "65535"),
        ("HOST", "not a host", "address"),
        ("ADMIN_ADDR", "9464", "127.0.0.1:9464"),
        ("ENVIRONMENT", "staging", "production"),
        ("ALLOW_CREDENTIALS", "maybe", "true"),
        ("SESSION_ID_FORMAT", "ulid", "uuid"),
        ("FANOUT_IO", "epoll", "uring"),
        ("LOG_FORMAT", "xml", "json"),
        ("PRESENCE_TTL", "60", "25s"),
        ("PING_INTERVAL", "soon", "25s"),
        ("SEND_TIMEOUT", "-1s", "s"),
        ("MAX_MESSAGE_BYTES", "64k", "67108864"),
        ("RATE_LIMIT_MESSAGES", "-5", "0"),
        ("KAFKA_BROKERS", "a:b:c", "host:port"),
        ("KAFKA_SECURITY_PROTOCOL", "magic", "plaintext"),
        ("TRUSTED_PROXIES", "10.0.0.0/99", "10.0.0.0"),
        ("MAX_RECORD_BYTES", "1048577", "SEND_QUEUE_BYTES"),
        ("LOG_LEVEL", "chatty", "info"),
    ] {
        for exit in [
            check(bare().env(name, value)),
            Server::builder().env(name, value).run(),
        ] {
            assert_eq!(exit.code, Some(64), "{name}={value}: {exit:?}");
            let named = exit
                .stderr
                .lines()
                .any(|line| line.contains(name) && line.contains(value));
            assert!(named, "{name}={value}: {exit:?}");
            assert!(
                exit.stderr.contains(accepted),
                "{name}={value} accepts {accepted}: {exit:?}"
            );
        }
    }
}

#[test]
fn config_all_wrong_values_are_named_at_once() {
    let exit = check(
        bare()
            .env("PORT", "x1")
            .env("LOG_FORMAT", "y2")
            .env("PING_INTERVAL", "z3"),
    );
    assert_eq!(exit.code, Some(64));
    for (name, value) in [("PORT", "x1"), ("LOG_FORMAT", "y2"), ("PING_INTERVAL", "z3")] {
        assert!(
            exit.stderr
                .lines()
                .any(|line| line.contains(name) && line.contains(value)),
            "{name}: {exit:?}"
        );
    }
}

#[test]
fn config_an_unknown_flag_exits_64() {
    let exit = bare().arg("--no-such-flag").run();
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(exit.stderr.contains("--no-such-flag"), "{exit:?}");
}

#[test]
fn config_passwords_are_never_printed() {
    let secret = "hunter2-secret";
    for builder in [
        bare().env("REDIS_URL", format!("http://:{secret}@localhost")),
        bare()
            .env("REDIS_HOST", "localhost")
            .env("REDIS_PASSWORD", secret)
            .env("REDIS_PORT", "nonsense"),
        bare()
            .env("KAFKA_SASL_PASSWORD", secret)
            .env("KAFKA_SECURITY_PROTOCOL", "nonsense"),
        bare().env("REDIS_PASSWORD", secret).arg("--help"),
    ] {
        let exit = check(builder);
        assert!(
            !exit.stderr.contains(secret) && !exit.stdout.contains(secret),
            "{exit:?}"
        );
    }
}

#[test]
fn config_a_missing_secret_file_or_one_with_its_variable_set_exits_64() {
    let with_file = || {
        bare()
            .env("REDIS_HOST", "localhost")
            .env("REDIS_PASSWORD_FILE", "password")
    };
    let exit = check(with_file());
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(
        exit.stderr
            .contains("REDIS_PASSWORD_FILE: expected a readable file")
            && !exit.stderr.contains("\"password\""),
        "{exit:?}"
    );
    assert_eq!(check(with_file().file("password", "hunter2\n")).code, Some(0));
    let exit = check(
        with_file()
            .file("password", "hunter2\n")
            .env("REDIS_PASSWORD", "hunter3"),
    );
    assert_eq!(exit.code, Some(64), "{exit:?}");
    let line = exit
        .stderr
        .lines()
        .find(|line| line.contains("REDIS_PASSWORD_FILE"));
    assert!(
        line.is_some_and(|line| line.contains("REDIS_PASSWORD is set")),
        "{exit:?}"
    );
    assert!(!exit.stderr.contains("hunter"), "{exit:?}");
}

#[test]
fn config_flags_override_the_environment_which_overrides_the_file() {
    let node_id = |builder: ServerBuilder| builder.start().health()["node_id"].clone();
    let file = "# the file of a developer\nNODE_ID=from-file\nLOG_LEVEL=debug\n";
    assert_eq!(node_id(Server::builder().file(".env", file)), "from-file");
    let environment = || {
        Server::builder()
            .file(".env", file)
            .env("NODE_ID", "from-environment")
    };
    assert_eq!(node_id(environment()), "from-environment");
    assert_eq!(
        node_id(environment().arg("--node-id").arg("from-flag")),
        "from-flag"
    );
    assert_eq!(node_id(environment().arg("--node-id=from-flag")), "from-flag");
}

#[test]
fn config_a_wrong_value_in_the_file_exits_64() {
    let exit = check(bare().file(".env", "PING_INTERVAL=whenever\n"));
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(
        exit.stderr.contains("PING_INTERVAL") && exit.stderr.contains("whenever"),
        "{exit:?}"
    );
}

#[test]
fn config_a_busy_port_is_fatal_and_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    for (name, value) in [
        ("PORT", port.to_string()),
        ("WS_PORT", port.to_string()),
        ("ADMIN_ADDR", format!("127.0.0.1:{port}")),
    ] {
        let exit = Server::builder().env(name, value).run();
        assert!(
            exit.code.is_some_and(|code| code != 0 && code != 101),
            "{name}: {exit:?}"
        );
        let named = exit
            .stderr
            .lines()
            .any(|line| line.contains(name) && line.contains(&port.to_string()));
        assert!(named, "{name}: {exit:?}");
        assert!(!exit.stderr.contains("panicked"), "{exit:?}");
    }
}

#[test]
fn config_fatal_errors_are_logged_at_any_log_level() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    for level in ["off", "livechat_ws=off", "hyper=info"] {
        let exit = Server::builder().env("LOG_LEVEL", level).env("PORT", &port).run();
        let is_named = exit.stderr.contains("PORT") && exit.stderr.contains(&port);
        assert!(is_named && exit.code == Some(1), "{level}: {exit:?}");
    }
}

#[test]
fn config_two_servers_never_share_a_port() {
    let first = Server::start();
    let port = first.http_addr().port();
    let exit = Server::builder().env("PORT", port).run();
    assert!(exit.code.is_some_and(|code| code != 0), "{exit:?}");
    assert!(exit.stderr.contains("PORT"), "{exit:?}");
    assert_eq!(first.health()["status"], "ok");

    // Not even if the other socket allows sharing.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("set SO_REUSEPORT");
    socket
        .bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("a port");
    socket.listen(1).expect("listen");
    let port = socket
        .local_addr()
        .expect("its address")
        .as_socket()
        .expect("an IP address")
        .port();
    let exit = Server::builder().env("PORT", port).run();
    assert!(exit.code.is_some_and(|code| code != 0), "{exit:?}");
}

#[test]
fn config_a_port_is_free_again_after_a_stop() {
    // Not one that the kernel may give to somebody else meanwhile.
    let first = Server::builder().env("PORT", free_port()).start();
    let addr = first.http_addr();
    // A connection that the server closes leaves its port in TIME_WAIT.
    let _ = crate::support::Http::exchange(addr, b"GET /live HTTP/1.0\r\n\r\n");
    first.signal("TERM");
    assert_eq!(first.wait_exit(crate::support::PATIENCE), Some(0));
    let second = Server::builder().env("PORT", addr.port()).start();
    assert_eq!(second.http_addr(), addr);
}

#[test]
fn config_the_embedded_mode_is_logged_at_the_start() {
    let server = Server::start();
    server.wait_log_where("which mode it is in", |line| {
        let line = line.to_ascii_lowercase();
        line.contains("embedded") || line.contains("in this process") || line.contains("in the process")
    });
}

#[test]
fn config_json_logs_are_json() {
    let server = Server::builder().env("LOG_FORMAT", "json").start();
    server.get("/health");
    for line in server.log() {
        serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn config_healthcheck_queries_the_server_with_the_same_configuration() {
    let port = free_port();
    let check = || Server::builder().env("PORT", port).arg("--healthcheck").run();
    assert_eq!(check().code, Some(1), "nobody is there");
    let server = Server::builder().env("PORT", port).start();
    let exit = check();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    // A server that accepts but does not answer is not healthy.
    server.signal("STOP");
    let exit = check();
    server.signal("CONT");
    assert_eq!(exit.code, Some(1), "{exit:?}");
}

#[test]
fn config_serves_ipv6_too() {
    let Ok(_) = TcpListener::bind(("::1", 0)) else {
        return;
    };
    let server = Server::builder().env("HOST", "::1").start();
    assert!(server.http_addr().is_ipv6());
    assert_eq!(server.health()["status"], "ok");
}
