//! The PROXY protocol, by which TCP load balancers pass on client addresses.

use std::io::Write;
use std::net::{IpAddr, TcpStream};

use crate::support::http::head;
use crate::support::raw::handshake;
use crate::support::{Http, RawWs, Response, Server, ServerBuilder, eventually};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A server that takes headers from 127.0.0.1 and trusts a proxy at 203.0.113.80 behind it.
fn builder() -> ServerBuilder {
    Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("PROXY_PROTOCOL", "true")
        .env("TRUSTED_PROXIES", "127.0.0.1, 203.0.113.80")
        .env("MAX_CONNECTIONS_PER_IP", 1)
}

fn start() -> Server {
    let server = builder().spawn();
    eventually("the server listens", || {
        Http::try_get(server.admin_addr(), "/ready").is_ok_and(|answer| answer.status == 200)
    });
    server
}

/// A header of version 1.
fn text(source: &str) -> Vec<u8> {
    let (name, to) = if source.contains(':') {
        ("TCP6", "2001:db8::1")
    } else {
        ("TCP4", "192.0.2.1")
    };
    format!("PROXY {name} {source} {to} 51234 443\r\n").into_bytes()
}

/// A header of version 2, with TLVs after the addresses.
fn binary(source: &str, more: usize) -> Vec<u8> {
    let (family, mut addresses) = match source.parse().expect("an address") {
        IpAddr::V4(ip) => (0x11, [ip.octets(), [192, 0, 2, 1]].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(), [7; 16]].concat()),
    };
    addresses.extend([200, 34, 1, 187]);
    addresses.resize(addresses.len() + more, 0);
    local_or_proxy(0x21, family, &addresses)
}

fn local_or_proxy(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family], &length, payload].concat()
}

/// A handshake after a header, in one write.
fn open(server: &Server, header: &[u8], headers: &[(&str, &str)]) -> Result<RawWs, Response> {
    let mut http = Http::connect(server.http_addr());
    http.write(&[header, handshake("/ws/s1/u1/agent", headers).as_bytes()].concat());
    RawWs::upgraded(http)
}

/// A connection from another address of this machine.
#[track_caller]
fn closed(server: &Server, bytes: &[u8]) {
    let mut http = Http::connect(server.http_addr());
    http.write(bytes);
    let answer = http.read();
    assert!(answer.is_none(), "{}: {answer:?}", bytes.escape_ascii());
}

#[test]
fn proxy_protocol_supplies_the_clients_address() {
    let server = start();
    let mut clients = Vec::new();
    for header in [
        text("203.0.113.7"),
        binary("203.0.113.8", 0),
        binary("203.0.113.9", 3_000),
        text("2001:db8:1:1::7"),
        binary("2001:db8:1:2::7", 40),
        // The balancer's own connections: they count as its address.
        b"PROXY UNKNOWN\r\n".to_vec(),
    ] {
        let shown = header.escape_ascii().to_string();
        clients.push(open(&server, &header, &[]).unwrap_or_else(|refusal| panic!("{shown}: {refusal:?}")));
    }
    for again in [
        binary("203.0.113.7", 0),
        text("203.0.113.8"),
        text("::ffff:203.0.113.9"),
        text("2001:db8:1:1::8"),
        local_or_proxy(0x20, 0x00, b""),
        local_or_proxy(0x20, 0x11, &[9; 12]),
        local_or_proxy(0x21, 0x00, b""),
    ] {
        let refusal = open(&server, &again, &[]).err().expect("its place is taken");
        refusal.assert_error(429);
    }
    for client in &mut clients {
        assert_eq!(client.read_json()["type"], "connection_established");
        client.expect_alive();
    }
    let refused = server.metric("livechat_proxy_headers_refused_total");
    assert_eq!(refused, 0.0);
}

#[test]
fn proxy_protocol_headers_may_arrive_in_pieces() {
    let server = start();
    for (number, header) in [text("203.0.113.7"), binary("203.0.113.8", 20)]
        .iter()
        .enumerate()
    {
        let mut stream = TcpStream::connect(server.http_addr()).expect("connect");
        stream.set_nodelay(true).expect("set nodelay");
        for byte in header {
            stream.write_all(&[*byte]).expect("write");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut http = Http::over(stream).expect("a connected socket");
        http.write(handshake(&format!("/ws/s1/u{number}/agent"), &[]).as_bytes());
        let mut ws = RawWs::upgraded(http).expect("an upgrade");
        assert_eq!(ws.read_json()["type"], "connection_established");
    }
    // Once for a connection, not for each request.
    let mut http = Http::connect(server.http_addr());
    http.write(&[&text("203.0.113.9")[..], head("GET", "/live", &[]).as_bytes()].concat());
    assert_eq!(http.read().map(|answer| answer.status), Some(200));
    assert!(http.still_answers());
    http.write(&text("203.0.113.10"));
    http.write(b"\r\n");
    assert_eq!(http.read().map(|answer| answer.status), Some(400));
}

#[test]
fn proxy_protocol_refuses_invalid_headers() {
    let server = start();
    let request = head("GET", "/live", &[]);
    let long = format!("PROXY UNKNOWN {}\r\n", "a".repeat(100));
    let wrong: [&[u8]; 8] = [
        b"",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
        b"PROXY TCP4 nonsense 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWN\n",
        long.as_bytes(),
        &local_or_proxy(0x31, 0x11, &[1; 12]),
        &local_or_proxy(0x21, 0x11, &[1; 3]),
        &local_or_proxy(0x20, 0x00, &[0; 5_000]),
    ];
    for header in wrong {
        closed(&server, &[header, request.as_bytes()].concat());
    }
    assert_eq!(
        server.metric("livechat_proxy_headers_refused_total"),
        wrong.len() as f64
    );
    server.wait_log("PROXY header");
    // The wait for a header is limited.
    let mut slow = Http::connect(server.http_addr());
    slow.write(b"PROXY TCP4 203.0");
    slow.expect_closed();
    // A probe of the port is none of it.
    drop(Http::connect(server.http_addr()));
    assert!(open(&server, &text("203.0.113.7"), &[]).is_ok());
    assert_eq!(
        server.metric("livechat_proxy_headers_refused_total"),
        wrong.len() as f64 + 1.0
    );
    let warnings = server
        .log()
        .iter()
        .filter(|line| line.contains("PROXY header"))
        .count();
    assert_eq!(warnings, 1, "the warning is rate limited");
}

#[test]
fn proxy_protocol_closes_untrusted_peers_except_on_the_admin_port() {
    let server = start();
    for bytes in [text("203.0.113.7"), Vec::new(), binary("203.0.113.7", 0)] {
        let mut stranger = Http::connect_from("127.0.0.2", server.http_addr());
        stranger.write(&[&bytes[..], head("GET", "/live", &[]).as_bytes()].concat());
        assert!(stranger.read().is_none(), "a stranger was answered");
    }
    assert_eq!(server.metric("livechat_proxy_headers_refused_total"), 3.0);
    assert_eq!(Http::get(server.admin_addr(), "/live").status, 200);
    let answer = Http::exchange(
        server.admin_addr(),
        &[&text("203.0.113.7")[..], head("GET", "/live", &[]).as_bytes()].concat(),
    );
    assert_eq!(answer.map(|answer| answer.status), Some(400));
}

/// The header's address is the peer: X-Forwarded-For counts where that one is trusted.
#[test]
fn proxy_protocol_is_applied_before_x_forwarded_for() {
    let server = start();
    let forwarded = [("X-Forwarded-For", "198.51.100.1")];
    let direct = open(&server, &text("203.0.113.7"), &forwarded).expect("a place");
    open(
        &server,
        &text("203.0.113.7"),
        &[("X-Forwarded-For", "198.51.100.2")],
    )
    .err()
    .expect("a stranger's header counts for nothing")
    .assert_error(429);
    let proxied = open(&server, &text("203.0.113.80"), &forwarded).expect("a place");
    open(&server, &binary("203.0.113.80", 0), &forwarded)
        .err()
        .expect("the same client")
        .assert_error(429);
    let other = open(
        &server,
        &text("203.0.113.80"),
        &[("X-Forwarded-For", "198.51.100.2")],
    );
    assert!(other.is_ok(), "another client of the same proxy");
    drop((direct, proxied));
}

#[test]
fn proxy_protocol_requires_trusted_proxies() {
    let exit = Server::builder().env("PROXY_PROTOCOL", "true").run();
    assert_eq!(exit.code, Some(64), "{exit:?}");
    assert!(
        exit.stderr.contains("PROXY_PROTOCOL") && exit.stderr.contains("TRUSTED_PROXIES"),
        "{exit:?}"
    );
}

/// The container's own check gets through.
#[test]
fn proxy_protocol_does_not_block_the_health_check() {
    let port = crate::config::free_port();
    let admin = crate::config::free_port();
    for admin_addr in [format!("127.0.0.1:{admin}"), String::new()] {
        let with = |builder: ServerBuilder| {
            builder
                .env("PORT", port)
                .env("ADMIN_ADDR", &admin_addr)
                .env("PROXY_PROTOCOL", "true")
                .env("TRUSTED_PROXIES", "127.0.0.1")
        };
        let server = with(Server::builder()).start_listening();
        if !admin_addr.is_empty() {
            // It is bound last.
            server.admin_addr();
        }
        let check = with(Server::builder()).arg("--healthcheck").run();
        assert_eq!(check.code, Some(0), "{check:?}");
        drop(server);
    }
}
