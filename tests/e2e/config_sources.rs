//! Where values come from, as an operator meets it: `.env` files, secrets, Kubernetes' variables, and what is warned
//! of.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use crate::support::{PATIENCE, Server, ServerBuilder};

/// The password with which a server of this configuration logs in to its Redis: what is sent behind `AUTH`.
#[track_caller]
fn password_sent(configured: impl FnOnce(ServerBuilder) -> ServerBuilder) -> String {
    let redis = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = redis.local_addr().expect("its address").port();
    let builder = Server::builder()
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", port);
    let _server = configured(builder).start_listening();
    let (mut socket, _) = redis.accept().expect("the server connects");
    socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let mut sent = String::new();
    loop {
        let mut bytes = [0; 1024];
        let read = socket.read(&mut bytes).expect("a command");
        assert!(read > 0, "it has closed after {sent:?}");
        sent += &String::from_utf8_lossy(&bytes[..read]);
        // *2\r\n$4\r\nAUTH\r\n$LENGTH\r\nPASSWORD\r\n
        if let Some((_, rest)) = sent.split_once("AUTH\r\n$")
            && let Some((length, rest)) = rest.split_once("\r\n")
            && let Ok(length) = length.parse::<usize>()
            && rest.len() >= length
        {
            return rest[..length].to_owned();
        }
    }
}

#[test]
fn config_a_password_in_the_file_is_taken_literally() {
    for (line, password) in [
        ("REDIS_PASSWORD=pa$ss", "pa$ss"),
        ("REDIS_PASSWORD=pa${PATH}ss\\n", "pa${PATH}ss\\n"),
        ("REDIS_PASSWORD=pa#ss", "pa#ss"),
        ("REDIS_PASSWORD='pa #ss'", "pa #ss"),
        ("REDIS_PASSWORD=\"pa$ss\"\r", "pa$ss"),
    ] {
        let sent = password_sent(|builder| builder.file(".env", &format!("{line}\n")));
        assert_eq!(sent, password, "{line}");
    }
}

#[test]
fn config_a_password_in_the_environment_is_taken_literally_without_its_line_break() {
    for (given, password) in [
        ("pa$ss\n", "pa$ss"),
        (" p#a ss ", " p#a ss "),
        ("pa%41:@/?ss", "pa%41:@/?ss"),
    ] {
        let sent = password_sent(|builder| builder.env("REDIS_PASSWORD", given));
        assert_eq!(sent, password, "{given:?}");
    }
}

#[test]
fn config_ambiguous_values_in_the_file_are_refused_by_name() {
    for line in [
        "REDIS_PASSWORD=hunter2 #ss",
        "REDIS_PASSWORD='hunter2",
        "REDIS_PASSWORD=\"hunter2\\x\"",
        "REDIS_PASSWORD=hunter2\nREDIS_PASSWORD=hunter3",
    ] {
        let exit = Server::builder()
            .file(".env", &format!("REDIS_HOST=redis\n{line}\n"))
            .arg("--check-config")
            .run();
        assert_eq!(exit.code, Some(64), "{line}: {exit:?}");
        assert!(exit.stderr.contains("REDIS_PASSWORD"), "{line}: {exit:?}");
        assert!(exit.stderr.contains("line 2"), "{line}: {exit:?}");
        assert!(!exit.stderr.contains("hunter"), "{line}: {exit:?}");
    }
}

#[test]
fn config_kubernetes_service_links_count_as_unset() {
    let link = "tcp://10.96.12.7:6379";
    let linked = || {
        Server::builder()
            .env("REDIS_PORT", link)
            .env("WS_PORT", link)
            .env("KAFKA_PORT", link)
            .env("REDIS_SERVICE_HOST", "10.96.12.7")
            .env("REDIS_PORT_6379_TCP_ADDR", "10.96.12.7")
    };
    let exit = linked().arg("--check-config").run();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("enableServiceLinks"), "{exit:?}");

    // The second listener is at its default, which may be taken here: a flag sets it.
    let server = linked().arg("--ws-port=").start();
    let line = server.wait_log("enableServiceLinks");
    assert!(
        line.contains("REDIS_PORT=tcp") && line.contains("WS_PORT=tcp"),
        "{line}"
    );
    assert!(!server.log().iter().any(|line| line.contains("is not a variable")));
    assert_eq!(server.health()["redis"]["mode"], "embedded");
}

#[test]
fn config_questionable_values_cause_warnings() {
    let server = Server::builder()
        .env("KAFKA_BROKRS", "kafka:9092")
        .env("KAFKA_HEAP_OPTS", "-Xmx1g")
        .env("ENVIRONMENT", "production")
        .start();
    let line = server.wait_log("KAFKA_BROKRS");
    assert!(line.contains("WARN") && line.contains("KAFKA_BROKERS"), "{line}");
    server.wait_log("ALLOWED_ORIGINS=*");
    assert!(!server.log().iter().any(|line| line.contains("KAFKA_HEAP_OPTS")));
}

#[test]
fn config_the_version_and_the_limits_are_logged_at_the_start() {
    let server = Server::builder().env("MAX_CONNECTIONS", 77).start();
    let line = server.wait_log("livechat-ws starts");
    assert!(line.contains(env!("CARGO_PKG_VERSION")), "{line}");
    let line = server.wait_log(" limits ");
    assert!(line.contains("MAX_CONNECTIONS=77 "), "{line}");
    assert!(
        line.contains(&format!("SEND_TIMEOUT={:?} ", Duration::from_secs(10))),
        "{line}"
    );
}
