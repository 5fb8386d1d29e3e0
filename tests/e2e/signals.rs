//! Signals that do not end the process: each is logged, and connections are not affected.

use crate::support::{PATIENCE, RawWs, Server};

#[test]
fn unused_signals_are_logged_and_ignored() {
    let server = Server::start();
    let mut client = RawWs::connect(&server, "s1", "u1", "agent");
    for name in ["HUP", "USR1", "USR2", "ALRM"] {
        server.signal(name);
        server.wait_log(&format!("SIG{name}"));
    }
    // Ignored without a word: each write to a closed pipe sends one.
    server.signal("PIPE");
    // And again: a handler must not be good for one time only.
    server.signal("USR1");
    client.expect_alive();
    assert_eq!(server.get("/ready").status, 200);
    assert!(!server.has_exited());
    server.signal("TERM");
    assert_eq!(client.expect_close(), 1001);
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}
