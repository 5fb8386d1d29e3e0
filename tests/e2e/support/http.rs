//! HTTP/1.1 by hand: exact bytes out, exact responses in.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::PATIENCE;
use super::spec::responses::{self, Asked};

/// How a request begins, of which a test may write the first bytes alone.
const METHODS: [&str; 7] = ["GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS "];

/// One connection. Every response is checked against docs/spec/openapi.json.
pub struct Http {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What was written and is no whole head yet.
    written: String,
    /// Requests without a response, as far as they were recognized.
    asked: VecDeque<Asked>,
    /// Not this project's server.
    is_foreign: bool,
}

/// One response, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The only value of the header; panics if there are two.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// The body as JSON; it must say that it is.
    #[track_caller]
    pub fn json(&self) -> Value {
        let kind = self.header("content-type").unwrap_or_default();
        assert!(
            kind.starts_with("application/json"),
            "content-type {kind:?}: {self:?}"
        );
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts a refusal in the contract's shape: this status, and exactly `{success:false, message, error}`.
    #[track_caller]
    pub fn assert_error(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?} {}", self.text());
        let body = self.json();
        let keys: Vec<_> = body
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, ["error", "message", "success"], "{body}");
        assert_eq!(body["success"], false, "{body}");
        assert!(
            body["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{body}"
        );
        assert!(body["error"].is_string(), "{body}");
        self
    }
}

impl Http {
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).unwrap_or_else(|error| panic!("connect to {addr}: {error}"))
    }

    pub fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect(addr)?)
    }

    /// Connects from this local address, such as 127.0.0.2.
    #[track_caller]
    pub fn connect_from(source: &str, addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source: IpAddr = source.parse().expect("an address");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("bind");
        socket.connect(&addr.into()).expect("connect");
        Self::over(socket.into()).expect("a connected socket")
    }

    /// Takes a connected socket.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            written: String::new(),
            asked: VecDeque::new(),
            is_foreign: false,
        })
    }

    /// Connects to another server, whose responses are not those of docs/spec.
    #[track_caller]
    pub fn connect_foreign(addr: SocketAddr) -> Self {
        Self {
            is_foreign: true,
            ..Self::connect(addr)
        }
    }

    /// `GET path` on a fresh connection.
    #[track_caller]
    pub fn get(addr: SocketAddr, path: &str) -> Response {
        Self::request(addr, "GET", path, &[])
    }

    pub fn try_get(addr: SocketAddr, path: &str) -> io::Result<Response> {
        let mut http = Self::try_connect(addr)?;
        let head = head("GET", path, &[]);
        http.note(head.as_bytes());
        http.stream.write_all(head.as_bytes())?;
        http.try_read("GET")?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Sends a request without a body on a new connection. The path is sent byte for byte.
    #[track_caller]
    pub fn request(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut http = Self::connect(addr);
        http.send(method, path, headers);
        http.read_for(method)
            .expect("a response, not a closed connection")
    }

    /// Writes bytes on a fresh connection: the first response, or None when the server closed without one, and
    /// whether it closed after it. Waiting for the close is waiting for a fact: use it where the contract closes.
    #[track_caller]
    pub fn exchange(addr: SocketAddr, bytes: &[u8]) -> Option<Response> {
        let mut http = Self::connect(addr);
        http.write(bytes);
        http.read()
    }

    #[track_caller]
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        self.write(head(method, path, headers).as_bytes());
    }

    /// Writes exact bytes. It is no error if the peer has already answered and closed: the answer is what counts.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.note(bytes);
        match self.stream.write_all(bytes) {
            Err(error) if !is_reset(&error) => panic!("write: {error}"),
            _ => {}
        }
    }

    #[track_caller]
    pub fn read(&mut self) -> Option<Response> {
        self.read_for("GET")
    }

    /// The next response to a request of this method (HEAD has no body), or None when the server closed.
    #[track_caller]
    pub fn read_for(&mut self, method: &str) -> Option<Response> {
        self.try_read(method)
            .unwrap_or_else(|error| panic!("read a response: {error}"))
    }

    /// Waits until the server closes the connection; panics on more bytes.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let more = self
            .fill()
            .unwrap_or_else(|error| panic!("the connection was not closed: {error}"));
        assert!(
            !more && self.buffer.is_empty(),
            "bytes instead of a close: {:?}",
            self.buffer.escape_ascii()
        );
    }

    /// Whether the connection still answers a request: the proof that it was kept.
    #[track_caller]
    pub fn still_answers(&mut self) -> bool {
        self.send("GET", "/live", &[]);
        self.read().is_some_and(|response| response.status == 200)
    }

    /// The socket and what was read beyond the last response.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }

    pub fn set_read_timeout(&self, timeout: Duration) {
        self.stream
            .set_read_timeout(Some(timeout))
            .expect("set a timeout");
    }

    /// Recognizes the requests in what is written.
    fn note(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        // What is left of a body is none of the next request's.
        if METHODS.iter().any(|method| text.starts_with(method)) {
            self.written.clear();
        }
        self.written.push_str(&text);
        let mut parts = self.written.split("\r\n\r\n").peekable();
        let mut rest = "";
        while let Some(part) = parts.next() {
            match parts.peek() {
                Some(_) => self.asked.extend(Asked::of_head(part)),
                // Bodies are of no interest.
                None => rest = &part[..part.floor_char_boundary(64 * 1024)],
            }
        }
        self.written = rest.to_owned();
    }

    fn try_read(&mut self, method: &str) -> io::Result<Option<Response>> {
        let response = self.read_response(method)?;
        if let Some(response) = &response
            && !self.is_foreign
        {
            let is_interim = response.status < 200 && response.status != 101;
            let asked = self.asked.pop_front_if(|_| !is_interim);
            responses::check(asked.as_ref(), response);
        }
        Ok(response)
    }

    fn read_response(&mut self, method: &str) -> io::Result<Option<Response>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if !self.fill()? {
                assert!(
                    self.buffer.is_empty(),
                    "closed within a head: {:?}",
                    self.buffer.escape_ascii()
                );
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("not a response: {head:?}"));
        let headers = lines.map(|line| {
            let (name, value) = line
                .split_once(':')
                .unwrap_or_else(|| panic!("not a header: {line:?}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        let mut response = Response {
            status,
            headers: headers.collect(),
            body: Vec::new(),
        };
        if method != "HEAD" && status >= 200 && status != 204 && status != 304 {
            response.body = self.read_body(&response)?;
        }
        Ok(Some(response))
    }

    fn read_body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        assert_eq!(
            response.header("transfer-encoding"),
            None,
            "our bodies have a length"
        );
        match response.header("content-length") {
            Some(length) => {
                let length: usize = length.parse().expect("a length");
                while self.buffer.len() < length {
                    assert!(self.fill()?, "closed within a body of {length} bytes");
                }
                Ok(self.buffer.drain(..length).collect())
            }
            None => {
                while self.fill()? {}
                Ok(std::mem::take(&mut self.buffer))
            }
        }
    }

    /// Reads some more; false at the end of the stream (a reset is an end, too).
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(true)
            }
            Err(error) if is_reset(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A request head with `Host`, and the given headers as they are.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

pub fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
