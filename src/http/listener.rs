//! Listeners: bind, accept, and HTTP/1.1 with its limits on each socket.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Http;
use super::framing::Framing;
use super::framing_guard::FramingGuard;
use super::headers::has_token;
use super::keep_alive::Pace;
use super::places::Kind;
use super::refusal::{self, RequestRefusal};
use super::request_path;
use super::router::{ListenerKind, route};
use super::upgrade::PendingUpgrade;
use crate::address::counted;
use crate::config::descriptor_limit;
use crate::logging::LogLimit;

/// How many connections may wait to be accepted: enough for a whole node's clients reconnecting, if the kernel allows.
const BACKLOG: i32 = 16_384;
/// Limits of a request head; [`keep_alive`](super::keep_alive) has its timeout.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// How long requests in progress may take when the listeners close.
const GRACE: Duration = Duration::from_secs(2);
/// How long to wait before accepting again when descriptors or memory have run out.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// The shortest time between two log lines about that.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// How much unsent data the kernel may hold for a reader whose window is full; its own limit is some 4 MB.
const UNSENT_BYTES: u32 = 128 * 1024;
/// How many connections are closed at once when there is no descriptor for the next.
const EVICTED: usize = 16;
/// One in so many of the descriptors beyond `MAX_CONNECTIONS` is kept for everything but clients: logs, Kafka, Redis.
const KEPT_SHARE: usize = 4;
/// One in so many of the others is kept for the admin port: a flood of the public ports must not lock the operator out.
const ADMIN_SHARE: usize = 8;

/// A bound listener.
pub struct Listener {
    socket: TcpListener,
    /// Whether accepted sockets inherit its options, which saves two system calls per connection.
    inherits_options: bool,
}

impl Listener {
    /// # Errors
    ///
    /// The operating system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Binds without SO_REUSEPORT: two processes on one port would silently split the clients.
pub fn bind(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Before listening: a connection inherits the options at the end of its TCP handshake, not when it is accepted.
    let inherits_options = cfg!(target_os = "linux") && prepare(SockRef::from(&socket)).is_ok();
    socket.listen(BACKLOG)?;
    Ok(Listener {
        socket: TcpListener::from_std(socket.into())?,
        inherits_options,
    })
}

/// Sets a client socket's options.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    // Frames are small and urgent: Nagle's algorithm would hold them until an acknowledgement arrives.
    socket.set_tcp_nodelay(true)?;
    // This bounds what the kernel holds unsent, and a slow reader's progress shows in steps of this size.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)
}

/// Accepts connections until `stop`, then closes those that are still plain HTTP.
pub async fn serve(listener: Listener, kind: ListenerKind, http: Arc<Http>, stop: CancellationToken) {
    let spare = http.spare_sockets.of(kind);
    let mut log = LogLimit::new(LOG_INTERVAL);
    let mut evictions = Evictions::new(&http, kind);
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.socket.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let cause = Cause::of(&error);
                if cause == Cause::Peer {
                    continue;
                }
                http.metrics.accept_errors.inc();
                if log.allows() {
                    tracing::error!(%error, "cannot accept connections");
                }
                if cause == Cause::Exhaustion {
                    for _ in 0..EVICTED {
                        evictions.make_room();
                    }
                }
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        if !listener.inherits_options {
            let _ = prepare(SockRef::from(&socket));
        }
        let open = OpenSocket::new(&http);
        // WebSockets no longer count here. A socket beyond the spare ones displaces another.
        let places = http
            .config
            .limits
            .max_connections
            .saturating_sub(http.limits.connections())
            + spare;
        if open.number > places {
            if !evictions.make_room() {
                http.metrics.accept_errors.inc();
                if log.allows() {
                    tracing::warn!(%peer, "no descriptor is left, and no other connection can be closed: refused a new one");
                }
                continue;
            }
            // Let the evicted connection close before the next is accepted.
            tokio::task::yield_now().await;
        }
        let (http, stop) = (Arc::clone(&http), stop.clone());
        // Boxed: a task's future is moved several times, and hyper's is large.
        connections.spawn(Box::pin(async move {
            serve_socket(socket, peer, kind, http, stop).await;
            drop(open);
        }));
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(GRACE, connections.wait()).await;
}

/// Closes connections to free their descriptors for new ones.
struct Evictions {
    http: Arc<Http>,
    kind: ListenerKind,
    log: LogLimit,
}

impl Evictions {
    fn new(http: &Arc<Http>, kind: ListenerKind) -> Self {
        Self {
            http: Arc::clone(http),
            kind,
            log: LogLimit::new(LOG_INTERVAL),
        }
    }

    /// Closes a connection of the address that has the most; false if none may be closed. The public listeners never
    /// take from the admin port's share.
    fn make_room(&mut self) -> bool {
        let Self { http, kind, log } = self;
        let of_other = || match kind {
            ListenerKind::Admin => http.pool.evict(),
            ListenerKind::Public if http.admin_pool.count() > http.spare_sockets.admin => {
                http.admin_pool.evict()
            }
            ListenerKind::Public => None,
        };
        let Some(evicted) = http.pool(*kind).evict().or_else(of_other) else {
            return false;
        };
        http.metrics.sockets_evicted.inc();
        if evicted.kind != Kind::Idle && log.allows() {
            tracing::warn!(
                address = %evicted.address,
                sockets = evicted.held,
                "no descriptor is left: closed a socket of the address that has most without a WebSocket"
            );
        }
        true
    }
}

/// How many sockets beyond `MAX_CONNECTIONS` may be open for plain HTTP: for refusals, and above all for health checks.
pub struct SpareSockets {
    public: usize,
    /// For the admin port alone: its connections up to this number are safe from the public listeners.
    admin: usize,
}

impl SpareSockets {
    pub fn new(max_connections: usize) -> Self {
        let descriptors = usize::try_from(descriptor_limit()).unwrap_or(usize::MAX);
        let beyond = descriptors.saturating_sub(max_connections);
        let spare = beyond - beyond / KEPT_SHARE;
        let admin = spare / ADMIN_SHARE;
        Self {
            public: spare - admin,
            admin,
        }
    }

    fn of(&self, kind: ListenerKind) -> usize {
        match kind {
            ListenerKind::Admin => self.public + self.admin,
            ListenerKind::Public => self.public,
        }
    }
}

/// Counts a socket that speaks HTTP.
struct OpenSocket {
    http: Arc<Http>,
    number: usize,
}

impl OpenSocket {
    fn new(http: &Arc<Http>) -> Self {
        Self {
            http: Arc::clone(http),
            number: http.plain.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.http.plain.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection could not be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Only this connection or its network: the next may be fine. On Linux, accept(2) reports errors of the new
    /// connection.
    Peer,
    /// Descriptors or memory have run out.
    Exhaustion,
    Other,
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhaustion,
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ETIMEDOUT,
            ) => Self::Peer,
            _ => Self::Other,
        }
    }
}

async fn serve_socket(
    mut socket: TcpStream,
    peer: SocketAddr,
    kind: ListenerKind,
    http: Arc<Http>,
    stop: CancellationToken,
) {
    let began = Instant::now();
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let pace = |address| Pace::new(http.pool(kind), counted(address), began, waker.clone());
    let address = if kind == ListenerKind::Public && http.addresses.are_in_proxy_headers() {
        // Until its header arrives it counts for the balancer, and may be evicted like any other silent connection.
        let waiting = pace(peer.ip());
        tokio::select! {
            address = http.addresses.peer(&mut socket, peer.ip()) => address,
            () = waiting.evicted() => None,
            () = stop.cancelled() => None,
        }
    } else {
        Some(peer.ip())
    };
    let Some(address) = address else { return };
    let upgraded = Mutex::new(None);
    let pace = pace(address);
    if let Err(error) = speak_http(socket, address, pace, kind, &http, &stop, &upgraded).await {
        if let Some(reason) = refusal::by_hyper(&error) {
            http.metrics.request_refused(reason);
        }
        tracing::debug!(%error, %peer, "HTTP connection ended");
    }
    if let Some(pending) = upgraded.into_inner() {
        pending.join(&http).await;
    }
}

/// Answers requests until the connection ends or is handed over, in which case there is a pending upgrade.
async fn speak_http(
    socket: TcpStream,
    peer: IpAddr,
    pace: Pace,
    kind: ListenerKind,
    http: &Arc<Http>,
    stop: &CancellationToken,
    upgraded: &Mutex<Option<PendingUpgrade>>,
) -> hyper::Result<()> {
    let (socket, state) = FramingGuard::new(socket, pace);
    let service = service_fn(|request| {
        let state = &state;
        async move {
            let line = tracing::enabled!(tracing::Level::DEBUG).then(|| {
                // Without the query, which may contain secrets.
                let path = request_path::in_log(request.uri().path(), |text| http.auth.is_api_key(text));
                (Instant::now(), format!("{} {path}", request.method()))
            });
            let framing = state.framing(state.number());
            let version = request.version();
            let may_keep = framing == Framing::Plain && wants_reuse(&request);
            let mut pending = None;
            let mut answer = if framing == Framing::Ambiguous {
                let mut answer = RequestRefusal::AmbiguousLength.answer(&http.metrics);
                request_path::forbid_storing(request.uri().path(), &mut answer);
                answer
            } else {
                route(http, kind, peer, request, &mut pending).await
            };
            if let Some((started, line)) = line {
                let took = started.elapsed().as_secs_f64() * 1000.0;
                tracing::debug!("{} - {line} {took:.1}ms", answer.status().as_u16());
            }
            if pending.is_some() {
                state.hold();
                *upgraded.lock() = pending;
            } else {
                let keeps = may_keep && !state.is_closing() && !http.lifecycle.is_draining();
                let is_kept = http.pool(kind).announce(keeps, answer.headers_mut());
                if !is_kept && version == Version::HTTP_10 {
                    // hyper adds `keep-alive` to a response that it takes for HTTP/1.1.
                    *answer.version_mut() = Version::HTTP_10;
                }
            }
            state.served();
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        // Its own timeout would count the pause between two requests as part of the second head.
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let timer = tokio::time::sleep_until(state.pace.deadline().unwrap_or_else(Instant::now));
    let stopped = stop.cancelled();
    tokio::pin!(connection, timer, stopped);
    poll_fn(|cx| {
        loop {
            // The connection first: if it is done, the rest need not be polled.
            if let Poll::Ready(done) = connection.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let is_stopped = !state.is_closing() && stopped.as_mut().poll(cx).is_ready();
            let is_over = match state.pace.deadline() {
                None => true,
                Some(deadline) => {
                    // A later deadline is set only when the timer fires: most deadlines move before they expire.
                    if deadline < timer.deadline() {
                        timer.as_mut().reset(deadline);
                    }
                    loop {
                        if timer.as_mut().poll(cx).is_pending() {
                            break false;
                        }
                        if deadline <= Instant::now() {
                            break true;
                        }
                        timer.as_mut().reset(deadline);
                    }
                }
            };
            let is_between = state.pace.is_between_requests();
            if is_over && (state.is_closing() || !is_between) {
                return Poll::Ready(Ok(()));
            }
            if !is_over && !is_stopped {
                return Poll::Pending;
            }
            // A request in progress is still answered, and its response announces the close.
            state.close();
            if is_between {
                connection.as_mut().graceful_shutdown();
            }
        }
    })
    .await
}

/// Whether the client wants to reuse its connection, and may: after the body of a handshake there may be bytes that are
/// meant for a WebSocket.
fn wants_reuse(request: &Request<Incoming>) -> bool {
    let is_kept = match request.version() {
        Version::HTTP_11 => !has_token(request.headers(), &CONNECTION, "close"),
        // The client has to ask for it (RFC 9112, appendix C.2.2).
        _ => has_token(request.headers(), &CONNECTION, "keep-alive"),
    };
    is_kept && (request.body().is_end_stream() || !request.headers().contains_key(UPGRADE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of the connection that was about to be accepted evicts nobody and delays nobody.
    #[test]
    fn only_exhaustion_makes_room() {
        let cause = |code| Cause::of(&io::Error::from_raw_os_error(code));
        assert_eq!(cause(libc::EMFILE), Cause::Exhaustion);
        assert_eq!(cause(libc::ENOMEM), Cause::Exhaustion);
        assert_eq!(cause(libc::ECONNABORTED), Cause::Peer);
        assert_eq!(cause(libc::EPROTO), Cause::Peer);
        assert_eq!(cause(libc::EHOSTUNREACH), Cause::Peer);
        assert_eq!(cause(libc::EINVAL), Cause::Other);
    }

    #[tokio::test]
    async fn an_accepted_socket_inherits_the_listeners_options() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.socket.accept().await.unwrap();
        if !listener.inherits_options {
            prepare(SockRef::from(&socket)).unwrap();
        }
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
    }
}
