//! Whoever reads the log may go, or its disk be full: that is no reason to stop.

use crate::support::{Client, PATIENCE, RawWs, Server, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logging_that_fails_stops_nothing() {
    let server = Server::start();
    let mut ann = Client::connect(&server, "s", "ann", "customer").await;
    server.close_log(|| drop(RawWs::connect(&server, "other", "eve", "customer")));

    let mut bob = Client::connect(&server, "s", "bob", "agent").await;
    bob.say("still here", "1").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.next("new_message").await["data"]["message"], "still here");
    }
    drop(bob);
    eventually("he is gone for all", || {
        server.connection_status("s")["total_agent"] == 0
    });
    server.signal("TERM");
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}
