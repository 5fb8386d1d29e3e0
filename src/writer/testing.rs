//! Writers with real sockets, for unit tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use super::{ClosingWriters, ConnectionWriter, QueueLimits, SendMemory, WriterContext};
use crate::metrics::Metrics;

/// A context with the default limits, and `memory` bytes for all queues together.
pub fn context(metrics: &Arc<Metrics>, memory: usize) -> WriterContext {
    WriterContext {
        queue: QueueLimits::new(1 << 20, Duration::from_secs(10), SendMemory::new(memory)),
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(10),
        token_leeway: 0,
        runtime: Handle::current(),
        metrics: Arc::clone(metrics),
        closing: ClosingWriters::default(),
    }
}

/// The writers of `count` connections, and their clients' ends.
pub async fn writers(
    context: &Arc<WriterContext>,
    count: usize,
) -> (Vec<Arc<ConnectionWriter>>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut writers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..count {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (_, write_half) = listener.accept().await.unwrap().0.into_split();
        writers.push(ConnectionWriter::new(
            write_half,
            Bytes::new(),
            Arc::clone(context),
        ));
    }
    (writers, clients)
}
