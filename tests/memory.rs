//! What an idle connection holds on the heap, byte by byte: a server in this process under an allocator that counts.
//!
//! `cargo test --release --test memory -- --nocapture` prints the sizes of what is held.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it panics")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use livechat_ws::Server;
use livechat_ws::config::{self, Command};

/// Connections that are measured, two to a session.
const CONNECTIONS: usize = 2_000;
/// As many come first, so that what is made once counts for none of them.
const FIRST: usize = 100;
/// Blocks are counted by size up to this one; larger ones together.
const LARGEST: usize = 4_096;
/// What one may hold, in bytes of live heap: the runtime's registration of a socket alone is 256.
const MOST: f64 = 1_100.0;

static LIVE: [AtomicI64; LARGEST + 1] = [const { AtomicI64::new(0) }; LARGEST + 1];
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

struct Counting;

fn count(size: usize, blocks: i64) {
    LIVE[size.min(LARGEST)].fetch_add(blocks, Ordering::Relaxed);
    LIVE_BYTES.fetch_add(size as i64 * blocks, Ordering::Relaxed);
}

#[allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
// SAFETY: the system's allocator does the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn serve() -> SocketAddr {
    let args = [
        "livechat-ws",
        "--port=0",
        "--ws-port=",
        "--admin-addr=",
        "--host=127.0.0.1",
        // Shorter than what is waited for until nothing changes any more.
        "--presence-grace=200ms",
    ];
    let Ok(Command::Serve(config)) = config::load(args.map(Into::into), [("", ""); 0], None) else {
        panic!("the configuration is valid");
    };
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let server = Server::bind(*config).unwrap();
            tell.send(server.addresses()[0].1).unwrap();
            server.run(std::future::pending()).await;
        });
    });
    told.recv().unwrap()
}

/// Opens connections, one after the other, and waits for the answer of each.
fn open(addr: SocketAddr, from: usize, count: usize) -> Vec<TcpStream> {
    let mut sockets: Vec<TcpStream> = Vec::with_capacity(count);
    for number in from..from + count {
        let mut socket = TcpStream::connect(addr).unwrap();
        let request = format!(
            "GET /ws/s{}/u{number}/customer HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            number / 2
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 1024];
        let read = socket.read(&mut answer).unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 101 "));
        sockets.push(socket);
    }
    sockets
}

/// Waits until nothing has been allocated or freed for a while.
fn settle() -> i64 {
    let started = Instant::now();
    let (mut last, mut since) = (LIVE_BYTES.load(Ordering::Relaxed), Instant::now());
    while since.elapsed() < Duration::from_millis(500) && started.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
        let now = LIVE_BYTES.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

fn blocks() -> Vec<i64> {
    LIVE.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

#[test]
fn an_idle_connection_holds_little() {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let addr = serve();
    drop(open(addr, 1_000_000, FIRST));
    settle();
    let (before, blocks_before) = (settle(), blocks());
    let sockets = open(addr, 0, CONNECTIONS);
    let (with, blocks_with) = (settle(), blocks());
    let each = (with - before) as f64 / CONNECTIONS as f64;
    let sizes: BTreeMap<usize, f64> = blocks_with
        .iter()
        .zip(&blocks_before)
        .map(|(with, before)| (with - before) as f64 / CONNECTIONS as f64)
        .enumerate()
        .filter(|(_, blocks)| blocks.abs() > 0.01)
        .collect();
    println!("{each:.0} bytes a connection; size of a block: blocks a connection");
    for (size, blocks) in &sizes {
        println!("{size:>5}: {blocks:.2}");
    }
    drop(sockets);
    let after = settle();
    // Less than a socket's registration and a session's entry can't be: then not all of them were there.
    assert!(each > 400.0, "{each} bytes a connection");
    assert!(each < MOST, "{each} bytes a connection: {sizes:?}");
    let left = (after - before) as f64 / CONNECTIONS as f64;
    assert!(left < 64.0, "{left} bytes of each stay when it has gone");
}
