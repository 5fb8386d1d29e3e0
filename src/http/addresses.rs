//! The client's address: the peer's, or the one that trusted proxies report.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::proxy_protocol::{self, Refusal};
use super::{forwarded, keep_alive};
use crate::config::{Config, Network};
use crate::logging::LogLimit;
use crate::metrics::Metrics;

/// The shortest time between two warnings of the same kind: a misconfigured proxy causes one on every connection.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// How many characters of an unreadable value are logged.
const SHOWN: usize = 100;

/// Which peers are trusted to report a client's address.
pub struct Addresses {
    trusted: Vec<Network>,
    proxy_protocol: bool,
    metrics: Arc<Metrics>,
    unread: Mutex<LogLimit>,
    refused: Mutex<LogLimit>,
}

impl Addresses {
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self {
            trusted: config.trusted_proxies.clone(),
            proxy_protocol: config.proxy_protocol,
            metrics,
            unread: Mutex::new(LogLimit::new(WARN_INTERVAL)),
            refused: Mutex::new(LogLimit::new(WARN_INTERVAL)),
        }
    }

    fn is_trusted(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(ip))
    }

    /// Whether every connection must begin with a PROXY header.
    pub fn are_in_proxy_headers(&self) -> bool {
        self.proxy_protocol
    }

    /// The address that opened the connection, from the PROXY header where one is required; `None`: the connection must
    /// be closed.
    pub async fn peer(&self, socket: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
        if !self.proxy_protocol {
            return Some(peer);
        }
        let reason = if self.is_trusted(peer) {
            match tokio::time::timeout(keep_alive::HEAD_TIMEOUT, proxy_protocol::read(socket)).await {
                Ok(Ok(address)) => return Some(address.unwrap_or(peer)),
                Ok(Err(Refusal::Silent)) => return None,
                Ok(Err(Refusal::Malformed)) => "malformed",
                Ok(Err(Refusal::Lost)) | Err(_) => "incomplete",
            }
        } else {
            "untrusted"
        };
        self.metrics.proxy_header_refused(reason);
        if self.refused.lock().allows() {
            tracing::warn!(
                %peer,
                reason,
                "closed a connection without a PROXY header that counts (PROXY_PROTOCOL, TRUSTED_PROXIES)"
            );
        }
        None
    }

    /// The address of the client behind a request that arrived from `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let client = forwarded::client(peer, headers, |ip| self.is_trusted(ip));
        if let Some(text) = client.unread {
            self.metrics.client_addresses_unread.inc();
            if self.unread.lock().allows() {
                let shown: String = text.chars().take(SHOWN).collect();
                tracing::warn!(
                    %peer,
                    counted_as = %client.address,
                    value = ?shown,
                    "a trusted proxy sent no readable client address (X-Forwarded-For, Forwarded)"
                );
            }
        }
        client.address
    }
}
