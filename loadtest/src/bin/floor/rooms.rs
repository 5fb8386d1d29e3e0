//! The sockets of each session.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use livechat_loadtest::ws;

/// The sockets of each session. They block: a slow reader stops everyone, which is a price the floor need not pay,
/// since the load's readers are quick.
#[derive(Default)]
pub struct Rooms(Mutex<HashMap<String, Vec<Arc<TcpStream>>>>);

impl Rooms {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<TcpStream>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, session: &str, socket: &Arc<TcpStream>) {
        let mut rooms = self.lock();
        match rooms.get_mut(session) {
            Some(room) => room.push(Arc::clone(socket)),
            None => drop(rooms.insert(session.to_owned(), vec![Arc::clone(socket)])),
        }
    }

    pub fn leave(&self, session: &str, socket: &Arc<TcpStream>) {
        let mut rooms = self.lock();
        if let Some(room) = rooms.get_mut(session) {
            room.retain(|member| !Arc::ptr_eq(member, socket));
            if room.is_empty() {
                rooms.remove(session);
            }
        }
    }

    pub fn has(&self, session: &str) -> bool {
        self.lock().contains_key(session)
    }

    /// One message to every socket of a session.
    pub fn send_one(&self, session: &str, payload: &[u8]) {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        ws::write_head(&mut frame, ws::TEXT, payload.len());
        frame.extend_from_slice(payload);
        self.send(session, &frame);
    }

    /// Whole frames to every socket of a session.
    pub fn send(&self, session: &str, frames: &[u8]) {
        if let Some(room) = self.lock().get(session) {
            for mut socket in room.iter().map(Arc::as_ref) {
                // A closed socket is removed when epoll reports it.
                let _ = socket.write_all(frames);
            }
        }
    }
}

/// Messages that arrived together, by session; reuses its buffers.
#[derive(Default)]
pub struct Batch {
    sessions: HashMap<String, Vec<u8>>,
    records: usize,
    bytes: usize,
}

/// As the server's batches.
const MAX_RECORDS: usize = 1_024;
const MAX_BYTES: usize = 1 << 20;

impl Batch {
    pub fn push(&mut self, session: &str, payload: &[u8]) {
        let frames = match self.sessions.get_mut(session) {
            Some(frames) => frames,
            None => self.sessions.entry(session.to_owned()).or_default(),
        };
        ws::write_head(frames, ws::TEXT, payload.len());
        frames.extend_from_slice(payload);
        self.records += 1;
        self.bytes += payload.len();
    }

    pub fn is_full(&self) -> bool {
        self.records >= MAX_RECORDS || self.bytes >= MAX_BYTES
    }

    /// Sends everything; returns the number of messages.
    pub fn send(&mut self, rooms: &Rooms) -> usize {
        let records = std::mem::take(&mut self.records);
        self.bytes = 0;
        for (session, frames) in self.sessions.iter_mut().filter(|(_, frames)| !frames.is_empty()) {
            rooms.send(session, frames);
            frames.clear();
        }
        records
    }
}
