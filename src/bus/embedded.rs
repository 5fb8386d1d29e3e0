//! The in-process bus: a bounded queue, drained by one thread that runs the same router as Kafka's consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Ack, PublishError, Router, is_full_batch};
use crate::clock;
use crate::protocol::record::{Incoming, Outgoing};

/// The most records that may wait for delivery.
const MAX_RECORDS: usize = 65_536;
/// The most bytes that may wait for delivery.
const MAX_BYTES: usize = 64 << 20;

/// A record, and when it was appended.
type Appended = (Instant, Outgoing);

pub struct Embedded {
    sender: Mutex<Option<SyncSender<Appended>>>,
    queued_bytes: Arc<AtomicUsize>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    pub fn start(router: Router) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(MAX_RECORDS);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let drained = Arc::clone(&queued_bytes);
        let thread = router.spawn("bus", move |router| drain(&receiver, router, &drained))?;
        Ok(Self {
            sender: Mutex::new(Some(sender)),
            queued_bytes,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub fn publish(&self, record: Outgoing, ack: Ack) {
        ack(self.append(record));
    }

    fn append(&self, record: Outgoing) -> Result<(), PublishError> {
        let bytes = record.value.len();
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_BYTES {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(PublishError::Full);
        }
        let appended = (Instant::now(), record);
        let sent = match &*self.sender.lock() {
            Some(sender) => sender.try_send(appended).map_err(|error| match error {
                TrySendError::Full(_) => PublishError::Full,
                TrySendError::Disconnected(_) => PublishError::Unavailable,
            }),
            None => Err(PublishError::Unavailable),
        };
        if sent.is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }

    /// Delivers what is queued, then ends the thread.
    pub fn stop(&self) {
        drop(self.sender.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn drain(receiver: &Receiver<Appended>, mut router: Router, queued_bytes: &AtomicUsize) {
    let mut offset = 0;
    let node = router.node().to_owned();
    while let Ok(first) = receiver.recv() {
        let (at, first) = first;
        let (mut records, mut bytes, mut next) = (0, 0, Some(first));
        while let Some(record) = next {
            bytes += record.value.len();
            records += 1;
            router.route(&Incoming {
                topic: record.topic,
                partition: 0,
                offset,
                form: record.form,
                key: Some(record.key.as_str().as_bytes()),
                value: Some(&record.value),
                time: clock::unix_ms(),
                node: Some(node.as_bytes()),
                message_id: record.message_id.as_deref().map(str::as_bytes),
                client_id: record.client_id.as_deref().map(str::as_bytes),
            });
            offset += 1;
            next = if is_full_batch(records, bytes) {
                None
            } else {
                receiver.try_recv().ok().map(|(_, record)| record)
            };
        }
        if router.deliver_batch() {
            router.metrics().delay.observe(at.elapsed());
        }
        queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
