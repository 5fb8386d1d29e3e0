//! Kafka's own Java client, as a process (tests/kafka-client): what the server reads was not written, and what it wrote
//! is not counted, by the library it uses itself.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::Value;

use super::from_environment;
use crate::support::spec::{foreign, records as node_records};

/// Kafka as its own Java client sees it (tests/kafka-client).
#[derive(Clone)]
pub struct Kafka {
    pub brokers: String,
}

/// A record to write. No key, no headers, any partition by default.
#[derive(Clone, Default)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub partition: Option<i32>,
}

impl Record {
    /// As the chat backend writes: no key, no headers.
    pub fn old(value: impl AsRef<[u8]>) -> Self {
        Self {
            value: Some(value.as_ref().to_vec()),
            ..Self::default()
        }
    }

    /// Keyed by session, marked by its header, its value a frame's payload.
    pub fn native(session: &str, value: impl AsRef<[u8]>) -> Self {
        Self {
            key: Some(session.into()),
            ..Self::old(value)
        }
        .header("livechat-frame", "1")
    }

    /// A minimal native `new_message` with this text.
    pub fn message(session: &str, text: &str) -> Self {
        Self::native(session, new_message(text))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    fn line(&self) -> String {
        if let Some(value) = &self.value {
            let is_native = self.headers.iter().any(|(name, _)| name == "livechat-frame");
            foreign::note(value, is_native);
        }
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(Some(value))))
            .collect();
        let headers = if headers.is_empty() {
            "-".to_owned()
        } else {
            headers.join(",")
        };
        let partition = self
            .partition
            .map_or(String::new(), |partition| format!(" {partition}"));
        format!(
            "{} {} {headers}{partition}\n",
            encoded(self.key.as_deref()),
            encoded(self.value.as_deref())
        )
    }
}

/// The payload of a minimal `new_message` with this text.
pub fn new_message(text: &str) -> String {
    serde_json::json!({"type": "new_message", "success": true, "data": {"message": text}}).to_string()
}

/// A record as it stands in a topic.
#[derive(Debug, Clone)]
pub struct Stored {
    pub partition: i32,
    pub offset: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: HashMap<String, Vec<u8>>,
}

impl Stored {
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn key_text(&self) -> Option<&str> {
        self.key
            .as_deref()
            .map(|key| std::str::from_utf8(key).expect("a UTF-8 key"))
    }
}

impl Kafka {
    pub fn at(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
        }
    }

    /// Writes the records in their order and waits until the broker has confirmed each.
    #[track_caller]
    pub fn produce(&self, topic: &str, records: &[Record]) {
        self.produce_with(&[], topic, records);
    }

    /// The same by a producer with other settings.
    #[track_caller]
    pub fn produce_with(&self, settings: &[&str], topic: &str, records: &[Record]) {
        let lines: String = records.iter().map(Record::line).collect();
        let written = self.run(&[&["produce", &self.brokers, topic], settings].concat(), &lines);
        assert_eq!(
            written.trim(),
            records.len().to_string(),
            "records written to {topic}"
        );
    }

    /// All records from the beginning of the topic to its end as of now, in the order of each partition. What nodes have
    /// written has a schema in docs/spec.
    #[track_caller]
    pub fn consume(&self, topic: &str) -> Vec<Stored> {
        let records: Vec<_> = self
            .run(&["consume", &self.brokers, topic], "")
            .lines()
            .map(stored)
            .collect();
        for record in &records {
            if record.headers.contains_key("livechat-node") && record.value.is_some() {
                let headers = record.headers.keys().map(String::as_str);
                node_records::check(topic, record.key_text(), record.text(), headers);
            }
        }
        records
    }

    #[track_caller]
    pub fn create(&self, topic: &str, partitions: u32) {
        self.run(&["create", &self.brokers, topic, &partitions.to_string()], "");
    }

    /// With these settings of the topic's; `replicas=2,1` says which brokers hold it, the first of them leads.
    #[track_caller]
    pub fn create_with(&self, settings: &[&str], topic: &str, partitions: u32) {
        let create = ["create", &self.brokers, topic, &partitions.to_string()];
        self.run(&[&create, settings].concat(), "");
    }

    /// Changes settings of the topic.
    #[track_caller]
    pub fn alter(&self, topic: &str, settings: &[&str]) {
        self.run(&[&["alter", &self.brokers, topic], settings].concat(), "");
    }

    /// Each partition's leader, -1 for none, and how many replicas are in sync.
    #[track_caller]
    pub fn leaders(&self, topic: &str) -> Vec<(i32, usize)> {
        let lines = self.run(&["leaders", &self.brokers, topic], "");
        let numbers = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let leader = fields.next()?.parse().ok()?;
            Some((leader, fields.next()?.parse().ok()?))
        };
        lines
            .lines()
            .map(|line| numbers(line).expect("partition, leader, replicas"))
            .collect()
    }

    /// Denies an operation (`Write`, `Idempotent_Write`) to everybody, on a topic or on the cluster.
    #[track_caller]
    pub fn deny(&self, operation: &str, topic: Option<&str>) {
        self.run(
            &[&["deny", &self.brokers, operation], topic.as_slice()].concat(),
            "",
        );
    }

    /// Takes back a denial.
    #[track_caller]
    pub fn allow(&self, operation: &str, topic: Option<&str>) {
        self.run(
            &[&["allow", &self.brokers, operation], topic.as_slice()].concat(),
            "",
        );
    }

    /// Creates the topic unless it is there, or is just being deleted: then false.
    #[track_caller]
    pub fn try_create(&self, topic: &str, partitions: u32) -> bool {
        self.try_create_with(&[], topic, partitions)
    }

    #[track_caller]
    pub fn try_create_with(&self, settings: &[&str], topic: &str, partitions: u32) -> bool {
        let create = ["create", &self.brokers, topic, &partitions.to_string()];
        self.output(&[&create, settings].concat(), "").status.success()
    }

    /// Grows the topic to this number of partitions.
    #[track_caller]
    pub fn add_partitions(&self, topic: &str, total: u32) {
        self.run(&["add-partitions", &self.brokers, topic, &total.to_string()], "");
    }

    /// The topic's number of partitions; None if there is no such topic.
    #[track_caller]
    pub fn partitions(&self, topic: &str) -> Option<u32> {
        let output = self.output(&["partitions", &self.brokers, topic], "");
        if output.status.code() == Some(2) {
            return None;
        }
        let text = succeeded("partitions", output);
        Some(
            text.trim()
                .parse()
                .unwrap_or_else(|_| panic!("not a number: {text:?}")),
        )
    }

    /// The topic's id in base64, as Kafka writes it.
    #[track_caller]
    pub fn topic_id(&self, topic: &str) -> String {
        let text = succeeded("id", self.output(&["id", &self.brokers, topic], ""));
        text.trim().to_owned()
    }

    /// Best effort: a failure here must not hide the failure of a test.
    pub fn delete(&self, topics: &[&str]) {
        let _ = self.output(&[&["delete", &self.brokers][..], topics].concat(), "");
    }

    #[track_caller]
    fn run(&self, args: &[&str], input: &str) -> String {
        succeeded(args[0], self.output(args, input))
    }

    #[track_caller]
    fn output(&self, args: &[&str], input: &str) -> Output {
        let libs = from_environment("TEST_KAFKA_LIBS");
        // In the order of the archive, which has only the libraries.
        let classes = format!("{libs}/*:{}/*", from_environment("TEST_KAFKA_CLIENT"));
        let archive = format!("{libs}/classes.jsa");
        let archive = Path::new(&archive)
            .exists()
            .then(|| format!("-XX:SharedArchiveFile={archive}"));
        // The serial collector and the first compiler: a JVM that lives for a second should start fast.
        let flags = [
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xmx256m",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
            // An archive that it can't use is no news; and it would write that to stdout.
            "-Xlog:cds=off",
            "-Xlog:cds+dynamic=off",
        ];
        let mut java = Command::new("java");
        java.args(flags)
            .args(archive)
            .args(["-cp", &classes, "Client"])
            .args(args);
        java.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = java.spawn().expect("start java");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_owned();
        // From another thread: the client may write before it has read everything. If it fails, its exit status tells.
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("wait for java");
        writer.join().expect("the writer of java's input");
        output
    }
}

#[track_caller]
pub fn succeeded(what: &str, output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn encoded(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "-".to_owned(),
        Some([]) => "=".to_owned(),
        Some(bytes) => BASE64.encode(bytes),
    }
}

fn decoded(field: &str) -> Option<Vec<u8>> {
    match field {
        "-" => None,
        "=" => Some(Vec::new()),
        field => Some(BASE64.decode(field).expect("base64 of the Java client")),
    }
}

fn stored(line: &str) -> Stored {
    let fields: Vec<_> = line.split(' ').collect();
    let [partition, offset, key, value, headers] = fields[..] else {
        panic!("not a record: {line}")
    };
    let headers = headers.split(',').filter(|header| *header != "-").map(|header| {
        let (name, value) = header.split_once('=').expect("name=value");
        (name.to_owned(), decoded(value).unwrap_or_default())
    });
    Stored {
        partition: partition.parse().expect("a partition"),
        offset: offset.parse().expect("an offset"),
        key: decoded(key),
        value: decoded(value),
        headers: headers.collect(),
    }
}
