//! livechat-ws delivers live-chat messages: customers and agents talk in sessions over WebSocket, a chat backend
//! writes messages to Kafka, and every node fans each record out to the session's sockets without re-serialising
//! it.
//!
//! # Layout
//!
//! Top down: a module uses only those below it.
//!
//! - [`server`], [`signals`], [`shutdown`]: start, signals, graceful shutdown
//! - [`http`]: listeners, router, the upgrade's checks, CORS, health, REST
//! - [`ws`]: the reading side of one connection
//! - [`chat`]: what each client frame does
//! - [`presence`]: who is connected, announced off the message path, which never waits for it
//! - [`bus`]: the log of records, in the process or in Kafka; it decodes them and finds their sessions
//! - [`fanout`]: sends a batch of records to the sockets of each session
//! - [`session`]: the connections and users of a session on this node
//! - [`writer`]: the only writer of a socket, with the queue of what the socket has not taken yet
//! - [`metrics`], [`logging`], [`lifecycle`], [`supervise`], [`secret`], [`error`], [`clock`], [`address`]
//! - [`config`]: flags, environment and `.env`, checked before a port opens
//! - [`auth`]: tokens and API keys, and the table of who may do what
//! - [`protocol`]: everything on the wire, and nothing internal
//!
//! What is absent: nothing on the message path waits for presence; nothing is allocated, parsed or counted per
//! recipient; no lock is held across a send to another socket. docs/ARCHITECTURE.md draws the path.

pub mod address;
pub mod auth;
pub mod bus;
pub mod chat;
pub mod clock;
pub mod config;
pub mod error;
pub mod fanout;
pub mod history;
pub mod http;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod presence;
pub mod protocol;
pub mod secret;
pub mod server;
pub mod session;
pub mod shutdown;
pub mod signals;
pub mod supervise;
pub mod writer;
pub mod ws;

pub use error::StartError;
pub use server::Server;
