//! The password of Redis in a file: a change on a running node applies to the next connection.

use crate::services::{PrivateRedis, unique};
use crate::support::{RawWs, Server, eventually};

fn redis_status(server: &Server) -> String {
    server.health()["redis"]["status"]
        .as_str()
        .expect("a status")
        .to_owned()
}

#[test]
fn a_changed_password_file_applies_to_the_next_connection() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    client.command(&["CONFIG", "SET", "requirepass", "1st-$hunter"]);
    let files = tempfile::tempdir().expect("a folder");
    let file = files.path().join("password");
    std::fs::write(&file, "1st-$hunter\n").expect("write the file");
    let server = Server::builder()
        .env("REDIS_URL", redis.url())
        .env("REDIS_PASSWORD_FILE", file.display())
        // Nobody answers ann's pings while the test waits.
        .env("PING_INTERVAL", "600s")
        .start();
    eventually("connected with the first password", || {
        redis_status(&server) == "ok"
    });
    let session = unique("session");
    let mut ann = RawWs::connect(&server, &session, "ann", "customer");

    // Its connection was asked once, and stays; cut off, it is refused.
    client.command(&["CONFIG", "SET", "requirepass", "2nd-hunter"]);
    client.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("refused", || redis_status(&server) != "ok");
    // Nobody tells the node of the change; `files_are_read_again_when_that_is_asked_for` is about who does.
    std::fs::write(&file, "2nd-hunter\n").expect("write the file");
    server.wait_log("a secret has changed");
    eventually("connected with the second password", || {
        redis_status(&server) == "ok"
    });

    // By SIGHUP it needs no waiting for.
    std::fs::write(&file, "3rd-hunter\n").expect("write the file");
    server.signal("HUP");
    eventually("the third is read", || {
        server
            .log()
            .iter()
            .filter(|line| line.contains("a secret has changed"))
            .count()
            == 2
    });
    client.command(&["CONFIG", "SET", "requirepass", "3rd-hunter"]);
    client.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("ann is there for all nodes", || {
        redis_status(&server) == "ok" && client.user(&session, "ann").is_some()
    });
    ann.expect_alive();
    let told = server.log().into_iter().find(|line| line.contains("hunter"));
    assert!(told.is_none(), "{told:?}");
}
