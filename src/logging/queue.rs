//! The queue of lines for the thread that writes them. tracing-appender is not used because it bounds the number of
//! lines rather than bytes, doesn't count lines that can't be written, and can't be flushed before
//! `std::process::exit`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The most bytes that may wait: some 20,000 lines, so that none are lost when the reader pauses briefly.
const MAX_BYTES: usize = 4 << 20;
/// A larger buffer is freed once it is empty.
const MAX_KEPT_BYTES: usize = 64 << 10;
/// How long to wait before a retry if standard error is a full non-blocking pipe.
const RETRY: Duration = Duration::from_millis(10);

pub(super) struct Queue {
    is_terminal: bool,
    state: Mutex<State>,
    has_lines: Condvar,
    is_written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    waiting_lines: u64,
    /// Whether the thread is writing lines that it has dequeued.
    is_writing: bool,
    lost: u64,
}

impl Queue {
    /// Starts the thread that writes to standard error.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        // A duplicate descriptor: otherwise std's lock on standard error would be held while a write blocks.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let is_terminal = stderr.is_terminal();
        Self::start_with(stderr, is_terminal)
    }

    fn start_with(mut out: impl Write + Send + 'static, is_terminal: bool) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            is_terminal,
            state: Mutex::default(),
            has_lines: Condvar::new(),
            is_written: Condvar::new(),
        });
        let for_thread = Arc::clone(&queue);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || for_thread.write_forever(&mut out))?;
        Ok(queue)
    }

    fn write_forever(&self, out: &mut impl Write) {
        let mut lines = Vec::new();
        let mut reported = 0;
        loop {
            let mut state = self.state.lock();
            while state.waiting.is_empty() {
                self.has_lines.wait(&mut state);
            }
            std::mem::swap(&mut lines, &mut state.waiting);
            let count = std::mem::take(&mut state.waiting_lines);
            state.is_writing = true;
            drop(state);

            let is_written = write_all(out, &lines).is_ok();
            lines.clear();
            if lines.capacity() > MAX_KEPT_BYTES {
                lines = Vec::new();
            }

            let mut state = self.state.lock();
            state.is_writing = false;
            if !is_written {
                state.lost += count;
            }
            let lost = state.lost;
            drop(state);
            self.is_written.notify_all();
            if is_written && lost > reported {
                tracing::warn!(
                    lines = lost - reported,
                    "log lines were lost: nobody reads them fast enough"
                );
                reported = lost;
            }
        }
    }

    /// Waits at most `timeout` until all lines so far are written.
    pub(super) fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.is_writing || !state.waiting.is_empty() {
            if self.is_written.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    pub(super) fn lost_lines(&self) -> u64 {
        self.state.lock().lost
    }
}

/// The subscriber writes each line in one call.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let safe = escaped(line, self.is_terminal);
        let mut state = self.state.lock();
        if state.waiting.len() + safe.len() > MAX_BYTES {
            state.lost += 1;
            return Ok(line.len());
        }
        state.waiting.extend_from_slice(&safe);
        state.waiting_lines += 1;
        // After each write the thread checks the queue by itself.
        let is_idle = !state.is_writing;
        drop(state);
        if is_idle {
            self.has_lines.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line with control characters escaped, so that a message of a panic or a library can't break out of its line. In
/// JSON they are escaped already. On a terminal, escape characters are kept: the subscriber uses them for colours, and
/// has escaped those in messages.
fn escaped(line: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    // Control characters beyond ASCII (U+0080 to U+009F) start with 0xC2 in UTF-8.
    let may_be = |byte: &u8| byte.is_ascii_control() || *byte == 0xc2;
    if !text.iter().any(may_be) {
        return Cow::Borrowed(line);
    }
    let mut safe = String::with_capacity(line.len() + 16);
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '\u{1b}' if is_terminal => safe.push(c),
            _ if c.is_control() => safe.extend(c.escape_debug()),
            _ => safe.push(c),
        }
    }
    let mut safe = safe.into_bytes();
    safe.extend_from_slice(&line[text.len()..]);
    Cow::Owned(safe)
}

fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A writer that completes each write with the result sent through `gate`.
    struct Gated {
        gate: Receiver<io::Result<()>>,
        out: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.gate.recv().unwrap_or(Ok(()))?;
            // A partial write, as with a pipe.
            let taken = bytes.len().div_ceil(2);
            self.out.lock().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Written = Arc<Mutex<Vec<u8>>>;

    fn gated() -> (Arc<Queue>, SyncSender<io::Result<()>>, Written) {
        let (open, gate) = sync_channel(0);
        let out = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&out);
        let queue = Queue::start_with(Gated { gate, out: shared }, false).unwrap();
        (queue, open, out)
    }

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_stalled_reader_does_not_block_logging() {
        let (queue, open, out) = gated();
        let line = [b'x'; 1024];
        let started = Instant::now();
        for _ in 0..3 * MAX_BYTES / line.len() {
            (&*queue).write_all(&line).unwrap();
        }
        queue.flush(Duration::from_millis(20));
        assert!(started.elapsed() < TIMEOUT);
        let lost = queue.lost_lines();
        assert!(lost > 0, "the queue is bounded");
        let state = queue.state.lock();
        assert!(state.waiting.len() <= MAX_BYTES);
        drop(state);

        // Once it reads again, the kept lines arrive whole, followed by the new one.
        drop(open);
        queue.flush(TIMEOUT);
        (&*queue).write_all(b"the end").unwrap();
        queue.flush(TIMEOUT);
        let out = out.lock();
        assert!(out.ends_with(b"xthe end"));
        let kept = 3 * MAX_BYTES / line.len() - usize::try_from(lost).unwrap();
        assert_eq!(out.len(), kept * line.len() + b"the end".len());
    }

    #[test]
    fn control_characters_are_escaped() {
        let (queue, open, out) = gated();
        drop(open);
        for line in [
            "unchanged: \u{e9} \"\\\"\n",
            "panicked: a\r\nb\t\0\u{1b}[31m\u{7f}\u{9b}\u{e9}\n",
            "no end",
        ] {
            (&*queue).write_all(line.as_bytes()).unwrap();
        }
        queue.flush(TIMEOUT);
        let expected =
            "unchanged: \u{e9} \"\\\"\npanicked: a\\r\\nb\\t\\0\\u{1b}[31m\\u{7f}\\u{9b}\u{e9}\nno end";
        assert_eq!(String::from_utf8_lossy(&out.lock()), expected);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_as_lost_and_the_next_is_written() {
        let (queue, open, out) = gated();
        (&*queue).write_all(b"lost\n").unwrap();
        open.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        queue.flush(TIMEOUT);
        assert_eq!(queue.lost_lines(), 1);
        (&*queue).write_all(b"written\n").unwrap();
        open.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        drop(open);
        queue.flush(TIMEOUT);
        assert_eq!(out.lock().as_slice(), b"written\n");
        assert_eq!(queue.lost_lines(), 1);
    }
}
