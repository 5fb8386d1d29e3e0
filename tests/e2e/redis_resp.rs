//! A hand-written Redis client (RESP2 over a blocking socket), so that tests read what the server wrote with other code
//! than the server's.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::PATIENCE;

/// One connection to a Redis.
pub struct RedisClient(BufReader<TcpStream>);

/// An answer of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resp {
    /// A simple string or a bulk string.
    Text(String),
    Number(i64),
    Nil,
    Array(Vec<Resp>),
    Error(String),
}

impl Resp {
    #[track_caller]
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            other => panic!("not a string: {other:?}"),
        }
    }

    #[track_caller]
    fn texts(self) -> Vec<String> {
        match self {
            Self::Array(items) => items.into_iter().map(Resp::text).collect(),
            other => panic!("not an array: {other:?}"),
        }
    }
}

impl RedisClient {
    /// To `redis://HOST:PORT`, with or without more behind it; the default user, no password.
    #[track_caller]
    pub fn connect(url: &str) -> Self {
        let address = url.rsplit(['/', '@']).find(|part| part.contains(':'));
        let address = address.unwrap_or_else(|| panic!("no address in {url}"));
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{url}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        Self(BufReader::new(stream))
    }

    /// Any command; an error reply is an answer, too.
    #[track_caller]
    pub fn ask(&mut self, command: &[&str]) -> Resp {
        let mut bytes = format!("*{}\r\n", command.len());
        for word in command {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0
            .get_mut()
            .write_all(bytes.as_bytes())
            .expect("write to Redis");
        self.read()
    }

    /// As [`RedisClient::ask`], but an error reply fails the test.
    #[track_caller]
    pub fn command(&mut self, command: &[&str]) -> Resp {
        match self.ask(command) {
            Resp::Error(error) => panic!("{command:?}: {error}"),
            answer => answer,
        }
    }

    #[track_caller]
    pub fn hget(&mut self, key: &str, field: &str) -> Option<String> {
        match self.command(&["HGET", key, field]) {
            Resp::Nil => None,
            value => Some(value.text()),
        }
    }

    #[track_caller]
    pub fn hgetall(&mut self, key: &str) -> BTreeMap<String, String> {
        let flat = self.command(&["HGETALL", key]).texts();
        flat.chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect()
    }

    /// The value of a user in a session's hash, as other services read it.
    #[track_caller]
    pub fn user(&mut self, session: &str, user: &str) -> Option<Value> {
        let value = self.hget(&users_key(session), user)?;
        Some(serde_json::from_str(&value).unwrap_or_else(|error| panic!("{error}: {value}")))
    }

    /// Without the index of sessions, which remembers for a minute what has ended.
    #[track_caller]
    pub fn keys(&mut self, pattern: &str) -> Vec<String> {
        let mut keys = self.command(&["KEYS", pattern]).texts();
        keys.retain(|key| !key.starts_with("{livechat:sessions}:"));
        keys.sort_unstable();
        keys
    }

    #[track_caller]
    pub fn zrange(&mut self, key: &str) -> Vec<String> {
        self.command(&["ZRANGE", key, "0", "-1"]).texts()
    }

    /// Seconds to live; -1 without an end, -2 without the key.
    #[track_caller]
    pub fn ttl(&mut self, key: &str) -> i64 {
        match self.command(&["TTL", key]) {
            Resp::Number(seconds) => seconds,
            other => panic!("TTL {key}: {other:?}"),
        }
    }

    /// A field of INFO.
    #[track_caller]
    pub fn info(&mut self, field: &str) -> String {
        let info = self.command(&["INFO"]).text();
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in INFO")).to_owned()
    }

    #[track_caller]
    pub fn flushall(&mut self) {
        self.command(&["FLUSHALL"]);
    }

    /// Every key whose name or content holds the text: nothing of it is left anywhere if there is none.
    #[track_caller]
    pub fn keys_with(&mut self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for key in self.keys("*") {
            // A key that ends between two commands has no type any more.
            let content = match self.command(&["TYPE", &key]).text().as_str() {
                "hash" => self
                    .hgetall(&key)
                    .into_iter()
                    .flat_map(|(field, value)| [field, value])
                    .collect(),
                "zset" => self.zrange(&key),
                "set" => self.command(&["SMEMBERS", &key]).texts(),
                "list" => self.command(&["LRANGE", &key, "0", "-1"]).texts(),
                "string" => match self.command(&["GET", &key]) {
                    Resp::Text(value) => vec![value],
                    _ => Vec::new(),
                },
                _ => Vec::new(),
            };
            if key.contains(text) || content.iter().any(|part| part.contains(text)) {
                found.push(key);
            }
        }
        found
    }

    #[track_caller]
    fn read(&mut self) -> Resp {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("an answer of Redis");
        assert!(read > 0, "Redis has closed the connection");
        let (kind, rest) = line.trim_end().split_at(1);
        let number = || {
            rest.parse::<i64>()
                .unwrap_or_else(|error| panic!("{error}: {line:?}"))
        };
        match kind {
            "+" => Resp::Text(rest.to_owned()),
            "-" => Resp::Error(rest.to_owned()),
            ":" => Resp::Number(number()),
            "$" if number() < 0 => Resp::Nil,
            "$" => {
                let mut bytes = vec![0; number() as usize + 2];
                self.0.read_exact(&mut bytes).expect("a bulk string");
                bytes.truncate(bytes.len() - 2);
                Resp::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" if number() < 0 => Resp::Nil,
            "*" => Resp::Array((0..number()).map(|_| self.read()).collect()),
            _ => panic!("not RESP2: {line:?}"),
        }
    }
}

pub fn users_key(session: &str) -> String {
    format!("session:{session}:users")
}
