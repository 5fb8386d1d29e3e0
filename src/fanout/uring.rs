//! Many sends in one system call (io_uring), for the fan-out of a batch. The only `unsafe` on the message path.
//!
//! Each send is `MSG_DONTWAIT`: the kernel executes it during the submission, or fails it as `send` would, so nothing
//! is in flight when [`Ring::submit`] returns.

#![allow(unsafe_code, reason = "passes buffers to the kernel by address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// The most sends of one submission: with more, the first recipients' replies would wait too long.
pub const MAX_SENDS: usize = 256;

/// Linux's `MSG_DONTWAIT | MSG_NOSIGNAL`.
const FLAGS: i32 = 0x40 | 0x4000;
/// After this many calls without progress, for lack of memory for example, the ring is given up.
const MAX_IDLE_ROUNDS: u32 = 100;

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;

/// One thread's ring.
pub struct Ring {
    ring: IoUring,
    /// A submission has failed: the ring must not be used again.
    is_broken: bool,
}

impl Ring {
    /// Creates a ring for the calling thread, which must be the only one to use it.
    ///
    /// # Errors
    ///
    /// The kernel is older than 6.1, or io_uring is forbidden, as in many containers.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(MAX_SENDS as u32)?;
        Ok(Self {
            ring,
            is_broken: false,
        })
    }

    /// Checks whether the kernel supports what is needed: creates a ring, uses it and drops it.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn probe() -> io::Result<()> {
        use std::io::Read;
        use std::os::fd::AsFd;
        let (mut near, far) = std::os::unix::net::UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let mut results = Vec::new();
        Self::new()?.submit(std::iter::once((far.as_fd(), &b"?"[..])), &mut results);
        results.pop().unwrap_or(Err(io::ErrorKind::Unsupported.into()))?;
        near.read_exact(&mut [0])
    }

    /// Simulates a failed submission.
    #[cfg(test)]
    pub fn break_it(&mut self) {
        self.is_broken = true;
    }

    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Sends each buffer to its socket; the results are those of `send(2)`, in order. What is not sent, because there
    /// are more than [`MAX_SENDS`] or the ring is broken, "would block".
    pub fn submit<'a>(
        &mut self,
        sends: impl Iterator<Item = (BorrowedFd<'a>, &'a [u8])>,
        results: &mut Vec<io::Result<usize>>,
    ) {
        results.clear();
        let mut is_usable = !self.is_broken;
        // Marked as broken until done: if the iterator panics, addresses stay in the queue.
        self.is_broken = true;
        let mut count = 0;
        for (number, (socket, bytes)) in sends.enumerate() {
            results.push(Err(io::ErrorKind::WouldBlock.into()));
            if !is_usable || number >= MAX_SENDS {
                continue;
            }
            let send = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
                .flags(FLAGS)
                .build()
                .user_data(number as u64);
            // SAFETY: the socket and the buffer are borrowed for longer than this call, and `finish` does not return
            // while the kernel may still access them. A queue left behind by a panic is never submitted.
            is_usable = unsafe { self.ring.submission().push(&send) }.is_ok();
            count += usize::from(is_usable);
        }
        if is_usable {
            self.is_broken = false;
            self.finish(count, results);
        }
    }

    /// Submits what is queued and waits for every completion.
    fn finish(&mut self, count: usize, results: &mut [io::Result<usize>]) {
        let (mut done, mut idle_rounds) = (0, 0);
        while done < count {
            let done_before = done;
            let error = self.ring.submit_and_wait(count - done).err();
            for completion in self.ring.completion() {
                done += 1;
                if let Some(result) = results.get_mut(completion.user_data() as usize) {
                    *result = match completion.result() {
                        sent @ 0.. => Ok(sent as usize),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
            }
            idle_rounds = if done == done_before { idle_rounds + 1 } else { 0 };
            let is_passing = match error.and_then(|error| error.raw_os_error()) {
                None | Some(EINTR | EAGAIN | EBUSY) => idle_rounds < MAX_IDLE_ROUNDS,
                Some(_) => false,
            };
            if !is_passing {
                return self.give_up(count - done);
            }
        }
    }

    /// The kernel accepts no more. Entries it has not taken are dropped with the ring; those it has taken are done, as
    /// every send is `MSG_DONTWAIT`.
    fn give_up(&mut self, outstanding: usize) {
        self.is_broken = true;
        if self.ring.submission().len() < outstanding {
            // The kernel holds buffers that are about to be reused. No kernel is known to do this.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A ring; `None` if the kernel forbids it, unless `TEST_REQUIRE_IO_URING` is set.
    fn ring() -> Option<Ring> {
        let ring = Ring::new();
        assert_eq!(ring.is_ok(), Ring::probe().is_ok(), "the probe is right");
        let is_required = std::env::var_os("TEST_REQUIRE_IO_URING").is_some();
        assert!(
            ring.is_ok() || !is_required,
            "io_uring is not available: {:?}",
            ring.err()
        );
        ring.ok()
    }

    #[test]
    fn results_are_those_of_send() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (gone, widow) = UnixStream::pair().unwrap();
        let (_silent, full) = UnixStream::pair().unwrap();
        drop(gone);
        let flood = vec![b'.'; 8 << 20];
        let Some(mut ring) = ring() else { return };
        let mut results = Vec::new();
        for _ in 0..3 {
            ring.submit(
                [
                    (far.as_fd(), &b"one"[..]),
                    (widow.as_fd(), b"nobody"),
                    (full.as_fd(), &flood),
                    (far.as_fd(), b"two"),
                ]
                .into_iter(),
                &mut results,
            );
            assert_eq!(*results[0].as_ref().unwrap(), 3);
            assert_eq!(results[1].as_ref().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            match &results[2] {
                Ok(sent) => assert!((1..flood.len()).contains(sent), "{sent}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert_eq!(*results[3].as_ref().unwrap(), 3);
            let mut got = [0; 6];
            near.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"onetwo");
        }
        assert_eq!(
            results[2].as_ref().unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "a full socket refuses"
        );
        assert!(!ring.is_broken());
    }

    #[test]
    fn a_full_ring_is_sent_and_excess_sends_are_refused() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let sends = |count| std::iter::repeat_n((far.as_fd(), &b"x"[..]), count);
        let mut results = Vec::new();
        let Some(mut ring) = ring() else { return };
        ring.submit(sends(MAX_SENDS), &mut results);
        assert!(results.len() == MAX_SENDS && results.iter().all(|sent| matches!(sent, Ok(1))));
        near.read_exact(&mut [0; MAX_SENDS]).unwrap();
        ring.submit(sends(0), &mut results);
        assert!(results.is_empty());
        ring.submit(sends(MAX_SENDS + 1), &mut results);
        assert!(results[..MAX_SENDS].iter().all(Result::is_ok));
        assert!(results[MAX_SENDS].is_err(), "one too many is not sent");
        near.read_exact(&mut [0; MAX_SENDS]).unwrap();
        // A panic of the iterator leaves addresses in the queue, which are never submitted.
        let half = sends(3).inspect(|_| panic!("half way"));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ring.submit(sends(2).chain(half), &mut Vec::new());
        }));
        assert!(unwound.is_err() && ring.is_broken());
        ring.submit(sends(1), &mut results);
        assert!(results[0].is_err());
        near.set_nonblocking(true).unwrap();
        assert_eq!(near.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
