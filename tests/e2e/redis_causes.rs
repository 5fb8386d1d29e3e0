//! Redis is not available, for various reasons: health and the log name the cause, once for each outage, and health
//! shows no address and no user.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::services::PrivateRedis;
use crate::support::server::field;
use crate::support::{Server, eventually};

const USER: &str = "somebody";
const PASSWORD: &str = "hunter2-secret";

/// A server whose Redis is at `url`, which is not available, and why.
#[track_caller]
fn assert_cause(url: &str, address: &str, cause: &str) -> Server {
    let server = Server::builder().env("REDIS_URL", url).start_listening();
    eventually(cause, || {
        let detail = server.health()["redis"]["detail"].clone();
        detail.as_str().is_some_and(|detail| detail.contains(cause))
    });
    let health = server.health();
    assert_eq!(health["status"], "degraded", "{health}");
    let line = server.wait_log("Redis is not available");
    assert!(line.contains(cause), "{cause}: {line}");
    assert_eq!(field(&line, "address").as_deref(), Some(address), "{line}");
    // It is tried again, and logged once.
    assert_secret(&server, &health.to_string(), address);
    server
}

#[track_caller]
fn assert_secret(server: &Server, health: &str, address: &str) {
    for secret in [PASSWORD, USER, address] {
        assert!(!health.contains(secret), "{health}");
    }
    assert!(!server.log().iter().any(|line| line.contains(PASSWORD)));
    let told = server
        .log()
        .iter()
        .filter(|line| line.contains("Redis is not available"))
        .count();
    assert_eq!(told, 1, "once for an outage");
}

/// Somebody who answers every connection with these bytes, whatever it sends, and keeps it open or not. Kept open, it
/// answers more commands than are asked.
fn answering(answer: &'static [u8], closes: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut asked = [0; 4096];
            if !answer.is_empty() {
                let _ = socket.read(&mut asked);
                let answers = if closes { 1 } else { 50 };
                let _ = socket.write_all(&answer.repeat(answers));
            }
            if !closes {
                open.push(socket);
            }
        }
    });
    address
}

#[test]
fn connection_errors_are_named() {
    let refused = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = refused.local_addr().expect("its address").to_string();
    drop(refused);
    assert_cause(
        &format!("redis://{address}"),
        &address,
        "the connection is refused",
    );
    let name = "no-such-host.invalid:6379";
    assert_cause(&format!("redis://{name}"), name, "its name can't be resolved");
}

#[test]
fn error_answers_are_named() {
    for (answer, closes, cause) in [
        (&b""[..], false, "it does not answer in time"),
        (b"", true, "it has closed the connection"),
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            true,
            "what answers there is not Redis",
        ),
        (
            b"\x15\x03\x03\x00\x02\x02\x46",
            true,
            "what answers there is not Redis",
        ),
        (
            b"-ERR max number of clients reached\r\n",
            true,
            "too many clients",
        ),
        (
            b"-NOAUTH Authentication required.\r\n",
            false,
            "it wants a password",
        ),
        (
            b"-LOADING Redis is loading the dataset in memory\r\n",
            false,
            "it is still loading its data",
        ),
    ] {
        let address = answering(answer, closes);
        assert_cause(&format!("redis://{address}"), &address.to_string(), cause);
    }
}

#[test]
fn tls_errors_are_named() {
    let plain = answering(b"-ERR unknown command\r\n", true);
    assert_cause(
        &format!("rediss://{plain}"),
        &plain.to_string(),
        "TLS: it does not speak it",
    );
}

#[test]
fn login_errors_are_named_until_the_login_works() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let url = redis.url();
    let address = url
        .trim_start_matches("redis://")
        .trim_end_matches('/')
        .to_owned();
    let with = |user: &str| format!("redis://{user}:{PASSWORD}@{address}");

    assert_cause(&with(""), &address, "a password is set, and it has none");
    assert_cause(
        &format!("redis://{address}/4711"),
        &address,
        "it has no database of that number",
    );
    client.command(&[
        "ACL",
        "SETUSER",
        USER,
        "on",
        &format!(">{PASSWORD}"),
        "+@connection",
    ]);
    let denied = assert_cause(&with(USER), &address, "its user lacks a permission (NOPERM)");
    assert_cause(
        &format!("redis://{USER}:wrong@{address}"),
        &address,
        "wrong user or password",
    );

    client.command(&["ACL", "SETUSER", USER, "+@all", "~*"]);
    let line = denied.wait_log("Redis is connected");
    assert_eq!(field(&line, "address").as_deref(), Some(&*address), "{line}");
    eventually("it is well", || denied.health()["redis"]["status"] == "ok");
    assert!(denied.health()["redis"].get("detail").is_none());

    client.command(&["ACL", "SETUSER", "default", "off"]);
    assert_cause(&format!("redis://{address}"), &address, "it wants a password");
}
