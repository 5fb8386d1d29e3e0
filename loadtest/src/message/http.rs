//! Publishing by HTTP, for other servers: one request a message, on one connection that is kept.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use crate::template::{Template, Values};

pub struct HttpSink {
    reader: BufReader<TcpStream>,
    host: String,
    path: Template,
    /// Whole lines, for example an API key.
    headers: Vec<String>,
}

impl HttpSink {
    /// `url` is `http://HOST:PORT/PATH`; the path may have a session in it.
    pub fn connect(url: &str, headers: &[String]) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("not an http:// address: {url}"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let socket = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
        socket.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(socket),
            host: host.to_owned(),
            path: Template::parse(&format!("/{path}")),
            headers: headers.to_vec(),
        })
    }

    pub fn send(&mut self, session: &str, body: &[u8]) -> Result<()> {
        let path = self.path.text(Values {
            session,
            ..Values::default()
        });
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            self.host,
            body.len()
        );
        for header in &self.headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.reader.get_mut().write_all(&bytes)?;
        let (status, body) = read_response(&mut self.reader)?;
        ensure!(
            (200..300).contains(&status),
            "the server answers {status} to a message: {body}"
        );
        Ok(())
    }
}

/// Status and body, by Content-Length or in chunks.
pub fn read_response(reader: &mut impl BufRead) -> Result<(u16, String)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {line:?}"))?;
    let (mut length, mut is_chunked) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim().to_ascii_lowercase();
        match header.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(("transfer-encoding", value)) => is_chunked = value.trim() == "chunked",
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    if is_chunked {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size =
                usize::from_str_radix(line.trim(), 16).with_context(|| format!("not a chunk: {line:?}"))?;
            let start = body.len();
            body.resize(start + size + 2, 0);
            reader.read_exact(&mut body[start..])?;
            body.truncate(start + size);
            if size == 0 {
                break;
            }
        }
    } else {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_both_kinds_are_read_to_their_end() {
        let mut bytes = &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 201 Created\r\n\
            Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\nrest"[..];
        assert_eq!(read_response(&mut bytes).unwrap(), (200, "hi".into()));
        assert_eq!(read_response(&mut bytes).unwrap(), (201, "abcd".into()));
        assert_eq!(bytes, b"rest");
    }
}
