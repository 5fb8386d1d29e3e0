//! Members with real sockets, for unit tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use super::Member;
use crate::metrics::Metrics;
use crate::protocol::ids::UserId;
use crate::ws::{Outbox, OutboxLimits, QueueLimits, SendMemory};

/// A connection of this user, and its client's end.
pub async fn member(user: &str) -> (Member, TcpStream) {
    let (mut members, mut clients) = members(1, &Arc::default()).await;
    let (mut member, client) = (members.remove(0), clients.remove(0));
    member.user_id = UserId::parse(user).unwrap();
    (member, client)
}

/// The defaults' limits, and so much for all queues together.
pub fn limits(metrics: &Arc<Metrics>, memory: usize) -> OutboxLimits {
    OutboxLimits {
        queue: QueueLimits::new(1 << 20, Duration::from_secs(10), SendMemory::new(memory)),
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(10),
        runtime: Handle::current(),
        metrics: Arc::clone(metrics),
    }
}

/// Connections of one user, and their clients' ends.
pub async fn members(count: usize, metrics: &Arc<Metrics>) -> (Vec<Member>, Vec<TcpStream>) {
    members_of(&Arc::new(limits(metrics, 1 << 30)), count).await
}

/// As [`members`], with these limits.
pub async fn members_of(limits: &Arc<OutboxLimits>, count: usize) -> (Vec<Member>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut members, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..count {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (_, write_half) = listener.accept().await.unwrap().0.into_split();
        members.push(Member {
            outbox: Outbox::new(write_half, Bytes::new(), Arc::clone(limits)),
            user_id: UserId::parse("u").unwrap(),
        });
    }
    (members, clients)
}
