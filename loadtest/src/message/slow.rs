//! One reader that can't keep up, among others that can: its backlog must not delay them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ws::{self, Answer};

/// It reads so much so often, 20 KiB a second: too much to be given up, too little to catch up with [`FLOOD`].
const SIP: usize = 2 * 1024;
const INTERVAL: Duration = Duration::from_millis(100);

/// What its session is sent before anything is measured, in messages of [`FLOOD_MESSAGE`] bytes: more than the
/// kernel's buffers hold, some 3 MiB between two sockets on loopback.
pub const FLOOD: usize = 80;
pub const FLOOD_MESSAGE: usize = 60_000;

/// Server settings with which it may lag behind for a whole round.
pub const SETTINGS: [(&str, &str); 2] = [("SEND_QUEUE_BYTES", "8388608"), ("SEND_TIMEOUT", "120s")];

pub struct SlowReader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<bool>>,
}

impl SlowReader {
    pub fn start(addr: SocketAddr, path: &str) -> Result<Self> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.write_all(&ws::handshake(&addr.to_string(), path))?;
        let mut answer = vec![0; 1024];
        let read = socket.read(&mut answer).context("the slow reader's upgrade")?;
        ensure!(
            matches!(ws::read_answer(&answer[..read]), Answer::Upgraded(_)),
            "the slow reader was refused"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut sip = [0; SIP];
            while !theirs.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
                if matches!(socket.read(&mut sip), Ok(0)) {
                    return false;
                }
            }
            true
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Whether it was still connected.
    pub fn finish(mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .is_some_and(|thread| thread.join().unwrap_or(false))
    }
}

impl Drop for SlowReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
