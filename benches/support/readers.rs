//! The clients' ends: they read, and count what they have read.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use parking_lot::{Condvar, Mutex};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::PATIENCE;

/// The size of a read.
const READ_BYTES: usize = 16 * 1024;

/// All clients together.
#[derive(Default)]
pub struct Readers {
    tally: Mutex<Tally>,
    complete: Condvar,
}

#[derive(Default)]
struct Tally {
    read: u64,
    wanted: u64,
}

impl Readers {
    /// Expects them to get this many more bytes.
    pub fn expect(&self, bytes: usize) {
        self.tally.lock().wanted += bytes as u64;
    }

    /// Waits until they have everything expected.
    pub fn wait(&self) {
        let mut tally = self.tally.lock();
        while tally.read < tally.wanted {
            let outcome = self.complete.wait_for(&mut tally, PATIENCE);
            assert!(
                !outcome.timed_out(),
                "readers got {} of {} bytes",
                tally.read,
                tally.wanted
            );
        }
        assert_eq!(tally.read, tally.wanted, "readers got more than was sent");
    }

    /// Reads a socket to its end.
    pub async fn drain(self: Arc<Self>, mut socket: TcpStream) -> io::Result<()> {
        loop {
            // The buffer is made for each poll, so that a thousand readers hold none. After a short read tokio knows
            // that there is no more, unlike after `try_read`: one call for a chunk.
            let read = poll_fn(|context| {
                let mut memory = [MaybeUninit::uninit(); READ_BYTES];
                let mut buffer = ReadBuf::uninit(&mut memory);
                ready!(Pin::new(&mut socket).poll_read(context, &mut buffer))?;
                Poll::Ready(io::Result::Ok(buffer.filled().len()))
            });
            match read.await? {
                0 => return Ok(()),
                bytes => self.count(bytes),
            }
        }
    }

    fn count(&self, bytes: usize) {
        let mut tally = self.tally.lock();
        tally.read += bytes as u64;
        if tally.read >= tally.wanted {
            self.complete.notify_one();
        }
    }
}
