//! The client's address as proxies report it: `X-Forwarded-For`, and `Forwarded` (RFC 7239).

use std::net::{IpAddr, Ipv4Addr};

use hyper::HeaderMap;
use hyper::header::{self, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// The value from a trusted proxy that is not an address; empty if there was none.
    pub unread: Option<String>,
}

/// Goes from right to left past trusted proxies, to the first address that is not one of them: anything the client
/// wrote itself is further left and is ignored. If an address can't be parsed, the one to its right counts.
pub fn client(peer: IpAddr, headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Client {
    let mut address = peer.to_canonical();
    let found = |address, unread| Client { address, unread };
    if !is_trusted(address) {
        return found(address, None);
    }
    let is_written = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| value.as_bytes().iter().any(|byte| !b" \t,".contains(byte)))
    };
    let (name, read): (_, fn(&str) -> Option<IpAddr>) = if is_written(&X_FORWARDED_FOR) {
        (X_FORWARDED_FOR, |text| node(unquoted(text).as_ref()))
    } else if is_written(&header::FORWARDED) {
        (header::FORWARDED, forwarded_for)
    } else {
        return found(address, Some(String::new()));
    };
    for value in headers.get_all(name).iter().rev() {
        let value = String::from_utf8_lossy(value.as_bytes());
        let elements = rsplit(&value, b',').map(str::trim);
        for element in elements.filter(|element| !element.is_empty()) {
            match read(element) {
                Some(hop) => address = hop,
                None => return found(address, Some(element.to_owned())),
            }
            if !is_trusted(address) {
                return found(address, None);
            }
        }
    }
    found(address, None)
}

/// The `for` of an element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = rsplit(element, b';').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    match (values.next(), values.next()) {
        (Some((_, value)), None) => node(unquoted(value.trim()).as_ref()),
        _ => None,
    }
}

/// An address, with or without a port. `unknown` and obfuscated names (`_hidden`) are not addresses.
fn node(text: &str) -> Option<IpAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.parse::<IpAddr>() {
            Ok(address) => return Some(address.to_canonical()),
            // IPv6 without brackets has no port: all the colons belong to the address.
            Err(_) => match text.split_once(':') {
                Some((four, _)) if four.parse::<Ipv4Addr>().is_ok() => text.split_at(four.len()),
                _ => (text, ""),
            },
        },
    };
    // A zone is only meaningful on the proxy itself.
    let address = address.split_once('%').map_or(address, |(address, _)| address);
    let is_readable = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    let address = address.parse::<IpAddr>().ok().filter(|_| is_readable)?;
    Some(address.to_canonical())
}

fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty(),
        None => text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok(),
    }
}

/// A quoted string without its quotes.
fn unquoted(text: &str) -> std::borrow::Cow<'_, str> {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inner) if inner.contains('\\') => inner.replace('\\', "").into(),
        Some(inner) => inner.into(),
        None => text.into(),
    }
}

/// The parts between separators outside quotes, from right to left: a quote that a client left open can't swallow what
/// proxies appended.
fn rsplit(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut is_quoted = false;
        for (at, byte) in text.bytes().enumerate().rev() {
            if byte == b'"' && !is_escaped(&text.as_bytes()[..at]) {
                is_quoted = !is_quoted;
            } else if byte == separator && !is_quoted {
                rest = Some(&text[..at]);
                return Some(&text[at + 1..]);
            }
        }
        Some(text)
    })
}

/// Whether the next character is escaped, that is, preceded by an odd number of backslashes.
fn is_escaped(before: &[u8]) -> bool {
    let backslashes = before.iter().rev().take_while(|&&byte| byte == b'\\');
    backslashes.count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Trusts 10.0.0.0/8.
    fn found(headers: &[(&str, &str)]) -> Client {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = name.parse::<HeaderName>().unwrap();
            map.append(
                name,
                hyper::header::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        client(
            ip("10.0.0.1"),
            &map,
            |ip| matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 10),
        )
    }

    fn read(address: &str) -> Client {
        Client {
            address: ip(address),
            unread: None,
        }
    }

    fn unread(address: &str, text: &str) -> Client {
        Client {
            address: ip(address),
            unread: Some(text.to_owned()),
        }
    }

    #[test]
    fn nodes_are_addresses_with_or_without_ports() {
        for (text, address) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7:51234", "203.0.113.7"),
            ("203.0.113.7:_port", "203.0.113.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::1:443", "2001:db8::1:443"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[fe80::1%eth0]:1", "fe80::1"),
            ("fe80::1%25", "fe80::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("[::ffff:203.0.113.7]:1", "203.0.113.7"),
        ] {
            assert_eq!(node(text), Some(ip(address)), "{text}");
        }
        for text in [
            "",
            "unknown",
            "_hidden",
            "_hidden:80",
            "unknown:80",
            "203.0.113.7:",
            "203.0.113.7:x",
            "203.0.113.7:_",
            "203.0.113.7:65536",
            "203.0.113.7:1:2",
            "203.0.113",
            "203.0.113.07",
            "[2001:db8::1",
            "[2001:db8::1]443",
            "[2001:db8::1]:",
            "[]",
            "chat.example.com",
            "203.0.113.7 ",
        ] {
            assert_eq!(node(text), None, "{text}");
        }
    }

    #[test]
    fn hops_count_from_the_right() {
        const NAME: &str = "x-forwarded-for";
        assert_eq!(found(&[(NAME, "6.6.6.6, 1.2.3.4, 10.0.0.9")]), read("1.2.3.4"));
        assert_eq!(
            found(&[(NAME, "6.6.6.6"), (NAME, " 1.2.3.4:80 ,, 10.0.0.9,")]),
            read("1.2.3.4")
        );
        assert_eq!(found(&[(NAME, "10.0.0.8, 10.0.0.9")]), read("10.0.0.8"));
        assert_eq!(
            found(&[(NAME, "1.2.3.4, unknown, 10.0.0.9")]),
            unread("10.0.0.9", "unknown")
        );
        assert_eq!(found(&[(NAME, "nonsense")]), unread("10.0.0.1", "nonsense"));
        assert_eq!(found(&[(NAME, "nonsense, 1.2.3.4")]), read("1.2.3.4"));
        assert_eq!(found(&[(NAME, "1.2.3.4, \u{e9}")]), unread("10.0.0.1", "\u{e9}"));
        assert_eq!(found(&[]), unread("10.0.0.1", ""));
        // It wins over the other, unless nothing stands in it.
        let other = ("forwarded", "for=4.3.2.1");
        assert_eq!(found(&[other, (NAME, "1.2.3.4")]), read("1.2.3.4"));
        assert_eq!(found(&[other, (NAME, " , ")]), read("4.3.2.1"));
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        let one = |value| found(&[("forwarded", value)]);
        assert_eq!(one("for=1.2.3.4"), read("1.2.3.4"));
        assert_eq!(one("For = \"1.2.3.4:80\" ;proto=https"), read("1.2.3.4"));
        assert_eq!(
            one("by=10.0.0.1;for=\"[2001:db8::1]:443\";host=\"a, b;for=c\""),
            read("2001:db8::1")
        );
        assert_eq!(one("for=6.6.6.6, for=1.2.3.4, for=10.0.0.9"), read("1.2.3.4"));
        assert_eq!(one("for=\"\\1.2.3.4\""), read("1.2.3.4"));
        // A quote that the client left open.
        assert_eq!(one("for=\"x, for=1.2.3.4"), read("1.2.3.4"));
        assert_eq!(one("for=\"x\\\", for=1.2.3.4"), read("1.2.3.4"));
        for wrong in [
            "for=unknown",
            "for=_hidden",
            "proto=https",
            "for=1.2.3.4;for=1.2.3.4",
            "1.2.3.4",
            "for=",
        ] {
            assert_eq!(one(wrong), unread("10.0.0.1", wrong));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~]{0,60}", name in prop::sample::select(vec!["forwarded", "x-forwarded-for"])) {
            found(&[(name, &text)]);
        }

        /// Whatever a client puts first, the address that the proxy appends counts.
        #[test]
        fn what_a_client_writes_is_ignored(text in "[ -~]{0,60}", address: IpAddr, port: u16) {
            prop_assume!(!matches!(address.to_canonical(), IpAddr::V4(ip) if ip.octets()[0] == 10));
            let expected = Client { address: address.to_canonical(), unread: None };
            let node = match address { IpAddr::V4(ip) => format!("{ip}:{port}"), IpAddr::V6(ip) => format!("[{ip}]:{port}") };
            prop_assert_eq!(&found(&[("x-forwarded-for", &format!("{text}, {node}"))]), &expected);
            prop_assert_eq!(&found(&[("forwarded", &format!("{text}, for=\"{node}\""))]), &expected);
        }

        /// Every notation of an address is read.
        #[test]
        fn every_address_is_read(address: IpAddr, port: u16) {
            let expected = Some(address.to_canonical());
            prop_assert_eq!(node(&address.to_string()), expected);
            let with_port = std::net::SocketAddr::new(address, port).to_string();
            prop_assert_eq!(node(&with_port), expected);
        }
    }
}
