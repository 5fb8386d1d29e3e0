//! The PROXY protocol, versions 1 and 2: a load balancer below HTTP sends the client's address before the first request
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The first bytes of every version 2 header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, command, family and length.
const FIXED: usize = 16;
/// The longest version 1 header, including its line end.
const MOST_TEXT: usize = 107;
/// The longest version 2 header that is accepted: addresses take at most 216 bytes, and certificates may follow.
const MOST_BINARY: usize = 4096;

/// Why there is no address.
#[derive(Debug)]
pub enum Refusal {
    /// The peer disconnected without sending anything: a port probe.
    Silent,
    /// The bytes are not a header.
    Malformed,
    /// The connection ended inside the header.
    Lost,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}

/// Reads the header and nothing beyond it. `None`: the connection is the balancer's own (LOCAL, UNKNOWN), or its
/// address family is not IP.
pub async fn read(socket: &mut TcpStream) -> Result<Option<IpAddr>, Refusal> {
    let mut header = Vec::with_capacity(256);
    let length = loop {
        let consumed = header.len();
        header.resize(consumed + 256, 0);
        // Peeked: the first request may be in the same packet.
        let seen = socket.peek(&mut header[consumed..]).await?;
        header.truncate(consumed + seen);
        if seen == 0 {
            return Err(if consumed == 0 {
                Refusal::Silent
            } else {
                Refusal::Lost
            });
        }
        let length = length(&header)?;
        // As long as the header is incomplete, all of this belongs to it.
        let end = length.unwrap_or(header.len());
        header.resize(end, 0);
        socket.read_exact(&mut header[consumed..]).await?;
        if let Some(length) = length {
            break length;
        }
    };
    parse(&header[..length])
}

/// The length of the header that begins with these bytes; `None`: not known yet, and all of them belong to it.
fn length(seen: &[u8]) -> Result<Option<usize>, Refusal> {
    let begins_with = |start: &[u8]| {
        let common = seen.len().min(start.len());
        seen[..common] == start[..common]
    };
    if begins_with(SIGNATURE) {
        let Some(length) = seen.get(FIXED - 2..FIXED) else {
            return Ok(None);
        };
        let length = FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
        return if length <= MOST_BINARY {
            Ok(Some(length))
        } else {
            Err(Refusal::Malformed)
        };
    }
    if !begins_with(b"PROXY ") {
        return Err(Refusal::Malformed);
    }
    let line = &seen[..seen.len().min(MOST_TEXT)];
    match line.iter().position(|&byte| byte == b'\n') {
        Some(end) => Ok(Some(end + 1)),
        None if seen.len() < MOST_TEXT => Ok(None),
        None => Err(Refusal::Malformed),
    }
}

/// The source address in a complete header.
fn parse(header: &[u8]) -> Result<Option<IpAddr>, Refusal> {
    let address = match header.strip_prefix(SIGNATURE) {
        Some(rest) => parse_binary(rest),
        None => parse_text(header),
    };
    Ok(address.ok_or(Refusal::Malformed)?.map(|ip| ip.to_canonical()))
}

fn parse_binary(rest: &[u8]) -> Option<Option<IpAddr>> {
    let (&[command, family, _, _], addresses) = rest.split_first_chunk()?;
    match (command, family) {
        (0x20, _) => Some(None),
        // TCP over IPv4 and IPv6: source, destination and ports. What follows (TLVs) is ignored.
        (0x21, 0x11) => Some(Some(
            Ipv4Addr::from(*addresses.first_chunk::<12>()?.first_chunk()?).into(),
        )),
        (0x21, 0x21) => Some(Some(
            Ipv6Addr::from(*addresses.first_chunk::<36>()?.first_chunk()?).into(),
        )),
        // Unspecified, datagrams, Unix sockets.
        (0x21, 0x00 | 0x10..=0x12 | 0x20..=0x22 | 0x30..=0x32) => Some(None),
        _ => None,
    }
}

fn parse_text(line: &[u8]) -> Option<Option<IpAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let is_four = match words.next()? {
        "UNKNOWN" => return Some(None),
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let mut address = || {
        let address = words.next()?.parse::<IpAddr>().ok()?;
        (address.is_ipv4() == is_four).then_some(address)
    };
    let (source, _destination) = (address()?, address()?);
    for _ in 0..2 {
        let port = words.next()?;
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
        is_port.then_some(())?;
    }
    words.next().is_none().then_some(Some(source))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A version 2 header.
    fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, payload].concat()
    }

    fn addresses(source: IpAddr) -> (u8, Vec<u8>) {
        match source {
            IpAddr::V4(ip) => (0x11, [&ip.octets()[..], &[192, 0, 2, 1, 0, 80, 1, 187]].concat()),
            IpAddr::V6(ip) => (0x21, [&ip.octets()[..], &[7; 20]].concat()),
        }
    }

    fn parsed(header: &[u8]) -> Option<Option<IpAddr>> {
        parse(header).ok()
    }

    fn ip(text: &str) -> Option<Option<IpAddr>> {
        Some(Some(text.parse().unwrap()))
    }

    #[test]
    fn lines_of_version_1() {
        let line = |text: &str| parsed(format!("PROXY {text}\r\n").as_bytes());
        assert_eq!(line("TCP4 203.0.113.7 192.0.2.1 51234 443"), ip("203.0.113.7"));
        assert_eq!(line("TCP6 2001:db8::7 2001:db8::1 1 65535"), ip("2001:db8::7"));
        assert_eq!(line("TCP6 ::ffff:203.0.113.7 ::1 1 2"), ip("203.0.113.7"));
        assert_eq!(line("UNKNOWN"), Some(None));
        assert_eq!(line("UNKNOWN ffff::1 ffff::2 65535 65535"), Some(None));
        for wrong in [
            "",
            "TCP4",
            "TCP5 203.0.113.7 192.0.2.1 1 2",
            "tcp4 203.0.113.7 192.0.2.1 1 2",
            "TCP4 2001:db8::7 2001:db8::1 1 2",
            "TCP6 203.0.113.7 192.0.2.1 1 2",
            "TCP4 203.0.113.7 192.0.2.1 1",
            "TCP4 203.0.113.7 192.0.2.1 1 2 3",
            "TCP4 203.0.113.7  192.0.2.1 1 2",
            "TCP4 203.0.113.7 192.0.2.1 1 65536",
            "TCP4 203.0.113.7 192.0.2.1 +1 2",
            "TCP4 203.0.113.7 192.0.2.1 1 ",
            "TCP4 203.0.113.256 192.0.2.1 1 2",
        ] {
            assert_eq!(line(wrong), None, "{wrong:?}");
        }
        assert_eq!(
            parsed(b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n"),
            None,
            "a bare line end"
        );
    }

    #[test]
    fn headers_of_version_2() {
        let (family, payload) = addresses("203.0.113.7".parse().unwrap());
        assert_eq!(parsed(&binary(0x21, family, &payload)), ip("203.0.113.7"));
        let tlvs = [&payload[..], &[3, 0, 4, 1, 2, 3, 4, 0xea, 0, 1]].concat();
        assert_eq!(parsed(&binary(0x21, family, &tlvs)), ip("203.0.113.7"));
        let (six, long) = addresses("2001:db8::7".parse().unwrap());
        assert_eq!(parsed(&binary(0x21, six, &long)), ip("2001:db8::7"));
        for (command, family, payload) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &payload[..]),
            (0x20, 0xff, b"anything"),
            (0x21, 0x00, b"ignored"),
            (0x21, 0x12, &payload[..]),
            (0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(
                parsed(&binary(command, family, payload)),
                Some(None),
                "{command:x} {family:x}"
            );
        }
        for (command, family, payload) in [
            (0x11, 0x11, &payload[..]),
            (0x22, 0x11, &payload[..]),
            (0x21, 0x41, &payload[..]),
            (0x21, 0x13, &payload[..]),
            (0x21, 0x11, &payload[..11]),
            (0x21, 0x21, &long[..35]),
        ] {
            assert_eq!(
                parsed(&binary(command, family, payload)),
                None,
                "{command:x} {family:x}"
            );
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(matches!(length(&binary(0x20, 0, &[0; 4080])), Ok(Some(4096))));
        assert!(length(&binary(0x20, 0, &[0; 4081])).is_err());
        assert!(length(format!("PROXY {}", "a".repeat(101)).as_bytes()).is_err());
        assert!(matches!(
            length(format!("PROXY {}", "a".repeat(100)).as_bytes()),
            Ok(None)
        ));
        for garbage in ["GET / HTTP/1.1\r\n", "PROXX", "\r\n\r\n\n", "\n", "X"] {
            assert!(length(garbage.as_bytes()).is_err(), "{garbage:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, is_binary: bool) {
            let bytes = if is_binary { [&SIGNATURE[..], &bytes].concat() } else { [b"PROXY ", &bytes[..]].concat() };
            let _ = parse(&bytes);
            // A prefix never says another length than the whole.
            if let Ok(Some(whole)) = length(&bytes) {
                for cut in 1..bytes.len() {
                    prop_assert!(matches!(length(&bytes[..cut]), Ok(None)) || matches!(length(&bytes[..cut]), Ok(Some(l)) if l == whole));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(source: IpAddr, ports: (u16, u16), tlvs in prop::collection::vec(any::<u8>(), 0..300)) {
            let (family, payload) = addresses(source);
            let expected = Some(Some(source.to_canonical()));
            prop_assert_eq!(parsed(&binary(0x21, family, &[payload, tlvs].concat())), expected);
            let (name, to) = if source.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
            let line = format!("PROXY {name} {source} {to} {} {}\r\n", ports.0, ports.1);
            prop_assert!(line.len() <= MOST_TEXT);
            prop_assert_eq!(parsed(line.as_bytes()), expected);
        }
    }

    /// However the header is cut, what stands behind it stays in the socket.
    #[tokio::test]
    async fn only_the_header_is_taken_from_the_socket() {
        let (family, payload) = addresses("203.0.113.7".parse().unwrap());
        let headers = [
            b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n".to_vec(),
            binary(0x21, family, &payload),
            binary(0x21, family, &[&payload[..], &[0; 1000]].concat()),
        ];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for header in headers {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            for step in [1, 7, 13, bytes.len()] {
                let (client, accepted) = tokio::join!(
                    TcpStream::connect(listener.local_addr().unwrap()),
                    listener.accept()
                );
                let (mut client, mut socket) = (client.unwrap(), accepted.unwrap().0);
                client.set_nodelay(true).unwrap();
                let write = async {
                    for piece in bytes.chunks(step) {
                        client.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                let (read, ()) = tokio::join!(read(&mut socket), write);
                assert_eq!(read.unwrap(), Some("203.0.113.7".parse().unwrap()));
                let mut rest = [0; 16];
                socket.read_exact(&mut rest).await.unwrap();
                assert_eq!(&rest, b"GET / HTTP/1.1\r\n");
            }
        }
    }
}
