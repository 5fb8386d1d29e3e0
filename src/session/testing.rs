//! Members with real sockets, for unit tests.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::Member;
use crate::metrics::Metrics;
use crate::protocol::ids::UserId;
pub use crate::writer::Start;
use crate::writer::WriterContext;
pub use crate::writer::testing::context;
use crate::writer::testing::writers;

/// A connection of this user, and its client's end.
pub async fn member(user: &str) -> (Member, TcpStream) {
    let (mut members, mut clients) = members(1, &Arc::default()).await;
    let (mut member, client) = (members.remove(0), clients.remove(0));
    member.user_id = UserId::parse(user).unwrap();
    (member, client)
}

/// Connections of one user, and their clients' ends.
pub async fn members(count: usize, metrics: &Arc<Metrics>) -> (Vec<Member>, Vec<TcpStream>) {
    members_of(&Arc::new(context(metrics, 1 << 30)), count).await
}

/// As [`members`], with this context.
pub async fn members_of(context: &Arc<WriterContext>, count: usize) -> (Vec<Member>, Vec<TcpStream>) {
    let (writers, clients) = writers(context, count).await;
    let member = |writer| Member {
        writer,
        user_id: UserId::parse("u").unwrap(),
    };
    (writers.into_iter().map(member).collect(), clients)
}
