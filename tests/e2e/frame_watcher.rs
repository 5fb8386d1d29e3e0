//! A connection that stays: a thread reads its text frames and hands each to what checks them.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Frame, Opcode, RawWs};

/// What adds up the frames of a connection.
pub trait Received: Default + Send + 'static {
    fn take(&mut self, frame: &Value);
    /// What was wrong with the frames so far.
    fn wrong(&self) -> &[String];
    fn events(&self) -> u64;
}

pub struct FrameWatcher<T> {
    pub name: String,
    received: Arc<Mutex<T>>,
    /// To close it with, while the thread reads.
    socket: TcpStream,
    reader: JoinHandle<()>,
}

impl<T: Received> FrameWatcher<T> {
    /// Takes over a connection from its greeting on.
    pub fn start(name: String, mut ws: RawWs) -> Self {
        // A quiet session is no fault, and the stream ends when the node does.
        ws.set_read_timeout(Duration::from_secs(3600));
        let socket = ws.stream().try_clone().expect("a second handle of the socket");
        let received = Arc::new(Mutex::new(T::default()));
        let shared = Arc::clone(&received);
        let reader = thread::spawn(move || {
            while let Some(frame) = ws.read_frame() {
                if frame.is(Opcode::Close) {
                    ws.try_write(&Frame::new(Opcode::Close, &frame.payload).encode());
                } else if frame.is(Opcode::Text) {
                    let frame = serde_json::from_slice(&frame.payload).expect("JSON in a text frame");
                    locked(&shared).take(&frame);
                }
            }
        });
        Self {
            name,
            received,
            socket,
            reader,
        }
    }

    pub fn received(&self) -> MutexGuard<'_, T> {
        locked(&self.received)
    }

    /// Asks for the end; [`FrameWatcher::end`] waits for it.
    pub fn close(&self) {
        let closed = (&self.socket).write_all(&Frame::close(1000, "").encode());
        closed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Nothing was wrong so far.
    pub fn check(&self) {
        let received = self.received();
        let wrong = received.wrong();
        let first = &wrong[..wrong.len().min(5)];
        assert!(
            wrong.is_empty(),
            "{} received {} wrong frames: {first:#?}",
            self.name,
            wrong.len()
        );
    }

    /// Waits for the end of the stream. Returns how many events it received.
    pub fn end(self) -> u64 {
        self.check();
        let Self { name, received, .. } = self;
        assert!(self.reader.join().is_ok(), "{name}: its reader failed");
        let received = locked(&received);
        assert_eq!(received.wrong(), [""; 0], "{name}");
        received.events()
    }
}

fn locked<T>(received: &Mutex<T>) -> MutexGuard<'_, T> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}
