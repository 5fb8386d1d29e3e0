//! From a batch of records to the sockets: the same for every bus, on the bus's own thread.
//!
//! A record of a session that is not here costs a look-up and nothing else. The frames of one session and batch
//! become one contiguous write, cut into chunks (see [`chunks`](crate::fanout::chunks)).

use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::fanout::backend::{Delivered, Outlet, Round};
use crate::fanout::broadcast::{self, Patience, SLICE};
use crate::fanout::chunks::{Chunks, Spare};
use crate::fanout::slow_readers::WaitBudget;
use crate::logging::LogLimit;
use crate::metrics::Metrics;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{self, Converter, Form, Incoming, Poison, Topic, TypingRecord};
use crate::protocol::server::{self, TypingIndicator};
use crate::session::typists::{Home, Typists};
use crate::session::{Member, Registry, Session};

/// Of poison records at most one log line in this time; the metric counts them all.
const POISON_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Told of a session whose users have changed on another node.
pub type ChangedElsewhere = Box<dyn Fn(&SessionId) + Send>;

pub struct Delivery {
    registry: Arc<Registry>,
    typists: Arc<Typists>,
    /// Hears of sessions that have changed on other nodes.
    changed_elsewhere: ChangedElsewhere,
    metrics: Arc<Metrics>,
    /// This node's mark on what it publishes.
    node: String,
    /// `MAX_RECORD_BYTES`.
    max_record_bytes: usize,
    converter: Converter,
    batch: Vec<Pending>,
    spare: Spare,
    /// What became of them; kept, so that a batch allocates nothing for it.
    delivered: Vec<Delivered>,
    /// Where a session stands in the batch, by its address: the batch holds it alive.
    index: HashMap<usize, usize, RandomState>,
    wait_budget: WaitBudget,
    outlet: Outlet,
    poison_log: LogLimit,
}

/// What a batch has for one session.
struct Pending {
    session: Arc<Session>,
    records: u64,
    chunks: Chunks,
    /// To whom, once it is closed.
    members: Option<Arc<Vec<Member>>>,
}

impl Pending {
    /// Nothing more is added: it goes to who is a member now.
    fn close(&mut self) {
        self.chunks.cut();
        self.members = Some(self.session.members());
    }

    fn members(&self) -> &[Member] {
        self.members.as_ref().map_or(&[], |members| members)
    }
}

impl Delivery {
    pub fn new(
        registry: Arc<Registry>,
        typists: Arc<Typists>,
        changed_elsewhere: ChangedElsewhere,
        metrics: Arc<Metrics>,
        node: String,
        max_record_bytes: usize,
        outlet: Outlet,
    ) -> Self {
        Self {
            registry,
            typists,
            changed_elsewhere,
            metrics,
            node,
            max_record_bytes,
            converter: Converter::default(),
            batch: Vec::new(),
            spare: Spare::default(),
            delivered: Vec::new(),
            index: HashMap::default(),
            wait_budget: WaitBudget::default(),
            outlet,
            poison_log: LogLimit::new(POISON_LOG_INTERVAL),
        }
    }

    /// Starts the thread that delivers, and waits until it has what belongs to it: a node that listens then says the
    /// truth of how its batches leave, and opens no descriptor of its own later.
    pub fn spawn(
        mut self,
        name: &str,
        run: impl FnOnce(Self) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (started, has_started) = mpsc::channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            self.outlet.prepare();
            let _ = started.send(());
            run(self);
        })?;
        let has_ended = |_| io::Error::other("the delivery thread has ended at its start");
        has_started.recv().map_err(has_ended)?;
        Ok(thread)
    }

    /// Takes a record into the batch. A poison record is counted and skipped, and so is one that makes us panic: the
    /// thread must not end of it, since nobody else reads the log.
    pub fn push(&mut self, incoming: &Incoming<'_>) {
        let pushed = panic::catch_unwind(AssertUnwindSafe(|| self.try_push(incoming)));
        if let Err(poison) = pushed.unwrap_or(Err(Poison::Internal)) {
            self.skip(incoming, poison);
        }
    }

    /// Reading goes on, maybe behind a gap: what other nodes said of their users meanwhile is asked again.
    pub fn resume(&self) {
        for session in self.registry.all() {
            (self.changed_elsewhere)(&session.id);
        }
    }

    fn try_push(&mut self, incoming: &Incoming<'_>) -> Result<(), Poison> {
        let value = incoming.value.ok_or(Poison::Tombstone)?;
        if value.len() > self.max_record_bytes {
            return Err(Poison::TooBig);
        }
        if record::is_reserved(incoming.key) {
            return Err(Poison::BadKey);
        }
        match (incoming.form, incoming.topic) {
            (Form::Native, _) => {
                let session_id = record::native_session(incoming.key)?;
                if let Some(session) = self.registry.get(&session_id) {
                    if simdutf8::basic::from_utf8(value).is_err() {
                        return Err(Poison::NotUtf8);
                    }
                    self.add(session, value);
                }
                Ok(())
            }
            (Form::Old, Topic::Messages) => {
                let Self {
                    converter, registry, ..
                } = self;
                let mut session = None;
                let converted = converter.message(value, |session_id| {
                    session = registry.get(session_id);
                    session.is_some()
                })?;
                if let (Some(session), Some((_, payload))) = (session, converted) {
                    self.add(session, &payload);
                }
                Ok(())
            }
            (Form::Old, _) if incoming.node == Some(self.node.as_bytes()) => Ok(()),
            (Form::Old, Topic::Typing) => {
                let typing = self.converter.typing(value)?;
                self.typing(&typing);
                Ok(())
            }
            (Form::Old, Topic::Status) => self.status(value, incoming.node.is_some()),
            (Form::Unknown, _) => Err(Poison::UnknownForm),
        }
    }

    fn add(&mut self, session: Arc<Session>, payload: &[u8]) {
        let address = Arc::as_ptr(&session) as usize;
        let at = *self.index.entry(address).or_insert_with(|| {
            self.batch.push(Pending {
                session,
                records: 0,
                chunks: self.spare.take(),
                members: None,
            });
            self.batch.len() - 1
        });
        let pending = &mut self.batch[at];
        pending.records += 1;
        pending.chunks.push(payload);
    }

    /// Delivers the batch; false if it was for nobody here. What is left of one over which we panic is counted and given
    /// up.
    pub fn flush(&mut self) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        if panic::catch_unwind(AssertUnwindSafe(|| self.send_batch())).is_err() {
            let records = self.batch.drain(..).map(|pending| pending.records).sum();
            tracing::error!(records, "delivery has failed: please report this bug");
            self.metrics.lost(records);
        }
        self.index.clear();
        true
    }

    /// Small sessions go first; large ones take turns by slices of their members.
    fn send_batch(&mut self) {
        self.outlet.prepare();
        self.batch.iter_mut().for_each(Pending::close);
        self.delivered.clear();
        self.delivered.resize(self.batch.len(), Delivered::default());
        let mut round = Round::new(&mut self.outlet, &mut self.wait_budget, &mut self.delivered);
        let sized = |is_large: bool| {
            let batch = self.batch.iter().enumerate();
            batch.filter(move |(_, pending)| (pending.members().len() > SLICE) == is_large)
        };
        for (slot, pending) in sized(false) {
            send_chunks(&mut round, slot, pending.members(), &pending.chunks);
        }
        let largest = sized(true).map(|(_, pending)| pending.members().len()).max();
        for start in (0..largest.unwrap_or(0)).step_by(SLICE) {
            for (slot, pending) in sized(true) {
                let members = pending.members().get(start..).unwrap_or_default();
                send_chunks(
                    &mut round,
                    slot,
                    &members[..members.len().min(SLICE)],
                    &pending.chunks,
                );
            }
        }
        round.flush();
        drop(round);
        let (mut total, mut records) = (Delivered::default(), 0);
        for (pending, delivered) in self.batch.drain(..).zip(&self.delivered) {
            log_broadcast(&pending, *delivered);
            total += *delivered;
            records += pending.records;
            self.spare.give_back(pending.chunks);
        }
        self.metrics.batch(records, total.written, total.queued);
    }

    /// A session has changed elsewhere. Of our own nodes' records only that is read: presence asks its store.
    fn status(&mut self, value: &[u8], is_ours: bool) -> Result<(), Poison> {
        let (session_id, foreign) = self.converter.status(value, is_ours)?;
        let Some(session) = self.registry.get(session_id.as_str()) else {
            return Ok(());
        };
        match foreign {
            Some(payload) => self.add(session, &payload),
            None => (self.changed_elsewhere)(&session_id),
        }
        Ok(())
    }

    /// A typist on another node, or of another service.
    fn typing(&self, typing: &TypingRecord) {
        let Some(session) = self.registry.get(typing.session_id.as_str()) else {
            return;
        };
        let at = (&typing.session_id, &typing.user_id);
        if typing.is_typing {
            self.typists
                .start(at, &typing.user_type, Home::Elsewhere, Instant::now());
        } else {
            self.typists.stop(at.0, at.1);
        }
        let frame = server::typing_indicator(&TypingIndicator {
            session_id: typing.session_id.as_str(),
            user_id: typing.user_id.as_str(),
            sender_type: &typing.user_type,
            is_typing: typing.is_typing,
            timestamp: &typing.timestamp,
        });
        if let Some(frame) = frame {
            broadcast::deliver(&session.members(), &frame, Some(&typing.user_id), Patience::Drop);
        }
    }

    fn skip(&mut self, incoming: &Incoming<'_>, poison: Poison) {
        self.metrics.poison(poison);
        if self.poison_log.allows() {
            tracing::warn!(
                topic = incoming.topic.name(),
                partition = incoming.partition,
                offset = incoming.offset,
                reason = poison.name(),
                "poison record skipped"
            );
        }
    }
}

/// Sends the chunks of one session in their order.
fn send_chunks<'a>(round: &mut Round<'a>, slot: usize, members: &'a [Member], chunks: &'a Chunks) {
    for (number, chunk) in chunks.iter().enumerate() {
        if number > 0 {
            round.flush();
        }
        round.send(slot, members, chunk);
    }
}

fn log_broadcast(pending: &Pending, delivered: Delivered) {
    tracing::debug!(
        "Broadcasted message to session {}: {}/{} clients received",
        pending.session.id,
        delivered.received() / pending.chunks.iter().count(),
        pending.members().len()
    );
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::fanout::backend::RingInUse;
    use crate::protocol::ids::UserType;
    use crate::session::testing::members;

    fn delivery(
        registry: &Arc<Registry>,
        changed_elsewhere: ChangedElsewhere,
        metrics: &Arc<Metrics>,
        outlet: Outlet,
    ) -> Delivery {
        Delivery::new(
            Arc::clone(registry),
            Arc::new(Typists::default()),
            changed_elsewhere,
            Arc::clone(metrics),
            "node".into(),
            1024,
            outlet,
        )
    }

    #[tokio::test]
    async fn a_record_that_makes_us_panic_is_skipped_and_the_others_delivered() {
        let (metrics, registry) = (Arc::new(Metrics::default()), Arc::new(Registry::default()));
        let (members, mut clients) = members(1, &metrics).await;
        let greeting = |_| Bytes::new();
        registry.join(
            &SessionId::parse("s").unwrap(),
            &members[0],
            UserType::Agent,
            greeting,
        );

        let fails = Box::new(|_: &SessionId| panic!("as a bug would"));
        let mut delivery = delivery(&registry, fails, &metrics, Outlet::Send);
        let record = |topic, form, value: &'static str| Incoming {
            topic,
            partition: 0,
            offset: 0,
            form,
            key: Some(b"s"),
            value: Some(value.as_bytes()),
            node: Some(b"another"),
        };
        let status = r#"{"session_id":"s","connection_status":{}}"#;
        delivery.push(&record(Topic::Messages, Form::Native, "one"));
        delivery.push(&record(Topic::Status, Form::Old, status));
        delivery.push(&record(Topic::Messages, Form::Native, "two"));
        delivery.flush();
        let mut got = [0; 10];
        clients[0].read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x81\x03one\x81\x03two");
        let counted = "livechat_poison_records_total{reason=\"internal\"} 1\n";
        let page = metrics.page();
        assert!(page.contains(counted), "{page}");
    }

    #[test]
    fn the_threads_ring_is_there_when_it_is_said_to_run() {
        let metrics = Arc::new(Metrics::default());
        let in_use = RingInUse::default();
        let outlet = Outlet::Wanted(in_use.clone());
        let delivery = delivery(&Arc::default(), Box::new(|_| {}), &metrics, outlet);
        let (end, ended) = mpsc::channel::<()>();
        let thread = delivery
            .spawn("bus", move |_delivery| assert!(ended.recv().is_err()))
            .unwrap();
        let shown = in_use.get();
        drop(end);
        thread.join().unwrap();
        let mut outlet = Outlet::Wanted(RingInUse::default());
        outlet.prepare();
        assert_eq!(shown, matches!(outlet, Outlet::Ring(_)));
    }
}
