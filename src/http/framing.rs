//! Scans the request heads on a connection for framing that invites request smuggling and that hyper silently repairs:
//! Transfer-Encoding together with Content-Length, or Content-Length twice (RFC 9112, sections 6.1 and 6.3).

/// One byte more than the longest header name that matters.
const NAME_ROOM: usize = "transfer-encoding".len() + 1;

/// How a head states the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Once, or not at all.
    Plain,
    /// In a way that this scanner can't follow to the end of the body: the connection closes after this request.
    Last,
    /// Twice.
    Ambiguous,
}

/// Scans heads line by line, skipping bodies of a known length, up to the first that is not [`Framing::Plain`].
#[derive(Default)]
pub struct HeadScanner {
    count: u32,
    /// Bytes of the current body still to come.
    body: u64,
    lengths: u32,
    encodings: u32,
    /// The value of Content-Length; `None` if it is not a number, which hyper refuses.
    length: Option<u64>,
    /// Whether the current head has a line yet: blank lines before it are skipped, as hyper does.
    has_line: bool,
    /// Whether the current line has any text.
    has_text: bool,
    name: [u8; NAME_ROOM],
    name_len: usize,
    part: Part,
    is_over: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    Name,
    /// The value of a Content-Length.
    Length,
    /// Anything else, which is most of a head.
    #[default]
    Rest,
}

impl HeadScanner {
    /// How many heads are complete.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether a head has begun and is not complete.
    pub fn is_in_progress(&self) -> bool {
        !self.is_over && (self.has_line || self.has_text)
    }

    /// Scans `bytes`; returns the number and the framing of a head that is not plain.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Option<(u32, Framing)> {
        while !self.is_over && !bytes.is_empty() {
            if self.body > 0 {
                let skipped = self.body.min(bytes.len() as u64);
                self.body -= skipped;
                bytes = &bytes[skipped as usize..];
                continue;
            }
            bytes = match self.part {
                Part::Name => self.scan_name(bytes),
                Part::Length => self.scan_length(bytes),
                Part::Rest => {
                    let line = bytes.iter().position(|&byte| byte == b'\n');
                    let rest = &bytes[..line.unwrap_or(bytes.len())];
                    self.has_text |= rest.iter().any(|&byte| byte != b'\r');
                    let Some(end) = line else { break };
                    match self.end_line() {
                        None | Some(Framing::Plain) => {}
                        Some(framing) => return Some((self.count, framing)),
                    }
                    &bytes[end + 1..]
                }
            };
        }
        None
    }

    /// Scans a header name, to its colon or the end of the line; returns the rest.
    fn scan_name<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' => {
                    self.part = Part::Rest;
                    return &bytes[at..];
                }
                b'\r' => {}
                b':' => {
                    self.has_text = true;
                    self.end_name();
                    return &bytes[at + 1..];
                }
                byte => {
                    self.has_text = true;
                    if self.name_len < NAME_ROOM {
                        self.name[self.name_len] = byte.to_ascii_lowercase();
                        self.name_len += 1;
                    }
                }
            }
        }
        &[]
    }

    /// Scans the digits of a length, ignoring blanks around them; returns the rest.
    fn scan_length<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' => {
                    self.part = Part::Rest;
                    return &bytes[at..];
                }
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let longer = |length: u64| length.checked_mul(10)?.checked_add(digit);
                    self.length = self.length.and_then(longer);
                }
                b' ' | b'\t' | b'\r' => {}
                _ => self.length = None,
            }
        }
        &[]
    }

    /// Ends a line; at the end of a head, returns its framing.
    fn end_line(&mut self) -> Option<Framing> {
        if std::mem::take(&mut self.has_text) {
            (self.has_line, self.name_len, self.part) = (true, 0, Part::Name);
            return None;
        }
        self.has_line.then(|| self.end_head())
    }

    fn end_name(&mut self) {
        self.part = Part::Rest;
        match &self.name[..self.name_len] {
            b"content-length" => {
                self.lengths += 1;
                (self.length, self.part) = (Some(0), Part::Length);
            }
            b"transfer-encoding" => self.encodings += 1,
            _ => {}
        }
    }

    fn end_head(&mut self) -> Framing {
        self.count += 1;
        let framing = match (self.lengths, self.encodings, self.length) {
            (0, 0, _) => Framing::Plain,
            (1, 0, Some(length)) => {
                self.body = length;
                Framing::Plain
            }
            (1, 0, None) | (0, _, _) => Framing::Last,
            _ => Framing::Ambiguous,
        };
        self.is_over = framing != Framing::Plain;
        (self.lengths, self.encodings, self.has_line, self.part) = (0, 0, false, Part::Rest);
        framing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, given all the bytes at once.
    fn first_not_plain(mut bytes: &[u8]) -> Option<(u32, Framing)> {
        let (mut count, mut lines, mut lengths, mut encodings) = (0, 0, Vec::new(), 0);
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let line = &bytes[..end];
            bytes = &bytes[end + 1..];
            let text: Vec<u8> = line.iter().filter(|byte| **byte != b'\r').copied().collect();
            if !text.is_empty() {
                let text = String::from_utf8(text).unwrap();
                if let (true, Some((name, value))) = (lines > 0, text.split_once(':')) {
                    match name.to_ascii_lowercase().as_str() {
                        "content-length" => lengths.push(value.replace([' ', '\t'], "")),
                        "transfer-encoding" => encodings += 1,
                        _ => {}
                    }
                }
                lines += 1;
            } else if lines > 0 {
                count += 1;
                let length = lengths.last().map_or("", String::as_str);
                let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
                match (lengths.len(), encodings) {
                    (0, 0) => {}
                    (1, 0) if is_number => {
                        let length = length.parse().unwrap_or(0);
                        bytes = bytes.get(length..).unwrap_or_default();
                    }
                    (1, 0) | (0, _) => return Some((count, Framing::Last)),
                    _ => return Some((count, Framing::Ambiguous)),
                }
                (lines, encodings) = (0, 0);
                lengths.clear();
            }
        }
        None
    }

    proptest! {
        /// Whatever the heads contain, and wherever reads split them.
        #[test]
        fn heads_are_scanned_as_lines_are_read(
            parts in prop::collection::vec(prop::sample::select(vec![
                "content-length", "Transfer-Encoding", "transfer-encodings", ":", " ", "\r", "\n", "\r\n", "a",
                "GET / HTTP/1.1\r\n", ":1\r\n", "\r\n\r\n", "Content-Length: 3\r\n", "Content-Length:17\r\n",
            ]), 0..40),
            cut in 1usize..30,
        ) {
            let bytes = parts.concat().into_bytes();
            let mut heads = HeadScanner::default();
            let found = bytes.chunks(cut).find_map(|piece| heads.scan(piece));
            prop_assert_eq!(found, first_not_plain(&bytes));
        }
    }

    fn found(bytes: &str) -> Option<(u32, Framing)> {
        let whole = HeadScanner::default().scan(bytes.as_bytes());
        let mut heads = HeadScanner::default();
        let cut = bytes.bytes().find_map(|byte| heads.scan(&[byte]));
        assert_eq!(whole, cut);
        whole
    }

    #[test]
    fn ambiguous_heads_are_found() {
        assert_eq!(found("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), None);
        assert_eq!(
            found("POST / HTTP/1.1\r\nContent-Length: 3\r\ncontent-LENGTH: 3\r\n\r\n"),
            Some((1, Framing::Ambiguous))
        );
        assert_eq!(
            found("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"),
            Some((1, Framing::Ambiguous))
        );
        let good = "GET /?a:content-length:1 HTTP/1.1\nX-Content-Length: 1\nX: content-length:\n\n";
        assert_eq!(found(&good.repeat(2)), None);
        let bad = "GET / HTTP/1.1\nContent-Length:0\nContent-Length:0\n\n";
        assert_eq!(
            found(&format!("\r\n{good}\r\n{bad}")),
            Some((2, Framing::Ambiguous))
        );
    }

    #[test]
    fn bodies_of_a_known_length_are_skipped_and_other_requests_are_the_last() {
        let bad = "GET / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n";
        for length in [0, 1, 4, 70] {
            let good = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            let body = "\r\n:\n".repeat(20);
            let bytes = format!("{good}{}{bad}", &body[..length]);
            assert_eq!(found(&bytes), Some((2, Framing::Ambiguous)), "{length}");
        }
        for last in [
            "Transfer-Encoding: chunked",
            "Content-Length: x",
            "Content-Length: 1, 1",
            "Content-Length: 99999999999999999999",
        ] {
            let bytes = format!("POST / HTTP/1.1\r\n{last}\r\n\r\n{bad}");
            assert_eq!(found(&bytes), Some((1, Framing::Last)), "{last}");
        }
    }

    #[test]
    fn a_head_is_in_progress_from_its_first_byte_to_its_last() {
        let mut heads = HeadScanner::default();
        for byte in b"\r\n\r\n" {
            heads.scan(&[*byte]);
            assert!(!heads.is_in_progress());
        }
        for byte in b"GET / HTTP/1.1\r\nContent-Length: 2\r\n\r" {
            heads.scan(&[*byte]);
            assert!(heads.is_in_progress());
        }
        heads.scan(b"\n");
        assert!(!heads.is_in_progress());
        assert_eq!(heads.count(), 1);
        heads.scan(b"ab");
        assert!(!heads.is_in_progress());
        heads.scan(b"G");
        assert!(heads.is_in_progress());
    }
}
