//! Lines that wait for the thread that writes them. Of our own, since tracing-appender bounds the number of lines and
//! not their bytes, doesn't count what can't be written, and can't be flushed before `std::process::exit`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The most that waits: some 20,000 lines, so that a reader that pauses for a moment misses none.
const MAX_BYTES: usize = 4 << 20;
/// An empty buffer of more than this is given back.
const MAX_KEPT_BYTES: usize = 64 << 10;
/// How long to wait before standard error is tried again where it is a pipe that doesn't block.
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
    /// Whether the thread is writing what it has taken.
    is_writing: bool,
    lost: u64,
}

impl Queue {
    /// Starts the thread that writes to standard error.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        // A descriptor of its own: std's lock on standard error would be held while a write blocks.
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
            .spawn(move || for_thread.write_for_ever(&mut out))?;
        Ok(queue)
    }

    fn write_for_ever(&self, out: &mut impl Write) {
        let mut lines = Vec::new();
        let mut told = 0;
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
            if is_written && lost > told {
                tracing::warn!(
                    lines = lost - told,
                    "log lines were lost: nobody reads them fast enough"
                );
                told = lost;
            }
        }
    }

    /// Waits until every line so far is written, or for `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
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
        // While the thread writes it looks again by itself.
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

/// The line with control characters escaped, as in JSON they are already: whatever a panic or a library says stays in its
/// line. The subscriber colours a terminal's lines, and escapes what would in their texts.
fn escaped(line: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    // Those beyond ASCII (U+0080 to U+009F) begin with 0xC2 in UTF-8.
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

    /// Takes each write when it is told to, and answers what it is told.
    struct Gated {
        gate: Receiver<io::Result<()>>,
        out: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.gate.recv().unwrap_or(Ok(()))?;
            // In pieces, as a pipe may.
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

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read() {
        let (queue, open, out) = gated();
        let line = [b'x'; 1024];
        let begun = Instant::now();
        for _ in 0..3 * MAX_BYTES / line.len() {
            (&*queue).write_all(&line).unwrap();
        }
        queue.flush(Duration::from_millis(20));
        assert!(begun.elapsed() < PATIENCE);
        let lost = queue.lost_lines();
        assert!(lost > 0, "the queue is bounded");
        let state = queue.state.lock();
        assert!(state.waiting.len() <= MAX_BYTES);
        drop(state);

        // It reads again: what was kept comes whole, and what is new comes behind it.
        drop(open);
        queue.flush(PATIENCE);
        (&*queue).write_all(b"the end").unwrap();
        queue.flush(PATIENCE);
        let out = out.lock();
        assert!(out.ends_with(b"xthe end"));
        let kept = 3 * MAX_BYTES / line.len() - usize::try_from(lost).unwrap();
        assert_eq!(out.len(), kept * line.len() + b"the end".len());
    }

    #[test]
    fn what_a_line_says_is_in_one_line() {
        let (queue, open, out) = gated();
        drop(open);
        for line in [
            "as it is: \u{e9} \"\\\"\n",
            "panicked: a\r\nb\t\0\u{1b}[31m\u{7f}\u{9b}\u{e9}\n",
            "no end",
        ] {
            (&*queue).write_all(line.as_bytes()).unwrap();
        }
        queue.flush(PATIENCE);
        let expected =
            "as it is: \u{e9} \"\\\"\npanicked: a\\r\\nb\\t\\0\\u{1b}[31m\\u{7f}\\u{9b}\u{e9}\nno end";
        assert_eq!(String::from_utf8_lossy(&out.lock()), expected);
    }

    #[test]
    fn what_can_not_be_written_is_counted_and_the_next_is_tried() {
        let (queue, open, out) = gated();
        (&*queue).write_all(b"lost\n").unwrap();
        open.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        queue.flush(PATIENCE);
        assert_eq!(queue.lost_lines(), 1);
        (&*queue).write_all(b"written\n").unwrap();
        open.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        drop(open);
        queue.flush(PATIENCE);
        assert_eq!(out.lock().as_slice(), b"written\n");
        assert_eq!(queue.lost_lines(), 1);
    }
}
