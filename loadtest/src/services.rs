//! Where Redis and Kafka are: Redis is a child of ours on a free port, Kafka's brokers are named by `KAFKA_BROKERS`
//! (`scripts/services.sh` or `loadtest/run.sh` starts one).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Process, free_port};

const PATIENCE: Duration = Duration::from_secs(5);

/// An empty Redis that keeps nothing.
pub struct Redis {
    pub process: Process,
    addr: SocketAddr,
}

/// A Redis' counters so far.
#[derive(Clone, Copy, Default)]
pub struct RedisStats {
    /// Reads from sockets: a pipeline is one, or one per 16 KiB.
    pub reads: u64,
    pub commands: u64,
    pub cpu: Duration,
}

impl Redis {
    pub fn start() -> Result<Self> {
        let port = free_port()?;
        let text = format!("--bind 127.0.0.1 --port {port} --appendonly no --daemonize no --save");
        let mut args: Vec<String> = text.split(' ').map(str::to_owned).collect();
        args.push(String::new());
        // Valkey speaks the same protocol and takes the same arguments.
        let mut process = Process::start(Path::new("redis-server"), &args, &[])
            .or_else(|_| Process::start(Path::new("valkey-server"), &args, &[]))
            .context("redis-server is needed: scripts/redis-local.sh prepare installs it")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        process.wait_until("ready", || info(addr).is_ok())?;
        Ok(Self { process, addr })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    pub fn stats(&self) -> Result<RedisStats> {
        let info = info(self.addr)?;
        Ok(RedisStats {
            reads: field(&info, "total_reads_processed")?,
            commands: field(&info, "total_commands_processed")?,
            cpu: self.process.cpu()?,
        })
    }
}

impl RedisStats {
    /// The difference since then. The query itself is a read and a command; the second one is not counted.
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: (self.reads - before.reads).saturating_sub(1),
            commands: (self.commands - before.commands).saturating_sub(1),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }
}

fn info(addr: SocketAddr) -> Result<String> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"INFO\r\n")?;
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let length = line
        .trim_end()
        .strip_prefix('$')
        .and_then(|length| length.parse().ok());
    let mut text = vec![0; length.with_context(|| format!("Redis says {line:?}"))?];
    reader.read_exact(&mut text)?;
    Ok(String::from_utf8(text)?)
}

fn field(info: &str, name: &str) -> Result<u64> {
    let value = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {name} in INFO: Redis 6 or later is needed"))?;
    Ok(value.trim().parse()?)
}

/// The brokers, comma-separated; `None` if none are configured.
pub fn kafka_brokers() -> Option<String> {
    std::env::var("KAFKA_BROKERS")
        .ok()
        .filter(|brokers| !brokers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let info = "# Stats\r\ntotal_reads_processed_x:7\r\ntotal_reads_processed:12\r\n";
        assert_eq!(field(info, "total_reads_processed").unwrap(), 12);
        assert!(field(info, "total_reads").is_err());
    }
}
