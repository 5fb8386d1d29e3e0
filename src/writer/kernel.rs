//! What the kernel knows about a connection's stream: how much of it the peer has acknowledged.

#![allow(unsafe_code, reason = "TCP_INFO has no safe binding")]

use std::os::fd::BorrowedFd;

/// Positions in the bytes written, counted from the beginning of the connection and wrapping: compare by difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Up to where the peer has acknowledged.
    pub acked: u32,
    /// Up to where we have written.
    pub written: u32,
}

/// `None` if the kernel doesn't say: Linux does since 4.19.
#[cfg(target_os = "linux")]
pub fn stream(socket: BorrowedFd<'_>) -> Option<Stream> {
    use std::mem::{MaybeUninit, offset_of};
    use std::os::fd::AsRawFd;

    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of `info`, which is borrowed for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // An older kernel writes less.
    if result != 0 || (len as usize) < offset_of!(libc::tcp_info, tcpi_bytes_retrans) + size_of::<u64>() {
        return None;
    }
    // SAFETY: all fields are integers, and were zeroed.
    let info = unsafe { info.assume_init() };
    let sent = info.tcpi_bytes_sent.wrapping_sub(info.tcpi_bytes_retrans);
    Some(Stream {
        acked: info.tcpi_bytes_acked as u32,
        written: (sent as u32).wrapping_add(info.tcpi_notsent_bytes),
    })
}

#[cfg(not(target_os = "linux"))]
pub fn stream(_socket: BorrowedFd<'_>) -> Option<Stream> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    fn eventually(what: &str, mut check: impl FnMut() -> bool) {
        let started = Instant::now();
        while !check() {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_kernel_reports_what_is_written_and_what_is_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let mut peer = TcpStream::from(socket);
        let (mut ours, _) = listener.accept().unwrap();
        let start = stream(ours.as_fd()).expect("Linux reports it");
        ours.write_all(b"hello").unwrap();
        let acked = || stream(ours.as_fd()).unwrap().acked.wrapping_sub(start.acked);
        eventually("all is acknowledged", || acked() == 5);
        let written = || stream(ours.as_fd()).unwrap().written.wrapping_sub(start.written);
        assert_eq!(written(), 5);
        // More than the peer's window: what it does not read is not acknowledged.
        (&ours).write_all(&[0; 100_000]).unwrap();
        assert_eq!(written(), 100_005);
        assert!(acked() < 100_005);
        let mut got = vec![0; 100_005];
        peer.read_exact(&mut got).unwrap();
        eventually("all is acknowledged", || acked() == 100_005);
        assert_eq!(written(), 100_005);
    }
}
