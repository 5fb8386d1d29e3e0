//! Reads the output of a child process.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Lines of a pipe, read by a thread so that the child never blocks on writing.
pub struct Lines {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Close the pipe after the next line.
    is_closing: bool,
    /// Stop reading for now.
    is_stalled: bool,
    ended: bool,
}

impl Lines {
    pub fn drain(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self {
            state: Mutex::default(),
            more: Condvar::new(),
        });
        let shared = Arc::clone(&lines);
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = plain(String::from_utf8_lossy(&line).trim_end());
                let mut state = shared.state.lock().unwrap();
                state.lines.push(text);
                let is_last = state.is_closing;
                shared.more.notify_all();
                drop(shared.more.wait_while(state, |state| state.is_stalled).unwrap());
                line.clear();
                if is_last {
                    break;
                }
            }
            // Before `ended` is set: then the pipe is closed when `wait_end` returns.
            drop(pipe);
            shared.state.lock().unwrap().ended = true;
            shared.more.notify_all();
        });
        lines
    }

    pub fn wait(&self, matches: &dyn Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        let mut seen = 0;
        loop {
            if let Some(line) = state.lines[seen..].iter().find(|line| matches(line)) {
                return Some(line.clone());
            }
            seen = state.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self.more.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn all(&self) -> Vec<String> {
        self.state.lock().unwrap().lines.clone()
    }

    pub fn close_after_next(&self) {
        self.state.lock().unwrap().is_closing = true;
    }

    pub fn stall(&self, is_stalled: bool) {
        self.state.lock().unwrap().is_stalled = is_stalled;
        self.more.notify_all();
    }

    /// Waits until the pipe is closed and read to its end (or a grandchild holds it for more than some seconds).
    pub fn wait_end(&self) {
        let state = self.state.lock().unwrap();
        drop(
            self.more
                .wait_timeout_while(state, Duration::from_secs(5), |state| !state.ended)
                .unwrap(),
        );
    }

    pub fn text(&self) -> String {
        self.state.lock().unwrap().lines.join("\n")
    }
}

/// The line without terminal colours.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut parts = line.split('\x1b');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}
