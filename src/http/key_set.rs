//! Fetches the key set of `JWKS_URL`: one request at a time, by hyper's client over rustls.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::auth::Auth;
use crate::metrics::Metrics;

/// How long one fetch may take, from the name's resolution to the body's end.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A longer set is refused.
const MAX_BYTES: usize = 1 << 20;

/// Why a set could not be fetched. It names the cause, never what was received.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the URL has no host")]
    NoHost,
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("no certificates of the system can be read, which say whom to trust")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer has the status {0}, not 200")]
    Status(StatusCode),
    #[error("the answer is longer than {} bytes, or was cut off", MAX_BYTES)]
    Body,
    #[error("the answer is not UTF-8")]
    NotText,
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the request can't be made: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Keeps the key set current, for as long as the server runs.
pub async fn keep(auth: Arc<Auth>, metrics: Arc<Metrics>) {
    let Some(uri) = auth.key_set_url().and_then(|url| url.parse::<Uri>().ok()) else {
        return;
    };
    // Said once, until it works again.
    let mut is_failing = false;
    loop {
        auth.key_set_requested();
        let fetched = tokio::time::timeout(TIMEOUT, fetch(&uri)).await;
        let error = match fetched.unwrap_or(Err(FetchError::Timeout)) {
            Ok(text) => auth.key_set_fetched(&text).err(),
            Err(error) => {
                auth.key_set_failed();
                Some(error.to_string())
            }
        };
        let has_failed = error.is_some();
        if let Some(error) = error {
            metrics.key_set_failures.inc();
            if !is_failing {
                tracing::warn!(
                    error,
                    "the key set can't be fetched from JWKS_URL: the last keys stay"
                );
            }
        }
        is_failing = has_failed;
        auth.key_set_due(has_failed).await;
    }
}

async fn fetch(uri: &Uri) -> Result<String, FetchError> {
    let host = uri.host().ok_or(FetchError::NoHost)?.trim_matches(['[', ']']);
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let socket = TcpStream::connect((host, port))
        .await
        .map_err(FetchError::Connect)?;
    if !is_tls {
        return request(uri, TokioIo::new(socket)).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| FetchError::NoHost)?;
    // Reading the system's certificates blocks; they are read each time, since they change, too.
    let config = tokio::task::spawn_blocking(client_config).await;
    let config = config.map_err(|_| FetchError::NoRoots)??;
    let connector = TlsConnector::from(Arc::new(config));
    let socket = connector.connect(name, socket).await.map_err(FetchError::Tls)?;
    request(uri, TokioIo::new(socket)).await
}

/// Trusts the system's certificates (or those of `SSL_CERT_FILE`).
fn client_config() -> Result<ClientConfig, FetchError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(FetchError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(FetchError::Setup)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Redirects are not followed: the operator says whose keys count.
async fn request(uri: &Uri, io: impl Read + Write + Unpin + Send + 'static) -> Result<String, FetchError> {
    let (mut sender, connection) = http1::handshake(io).await?;
    let connection = AbortOnDrop(tokio::spawn(connection));
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(USER_AGENT, concat!("livechat-ws/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|_| FetchError::Body)?.to_bytes();
    drop(connection);
    String::from_utf8(body.into()).map_err(|_| FetchError::NotText)
}

/// A fetch that takes too long leaves nothing behind.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
