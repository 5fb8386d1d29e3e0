//! A proxy between a node and Redis that can stop between two pipelines: what a dead node leaves behind depends on when
//! it dies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::support::PATIENCE;

/// Passes bytes on in both directions. Its threads end with their connections.
pub struct Proxy {
    pub url: String,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Behind a request with all of these words, answers wait.
    hold: Vec<String>,
    is_holding: bool,
    /// Behind a request with all of these words, nothing passes any more.
    cut: Vec<String>,
    is_cut: bool,
}

impl Proxy {
    /// To `redis://HOST:PORT`.
    #[track_caller]
    pub fn to(redis: &str) -> Self {
        Self::paced(redis, None)
    }

    /// Answers come at so many bytes a second.
    #[track_caller]
    pub fn slow(redis: &str, pace: u64) -> Self {
        Self::paced(redis, Some(pace))
    }

    #[track_caller]
    fn paced(redis: &str, pace: Option<u64>) -> Self {
        let upstream = redis.trim_start_matches("redis://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("redis://{}", listener.local_addr().expect("an address"));
        let gate = Arc::new(Gate::default());
        let shared = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&upstream)) else {
                    return;
                };
                let (to_client, to_server) = (client.try_clone(), server.try_clone());
                let (to_client, to_server) = (to_client.expect("a handle"), to_server.expect("a handle"));
                let (requests, answers) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || {
                    pass(client, to_server, None, |request, send| {
                        requests.ask(request, send)
                    })
                });
                thread::spawn(move || {
                    pass(server, to_client, pace, |answer, send| {
                        answers.answer(answer, send)
                    })
                });
            }
        });
        Self { url, gate }
    }

    /// Redis gets the next request with these words, the node gets no answer.
    pub fn hold_answers_to(&self, words: &[&str]) {
        self.gate.lock().hold = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// Nothing passes behind the next request with these words.
    pub fn cut_after(&self, words: &[&str]) {
        self.gate.lock().cut = words.iter().map(|&word| word.to_owned()).collect();
    }

    #[track_caller]
    pub fn wait_held(&self) {
        self.gate.wait("an answer that waits", |state| state.is_holding);
    }

    #[track_caller]
    pub fn wait_cut(&self) {
        self.gate.wait("the cut", |state| state.is_cut);
    }

    /// The answers go on.
    pub fn release(&self) {
        self.gate.lock().is_holding = false;
        self.gate.changed.notify_all();
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait(&self, what: &str, is: impl Fn(&State) -> bool) {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |state| !is(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(is(&state), "never happened: {what}");
    }

    fn ask(&self, request: &[u8], send: &mut dyn FnMut()) -> bool {
        let mut state = self.lock();
        if state.is_cut {
            return false;
        }
        let text = String::from_utf8_lossy(request);
        let has = |words: &[String]| !words.is_empty() && words.iter().all(|word| text.contains(word));
        // Before it is sent, or its answer could be through already.
        if has(&state.hold) {
            state.hold.clear();
            state.is_holding = true;
        }
        state.is_cut = has(&state.cut);
        send();
        self.changed.notify_all();
        !state.is_cut
    }

    fn answer(&self, _: &[u8], send: &mut dyn FnMut()) -> bool {
        let waiting = self
            .changed
            .wait_while(self.lock(), |state| state.is_holding && !state.is_cut);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        send();
        true
    }
}

/// Reads, and lets the gate send; until either side ends or the gate says so.
fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    pace: Option<u64>,
    gate: impl Fn(&[u8], &mut dyn FnMut()) -> bool,
) {
    // A slow link has its bytes in small portions.
    let mut chunk = vec![0; if pace.is_some() { 16 << 10 } else { 1 << 20 }];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        if let Some(pace) = pace {
            thread::sleep(Duration::from_micros(read as u64 * 1_000_000 / pace));
        }
        let mut is_sent = false;
        let goes_on = gate(&chunk[..read], &mut || {
            is_sent = to.write_all(&chunk[..read]).is_ok()
        });
        if !goes_on {
            // The connection stays, silent, until the node dies.
            while from.read(&mut chunk).is_ok_and(|read| read > 0) {}
        }
        if !goes_on || !is_sent {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
