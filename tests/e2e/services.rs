//! The real Kafka and Redis of `scripts/test.sh`, brokers of a test's own, and what the Kafka tests share: the Java
//! client ([`Kafka`]), topics of a test's own, and a client that reads by itself ([`Tap`]).

#[path = "kafka_brokers.rs"]
mod brokers;
#[path = "kafka_java.rs"]
mod java;
#[path = "redis_resp.rs"]
mod resp;
#[path = "kafka_tap.rs"]
mod tap;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Server, ServerBuilder, eventually};

pub use self::brokers::{PrivateBroker, TwoBrokers};
use self::java::succeeded;
pub use self::java::{Kafka, Record, Stored, new_message};
pub use self::resp::{RedisClient, Resp, users_key};
pub use self::tap::{Heard, Notes, Reader, Tap};

/// How long anything may take that has to wait for a broker's restart. Only failing tests wait this long.
pub const OUTAGE: Duration = Duration::from_secs(120);

/// As `eventually`, for what takes a broker's restart or several Java programs.
#[track_caller]
pub fn at_last(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * OUTAGE;
    while !check() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[track_caller]
pub fn from_environment(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!(
            "{variable} is not set: this test needs real services; run it by ./scripts/test.sh, which starts them"
        ),
    }
}

/// The brokers all tests share, as KAFKA_BROKERS has them.
#[track_caller]
pub fn kafka() -> Kafka {
    Kafka::at(from_environment("TEST_KAFKA_BROKERS"))
}

/// The Redis all tests share.
#[track_caller]
pub fn redis_url() -> String {
    from_environment("TEST_REDIS_URL")
}

/// A name that is unique across runs on the same broker.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock after 1970");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{prefix}-{:x}-{:x}-{number}",
        std::process::id(),
        started.as_micros() & 0xffff_ffff
    )
}

/// The topics of one test. Deletes them when dropped: declare it before the servers.
pub struct Topics {
    pub kafka: Kafka,
    pub messages: String,
    pub typing: String,
    pub status: String,
    pub control: String,
    /// Nobody is left to delete them from when a broker of the test's own goes, too.
    delete: bool,
}

impl Topics {
    /// On the shared broker. The topics do not exist until a server, or the test, creates them.
    #[track_caller]
    pub fn new() -> Self {
        let mut topics = Self::on(&kafka());
        topics.delete = true;
        topics
    }

    pub fn on(kafka: &Kafka) -> Self {
        let [messages, typing, status, control] = ["messages", "typing", "status", "control"].map(unique);
        Self {
            kafka: kafka.clone(),
            messages,
            typing,
            status,
            control,
            delete: false,
        }
    }

    /// A node on these topics, without a rate limit. Some clients answer no pings while others, or JVMs, start.
    pub fn node(&self, name: &str) -> ServerBuilder {
        Server::builder()
            .env("NODE_ID", name)
            .env("RATE_LIMIT_MESSAGES", 0)
            .env("PING_INTERVAL", "10m")
            .envs([
                ("KAFKA_BROKERS", self.kafka.brokers.as_str()),
                ("KAFKA_TOPIC_MESSAGES", &self.messages),
                ("KAFKA_TOPIC_TYPING", &self.typing),
                ("KAFKA_TOPIC_STATUS", &self.status),
                ("KAFKA_TOPIC_CONTROL", &self.control),
            ])
    }

    /// Two ready nodes. They start at the same time, so they also race to create the topics.
    #[track_caller]
    pub fn two_nodes(&self) -> (Server, Server) {
        let nodes = (self.node("node-a").spawn(), self.node("node-b").spawn());
        for node in [&nodes.0, &nodes.1] {
            node.wait_ready();
            // On a busy machine, topics that were just created may be missing for a while.
            eventually("Kafka is ok", || node.health()["kafka"]["status"] == "ok");
        }
        nodes
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        if self.delete {
            self.kafka
                .delete(&[&self.messages, &self.typing, &self.status, &self.control]);
        }
    }
}

/// A service of a test's own, to be killed and paused. Gone when dropped.
pub struct Service {
    dir: TempDir,
    port: u16,
    /// In `scripts/`.
    script: &'static str,
    env: Vec<(&'static str, &'static str)>,
    /// The folder of the broker whose cluster this one joins.
    joins: Option<PathBuf>,
}

impl Service {
    /// Reserves a folder and a port; nothing runs yet.
    #[track_caller]
    fn new(script: &'static str, env: &[(&'static str, &'static str)]) -> Self {
        let scratch = PathBuf::from(from_environment("TEST_SCRATCH"));
        let dir = tempfile::Builder::new().prefix("private-").tempdir_in(scratch);
        Self {
            dir: dir.expect("a folder for a service"),
            port: free_port(),
            script,
            env: env.to_vec(),
            joins: None,
        }
    }

    /// Starts it, on its old data if it ran before and keeps any, and waits until it answers.
    #[track_caller]
    pub fn start(&self) {
        self.start_with(&[]);
    }

    #[track_caller]
    fn start_with(&self, env: &[(&str, &str)]) {
        let port = self.port.to_string();
        let started = match &self.joins {
            None => self.run("start", &[port.as_ref()], env),
            Some(first) => self.run("join", &[port.as_ref(), first.as_os_str()], env),
        };
        succeeded("start", started);
    }

    /// An orderly end.
    #[track_caller]
    pub fn stop(&self) {
        self.verb("stop");
    }

    #[track_caller]
    pub fn kill(&self) {
        self.verb("kill");
    }

    #[track_caller]
    pub fn pause(&self) {
        self.verb("pause");
    }

    #[track_caller]
    pub fn resume(&self) {
        self.verb("resume");
    }

    #[track_caller]
    fn verb(&self, verb: &str) {
        succeeded(verb, self.run(verb, &[], &[]));
    }

    fn run(&self, verb: &str, more: &[&OsStr], env: &[(&str, &str)]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("scripts")
            .join(self.script);
        let mut command = Command::new(script);
        command.envs(self.env.iter().copied()).envs(env.iter().copied());
        command.arg(verb).arg(self.dir.path()).args(more);
        let output = command.stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{}: {error}", self.script))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.run("kill", &[], &[]);
    }
}

/// A Redis for one test. By default it keeps nothing on disk: a restart makes it empty.
pub struct PrivateRedis(Service);

impl PrivateRedis {
    /// Reserves a folder and a port; nothing runs yet.
    #[track_caller]
    pub fn new() -> Self {
        Self::new_with("")
    }

    #[track_caller]
    fn new_with(args: &'static str) -> Self {
        Self(Service::new("redis-local.sh", &[("REDIS_ARGS", args)]))
    }

    #[track_caller]
    pub fn started() -> Self {
        Self::started_with("")
    }

    /// With arguments of redis-server's, for example `--requirepass x`.
    #[track_caller]
    pub fn started_with(args: &'static str) -> Self {
        let redis = Self::new_with(args);
        redis.start();
        redis
    }

    /// Starts it with these arguments on what it has saved; it need not have loaded that when this returns.
    #[track_caller]
    pub fn start_loading(&self, args: &str) {
        self.start_with(&[("REDIS_ARGS", args), ("REDIS_MAY_LOAD", "yes")]);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// With a password, be it right or wrong.
    pub fn url_with(&self, password: &str) -> String {
        format!("redis://:{password}@127.0.0.1:{}", self.port)
    }

    #[track_caller]
    pub fn client(&self) -> RedisClient {
        RedisClient::connect(&self.url())
    }
}

impl Deref for PrivateRedis {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

/// Starts a node and waits until it finds Kafka well: it may be ready before topics that it has just created have leaders.
#[track_caller]
pub fn start_well(builder: ServerBuilder) -> Server {
    let node = builder.start();
    eventually("Kafka is ok", || node.health()["kafka"]["status"] == "ok");
    node
}

/// A free port below those the kernel gives to outgoing connections: a client that keeps dialling a stopped broker on
/// one of those can be given the very same port, and then talks to itself. So is the port 10,000 above it, the bus of a
/// Redis Cluster.
fn free_port() -> u16 {
    /// A broker takes a second until it binds it, and leaves it while it is down.
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut taken = TAKEN.lock().unwrap();
    let port = std::iter::repeat_with(|| fastrand::u16(10_000..22_000))
        .take(200)
        .find(|&port| is_free(port) && is_free(port + 10_000) && !taken.contains(&port))
        .expect("a free port");
    taken.insert(port);
    port
}
