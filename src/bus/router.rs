//! Routes records to their sessions, on the thread of the bus that read them. A record of a session that has no
//! connection here costs only a look-up; the others go to [`fanout`](crate::fanout).

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Repeats;
use crate::fanout::backend::FanoutBackend;
use crate::fanout::batch::Batch;
use crate::fanout::broadcast;
use crate::history::{LogRecord, RecentLog};
use crate::logging::LogLimit;
use crate::metrics::Metrics;
use crate::protocol::control::Disconnect;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{self, Converter, Ephemeral, Form, Incoming, Poison, Topic, TypingRecord};
use crate::session::disconnects::Disconnects;
use crate::session::typists::Home;
use crate::session::{Activity, Registry, Session};
use crate::supervise::catch_panic;

/// At most one log line about poison records per interval; the metric counts them all.
const POISON_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Called with a session whose users have changed on another node, and whether it has connections here.
pub type ChangedElsewhere = Box<dyn Fn(&SessionId, bool) + Send>;

/// Decodes records and routes them to their sessions. Each delivery thread has one.
pub struct Router {
    registry: Arc<Registry>,
    activity: Arc<Activity>,
    changed_elsewhere: ChangedElsewhere,
    metrics: Arc<Metrics>,
    /// The value of the node header on this node's records.
    node: String,
    /// `MAX_RECORD_BYTES`.
    max_record_bytes: usize,
    converter: Converter,
    batch: Batch,
    /// Where messages are kept for clients that come back; `None` for the thread that reads no messages.
    history: Option<Arc<RecentLog>>,
    /// As `history`.
    repeats: Option<Repeats>,
    /// For the thread that reads whom backends disconnect.
    disconnects: Option<Arc<Disconnects>>,
    poison_log: LogLimit,
}

impl Router {
    pub fn new(
        registry: Arc<Registry>,
        activity: Arc<Activity>,
        changed_elsewhere: ChangedElsewhere,
        metrics: Arc<Metrics>,
        node: String,
        max_record_bytes: usize,
        backend: FanoutBackend,
    ) -> Self {
        Self {
            registry,
            activity,
            changed_elsewhere,
            batch: Batch::new(backend, Arc::clone(&metrics)),
            metrics,
            node,
            max_record_bytes,
            converter: Converter::default(),
            history: None,
            repeats: None,
            disconnects: None,
            poison_log: LogLimit::new(POISON_LOG_INTERVAL),
        }
    }

    /// Keeps the messages that are read, for clients that come back, and passes over repeated ones.
    pub fn keeping(mut self, history: Arc<RecentLog>, repeats: Repeats) -> Self {
        (self.history, self.repeats) = (Some(history), Some(repeats));
        self
    }

    /// Carries out the control records that are read.
    pub fn disconnecting(mut self, disconnects: Arc<Disconnects>) -> Self {
        self.disconnects = Some(disconnects);
        self
    }

    /// This node's name and boot id.
    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Starts the delivery thread and waits until its backend is set up: so `fanout_io` is right by the time the node
    /// listens, and no descriptor is opened for it later.
    pub fn spawn(
        mut self,
        name: &str,
        run: impl FnOnce(Self) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (started, has_started) = mpsc::channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            self.batch.prepare();
            let _ = started.send(());
            run(self);
        })?;
        let has_ended = |_| io::Error::other("the delivery thread ended while starting");
        has_started.recv().map_err(has_ended)?;
        Ok(thread)
    }

    /// Adds a record to the batch. A poison record is counted and skipped, and so is one whose handling panics: a panic
    /// must not end the thread, which is the only one that reads the log.
    pub fn route(&mut self, incoming: &Incoming<'_>) {
        let pushed = catch_panic(|| self.try_route(incoming));
        if let Err(poison) = pushed.unwrap_or(Err(Poison::Internal)) {
            if let (Some(history), Topic::Messages) = (&self.history, incoming.topic) {
                history.skip(incoming.partition, incoming.offset);
            }
            self.skip(incoming, poison);
        }
    }

    /// Keeps a record for clients that come back; nobody gets it live.
    pub fn keep(&mut self, incoming: &Incoming<'_>) {
        let kept = catch_panic(|| self.try_keep(incoming));
        if let (Err(_), Some(history)) = (kept.unwrap_or(Err(Poison::Internal)), &self.history) {
            history.skip(incoming.partition, incoming.offset);
        }
    }

    fn try_keep(&mut self, incoming: &Incoming<'_>) -> Result<(), Poison> {
        let value = incoming.checked_value(self.max_record_bytes)?;
        let Self {
            converter,
            history: Some(history),
            repeats: Some(repeats),
            ..
        } = self
        else {
            return Ok(());
        };
        match incoming.form {
            Form::Native => {
                let session_id = record::native_session(incoming.key)?;
                if simdutf8::basic::from_utf8(value).is_err() {
                    return Err(Poison::NotUtf8);
                }
                if repeats.is_repeat(&session_id, incoming, value, false) {
                    history.skip(incoming.partition, incoming.offset);
                } else {
                    record_to(history, &session_id, incoming, value);
                }
            }
            Form::Legacy if repeats.is_legacy_repeat(incoming, value, false)? => {
                history.skip(incoming.partition, incoming.offset);
            }
            Form::Legacy => {
                let record = |session_id: &str| {
                    record_to(history, session_id, incoming, value);
                    false
                };
                converter.message(value, record)?;
            }
            Form::Unknown => return Err(Poison::UnknownForm),
        }
        Ok(())
    }

    /// Learns what was sent before this node started: the record itself is not kept.
    pub fn learn(&mut self, incoming: &Incoming<'_>) {
        if incoming.client_id.is_some() {
            catch_panic(|| self.try_learn(incoming).ok());
        }
    }

    fn try_learn(&mut self, incoming: &Incoming<'_>) -> Result<(), Poison> {
        let value = incoming.checked_value(self.max_record_bytes)?;
        let Some(repeats) = &mut self.repeats else {
            return Ok(());
        };
        match incoming.form {
            Form::Native => {
                let session_id = record::native_session(incoming.key)?;
                if simdutf8::basic::from_utf8(value).is_ok() {
                    repeats.is_repeat(&session_id, incoming, value, false);
                }
            }
            Form::Legacy => drop(repeats.is_legacy_repeat(incoming, value, false)?),
            Form::Unknown => {}
        }
        Ok(())
    }

    /// Called when reading resumes. Status records may have been missed, so every session's users are queried again.
    pub fn resume(&self) {
        for session in self.registry.all() {
            (self.changed_elsewhere)(&session.id, true);
        }
    }

    fn try_route(&mut self, incoming: &Incoming<'_>) -> Result<(), Poison> {
        if incoming.topic == Topic::Control {
            return self.control(incoming);
        }
        let value = incoming.checked_value(self.max_record_bytes)?;
        match (incoming.form, incoming.topic) {
            (Form::Native, topic) => {
                let session_id = record::native_session(incoming.key)?;
                let recorded = self.history.as_deref().filter(|_| topic == Topic::Messages);
                if recorded.is_some() && simdutf8::basic::from_utf8(value).is_err() {
                    return Err(Poison::NotUtf8);
                }
                if let (Some(history), Some(repeats)) = (recorded, &mut self.repeats)
                    && repeats.is_repeat(&session_id, incoming, value, true)
                {
                    history.skip(incoming.partition, incoming.offset);
                    return Ok(());
                }
                let position = recorded.map(|history| record_to(history, &session_id, incoming, value));
                if let Some(session) = recipient(&self.registry, &session_id, position) {
                    if position.is_none() && simdutf8::basic::from_utf8(value).is_err() {
                        return Err(Poison::NotUtf8);
                    }
                    self.batch.add(session, value, end(position));
                }
                Ok(())
            }
            (Form::Legacy, Topic::Messages) => {
                let Self {
                    converter,
                    registry,
                    history,
                    repeats,
                    ..
                } = self;
                if let (Some(history), Some(repeats)) = (&*history, repeats)
                    && repeats.is_legacy_repeat(incoming, value, true)?
                {
                    history.skip(incoming.partition, incoming.offset);
                    return Ok(());
                }
                let (mut session, mut position) = (None, None);
                let converted = converter.message(value, |session_id| {
                    position = history
                        .as_deref()
                        .map(|history| record_to(history, session_id, incoming, value));
                    session = recipient(registry, session_id, position);
                    session.is_some()
                })?;
                if let (Some(session), Some((_, payload))) = (session, converted) {
                    self.batch.add(session, &payload, end(position));
                }
                Ok(())
            }
            (Form::Legacy, _) if incoming.node == Some(self.node.as_bytes()) => Ok(()),
            (Form::Legacy, Topic::Typing) => {
                match self.converter.typing_topic(value)? {
                    Ephemeral::Typing(typing) => self.typing(&typing),
                    Ephemeral::Read(receipt) => {
                        broadcast::receipt(&self.registry, &self.activity.reads, &receipt);
                    }
                }
                Ok(())
            }
            (Form::Legacy, Topic::Status) => self.status(value, incoming.node.is_some()),
            (Form::Legacy, Topic::Control) => Ok(()),
            (Form::Unknown, _) => Err(Poison::UnknownForm),
        }
    }

    /// Delivers the batch to its sessions; false if it had no recipient here.
    pub fn deliver_batch(&mut self) -> bool {
        let has_sent = self.batch.deliver();
        if let Some(history) = &self.history {
            history.delivered();
        }
        if let Some(repeats) = &mut self.repeats {
            // A panic must not end the thread.
            catch_panic(|| repeats.delivered());
        }
        has_sent
    }

    /// A session has changed elsewhere. Records of livechat-ws nodes only signal that: presence then queries its store.
    fn status(&mut self, value: &[u8], is_ours: bool) -> Result<(), Poison> {
        let (session_id, foreign) = self.converter.status(value, is_ours)?;
        let session = self.registry.get(session_id.as_str());
        match (session, foreign) {
            (Some(session), Some(payload)) => self.batch.add(session, &payload, 0),
            (None, Some(_)) => {}
            (session, None) => (self.changed_elsewhere)(&session_id, session.is_some()),
        }
        Ok(())
    }

    /// A backend disconnects somebody.
    fn control(&self, incoming: &Incoming<'_>) -> Result<(), Poison> {
        if incoming
            .value
            .is_some_and(|value| value.len() > self.max_record_bytes)
        {
            return Err(Poison::TooBig);
        }
        let disconnect = Disconnect::read(incoming.key, incoming.value)?;
        if let Some(disconnects) = &self.disconnects {
            disconnects.read(&disconnect);
        }
        Ok(())
    }

    /// Someone is typing on another node or in another service. That is remembered for those who join here later, too.
    fn typing(&self, typing: &TypingRecord) {
        let (typists, at) = (&self.activity.typists, (&typing.session_id, &typing.user_id));
        if typing.is_typing {
            typists.start(at, &typing.user_type, Home::Elsewhere, Instant::now());
        } else {
            typists.stop(at.0, at.1);
        }
        let Some(session) = self.registry.get(typing.session_id.as_str()) else {
            return;
        };
        broadcast::typing(
            &session,
            &typing.user_id,
            &typing.user_type,
            typing.is_typing,
            &typing.timestamp,
        );
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

/// Keeps a record for clients that come back, before its session is looked up: a session that is created later does not
/// get it live, but finds it there.
fn record_to(history: &RecentLog, session_id: &str, incoming: &Incoming<'_>, value: &[u8]) -> u64 {
    history.append(&LogRecord {
        session_id,
        partition: incoming.partition,
        offset: incoming.offset,
        time: incoming.time,
        form: incoming.form,
        value,
    })
}

/// The session that gets a record live, if it is here.
fn recipient(registry: &Registry, session_id: &str, position: Option<u64>) -> Option<Arc<Session>> {
    let session = registry.get(session_id)?;
    position.is_none_or(|at| at >= session.created).then_some(session)
}

/// The position after a record; 0 if it has none.
fn end(position: Option<u64>) -> u64 {
    position.map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::fanout::backend::RingInUse;
    use crate::protocol::ids::UserType;
    use crate::session::testing::{Start, members};

    fn router(
        registry: &Arc<Registry>,
        changed_elsewhere: ChangedElsewhere,
        metrics: &Arc<Metrics>,
        backend: FanoutBackend,
    ) -> Router {
        Router::new(
            Arc::clone(registry),
            Default::default(),
            changed_elsewhere,
            Arc::clone(metrics),
            "node".into(),
            1024,
            backend,
        )
    }

    #[tokio::test]
    async fn a_record_whose_handling_panics_is_skipped_and_the_others_are_delivered() {
        let (metrics, registry) = (Arc::new(Metrics::default()), Arc::new(Registry::default()));
        let (members, mut clients) = members(1, &metrics).await;
        let greeting = |_| Bytes::new();
        registry.join(
            &SessionId::parse("s").unwrap(),
            &members[0],
            UserType::Agent,
            Start::Live,
            greeting,
        );

        let fails = Box::new(|_: &SessionId, _| panic!("as a bug would"));
        let mut router = router(&registry, fails, &metrics, FanoutBackend::Send);
        let record = |topic, form, value: &'static str| Incoming {
            topic,
            partition: 0,
            offset: 0,
            form,
            key: Some(b"s"),
            value: Some(value.as_bytes()),
            time: 0,
            node: Some(b"another"),
            message_id: None,
            client_id: None,
        };
        let status = r#"{"session_id":"s","connection_status":{}}"#;
        router.route(&record(Topic::Messages, Form::Native, "one"));
        router.route(&record(Topic::Status, Form::Legacy, status));
        router.route(&record(Topic::Messages, Form::Native, "two"));
        router.deliver_batch();
        let mut got = [0; 10];
        clients[0].read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x81\x03one\x81\x03two");
        let counted = "livechat_poison_records_total{reason=\"internal\"} 1\n";
        let page = metrics.page();
        assert!(page.contains(counted), "{page}");
    }

    /// Its members find the record in the recent log.
    #[tokio::test]
    async fn a_record_is_not_live_in_a_session_that_was_created_after_it() {
        let log_end = Arc::new(AtomicU64::new(3));
        let registry = Registry::new(false, log_end);
        let (members, _clients) = members(1, &Arc::default()).await;
        let id = SessionId::parse("s").unwrap();
        registry.join(&id, &members[0], UserType::Agent, Start::Replay, |_| Bytes::new());
        let gets = |position| recipient(&registry, "s", position).is_some();
        assert_eq!([None, Some(2), Some(3)].map(gets), [true, false, true]);
    }

    #[test]
    fn spawn_returns_once_the_thread_has_set_up_its_ring() {
        let metrics = Arc::new(Metrics::default());
        let in_use = RingInUse::default();
        let backend = FanoutBackend::RingRequested(in_use.clone());
        let router = router(&Arc::default(), Box::new(|_, _| {}), &metrics, backend);
        let (end, ended) = mpsc::channel::<()>();
        let thread = router
            .spawn("bus", move |_router| assert!(ended.recv().is_err()))
            .unwrap();
        let shown = in_use.get();
        drop(end);
        thread.join().unwrap();
        let mut backend = FanoutBackend::RingRequested(RingInUse::default());
        backend.prepare();
        assert_eq!(shown, matches!(backend, FanoutBackend::Ring(_)));
    }
}
