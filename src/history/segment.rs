//! One append-only part of the recent log: entries, and the bytes that they refer to.
//!
//! The bytes are in one buffer. What has been appended is split off and frozen only when somebody reads it, so that an
//! append is a copy, and a reader gets a slice without another copy.

use bytes::{Bytes, BytesMut};

use crate::protocol::frame;
use crate::protocol::record::Form;

/// A record of the log, as [`RecentLog::append`](super::RecentLog::append) takes it.
#[derive(Clone, Copy, Debug)]
pub struct LogRecord<'a> {
    pub session_id: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// The record's timestamp, in milliseconds since 1970.
    pub time: i64,
    /// Native: `value` is a frame's payload. Legacy: it is converted when it is replayed.
    pub form: Form,
    pub value: &'a [u8],
}

/// Where a record is, and which one of its bucket precedes it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// The position of the previous entry in the same bucket.
    pub previous: u64,
    pub offset: i64,
    pub time: i64,
    pub hash: u32,
    pub partition: i32,
    start: u32,
    len: u32,
    id_len: u8,
    pub is_legacy: bool,
}

impl Entry {
    pub fn form(&self) -> Form {
        if self.is_legacy {
            Form::Legacy
        } else {
            Form::Native
        }
    }

    /// Bytes of its frame, or of a legacy record's value.
    pub fn len(&self) -> usize {
        self.len as usize - usize::from(self.id_len)
    }
}

pub(super) struct Segment {
    /// The position of its first entry.
    pub first: u64,
    pub entries: Vec<Entry>,
    /// The part of the buffer that readers may have, in its order: each piece with its start.
    pieces: Vec<(usize, Bytes)>,
    /// The rest of the buffer.
    open: BytesMut,
    /// Where `open` starts.
    open_at: usize,
    /// Bytes of the buffer.
    capacity: usize,
    /// The newest timestamp.
    pub newest: i64,
    /// The offset after the last record of each partition that was appended up to the end of this segment.
    pub ends: Vec<i64>,
}

impl Segment {
    pub fn new(bytes: usize, entries: usize) -> Self {
        let open = BytesMut::with_capacity(bytes);
        Self {
            first: 0,
            entries: Vec::with_capacity(entries),
            pieces: Vec::new(),
            capacity: open.capacity(),
            open,
            open_at: 0,
            newest: i64::MIN,
            ends: Vec::new(),
        }
    }

    /// A segment whose memory has been written to.
    pub fn touched(bytes: usize, entries: usize) -> Self {
        let mut segment = Self::new(bytes, entries);
        segment.open.resize(bytes, 1);
        segment.entries.resize(entries, Entry::default());
        segment.clear();
        segment
    }

    /// Forgets all entries. False if readers still hold some of the bytes: the buffer can't be reused yet.
    pub fn clear(&mut self) -> bool {
        self.entries.clear();
        self.ends.clear();
        self.pieces.clear();
        self.open.clear();
        (self.open_at, self.newest) = (0, i64::MIN);
        self.open.try_reclaim(self.capacity)
    }

    /// Memory, whether used or not.
    pub fn memory(&self) -> usize {
        self.capacity + self.entries.capacity() * size_of::<Entry>()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn has_room(&self, record: &LogRecord<'_>) -> bool {
        let len = record.session_id.len() + frame::text_frame_len(record.value.len());
        self.entries.len() < self.entries.capacity() && self.open.capacity() - self.open.len() >= len
    }

    /// Appends a record for which there is room.
    pub fn push(&mut self, record: &LogRecord<'_>, hash: u32, previous: u64) {
        let start = self.open.len();
        self.open.extend_from_slice(record.session_id.as_bytes());
        let is_legacy = record.form != Form::Native;
        if is_legacy {
            self.open.extend_from_slice(record.value);
        } else {
            frame::put_text_into(&mut self.open, record.value);
        }
        self.newest = self.newest.max(record.time);
        self.entries.push(Entry {
            previous,
            offset: record.offset,
            time: record.time,
            hash,
            partition: record.partition,
            // A segment is smaller than 4 GiB: its buffer is at most a segment's size or one record.
            start: (self.open_at + start) as u32,
            len: (self.open.len() - start) as u32,
            // A session id has at most 128 bytes.
            id_len: record.session_id.len() as u8,
            is_legacy,
        });
    }

    /// The position after its last entry.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub fn get(&self, position: u64) -> Option<&Entry> {
        let at = position.checked_sub(self.first)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    pub fn is_of(&self, entry: &Entry, session_id: &str) -> bool {
        usize::from(entry.id_len) == session_id.len() && self.id(entry) == session_id.as_bytes()
    }

    /// The session id, without freezing anything.
    fn id(&self, entry: &Entry) -> &[u8] {
        let (start, len) = (entry.start as usize, usize::from(entry.id_len));
        let (at, bytes) = match start.checked_sub(self.open_at) {
            Some(at) => (at, &self.open[..]),
            None => {
                let number = self.pieces.partition_point(|(first, _)| *first <= start);
                match number.checked_sub(1).map(|last| &self.pieces[last]) {
                    Some((first, piece)) => (start - first, &piece[..]),
                    None => return &[],
                }
            }
        };
        bytes.get(at..at + len).unwrap_or_default()
    }

    /// The frame of a native entry, or the value of a legacy one.
    pub fn bytes(&mut self, entry: &Entry) -> Bytes {
        if !self.open.is_empty() && entry.start as usize >= self.open_at {
            let piece = self.open.split().freeze();
            let len = piece.len();
            self.pieces.push((self.open_at, piece));
            self.open_at += len;
        }
        let (start, end) = (entry.start as usize, (entry.start + entry.len) as usize);
        let number = self.pieces.partition_point(|(first, _)| *first <= start);
        match number.checked_sub(1).map(|last| &self.pieces[last]) {
            Some((first, piece)) => piece.slice(start - first + usize::from(entry.id_len)..end - first),
            None => Bytes::new(),
        }
    }
}
