//! An issuer's web server with its key set, over HTTP or TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Serves until the process ends.
pub struct Issuer {
    addr: SocketAddr,
    is_tls: bool,
    answer: Arc<Mutex<(u16, String)>>,
    requests: Arc<AtomicUsize>,
    delay: Arc<Mutex<Duration>>,
}

/// A file of `support/tls`.
pub fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/e2e/support/tls")
        .join(name)
}

impl Issuer {
    pub fn http(set: &str) -> Self {
        Self::start(set, None)
    }

    /// With a certificate for `localhost`, signed by `tls/ca.pem`.
    pub fn https(set: &str) -> Self {
        let certificate = CertificateDer::from_pem_file(tls_file("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(tls_file("server-key.pem")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a configuration");
        Self::start(set, Some(Arc::new(config)))
    }

    fn start(set: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let issuer = Self {
            addr: listener.local_addr().expect("an address"),
            is_tls: tls.is_some(),
            answer: Arc::new(Mutex::new((200, set.to_owned()))),
            requests: Arc::default(),
            delay: Arc::default(),
        };
        let (answer, requests) = (Arc::clone(&issuer.answer), Arc::clone(&issuer.requests));
        let delay = Arc::clone(&issuer.delay);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (answer, requests, tls) = (Arc::clone(&answer), Arc::clone(&requests), tls.clone());
                let delay = *delay.lock().expect("the delay");
                std::thread::spawn(move || match tls {
                    None => serve(socket, &answer, &requests, delay),
                    Some(config) => {
                        let connection = ServerConnection::new(config).expect("a connection");
                        serve(StreamOwned::new(connection, socket), &answer, &requests, delay);
                    }
                });
            }
        });
        issuer
    }

    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}/keys?v=1", self.addr.port())
    }

    /// What it answers from now on.
    pub fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().expect("the answer") = (status, body.to_owned());
    }

    /// How long it takes to answer from now on.
    pub fn delays(&self, by: Duration) {
        *self.delay.lock().expect("the delay") = by;
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(
    mut socket: impl Read + Write,
    answer: &Mutex<(u16, String)>,
    requests: &AtomicUsize,
    delay: Duration,
) {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match socket.read(&mut chunk) {
            Ok(read @ 1..) => head.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    }
    assert!(
        head.starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"),
        "{}",
        head.escape_ascii()
    );
    requests.fetch_add(1, Ordering::SeqCst);
    std::thread::sleep(delay);
    let (status, body) = answer.lock().expect("the answer").clone();
    let length = body.len();
    // A redirect leads here again, with another path.
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nLocation: /keys\r\n\r\n");
    let _ = socket.write_all((head + &body).as_bytes());
    let _ = socket.flush();
}
