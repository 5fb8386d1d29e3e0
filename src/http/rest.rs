//! Health, readiness, and who is connected.

use std::sync::Arc;
use std::time::Duration;

use hyper::{HeaderMap, StatusCode};
use serde::Serialize;

use super::Http;
use super::response::{Answer, Success, error, error_with, json, with_body};
use crate::bus::{Health, Status};
use crate::metrics::Now;
use crate::metrics::page::Format;
use crate::protocol::ids::SessionId;

/// How long a response waits for the presence store.
const STATUS_PATIENCE: Duration = Duration::from_millis(900);

#[derive(Serialize)]
pub struct Dependency {
    mode: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Dependency {
    pub fn new(health: Health) -> Self {
        Self {
            mode: health.mode,
            status: health.status.as_str(),
            detail: health.detail,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    status: &'static str,
    message: &'static str,
    port: String,
    environment: &'static str,
    cors_origins: &'a str,
    version: &'static str,
    node_id: &'a str,
    uptime_seconds: u64,
    connections: usize,
    sessions: usize,
    kafka: Dependency,
    redis: Dependency,
    fanout_io: &'static str,
}

/// `GET /health`: 200 while the process serves.
pub fn health(http: &Http) -> Answer {
    let (bus, presence) = (http.chat.bus.health(), http.chat.presence.health());
    let is_ok = bus.status == Status::Ok && presence.status == Status::Ok;
    json(
        StatusCode::OK,
        &Report {
            status: if is_ok { "ok" } else { "degraded" },
            message: "LiveChat WebSocket server is running",
            port: http.port.to_string(),
            environment: http.config.environment.as_str(),
            cors_origins: &http.config.cors_origins,
            version: env!("CARGO_PKG_VERSION"),
            node_id: &http.config.node_id,
            uptime_seconds: http.lifecycle.uptime().as_secs(),
            connections: http.limits.connections(),
            sessions: http.chat.registry.len(),
            kafka: Dependency::new(bus),
            redis: Dependency::new(presence),
            fanout_io: if http.ring_in_use.get() {
                "io_uring"
            } else {
                "send"
            },
        },
    )
}

#[derive(Serialize)]
struct State {
    status: &'static str,
}

/// `GET /live`: 200 as long as the process can answer.
pub fn live() -> Answer {
    json(StatusCode::OK, &State { status: "live" })
}

/// `GET /ready`: 200, but 503 while starting or draining. It stays 200 when a dependency fails later: one broken broker
/// must not take every node out of the load balancers.
pub fn ready(http: &Http) -> Answer {
    let not_ready = |why| {
        error_with(
            StatusCode::SERVICE_UNAVAILABLE,
            "Not ready",
            why,
            hyper::header::RETRY_AFTER,
            "1",
        )
    };
    let statuses = [http.chat.bus.health().status, http.chat.presence.health().status];
    if http.lifecycle.is_draining() {
        return not_ready("draining");
    }
    if !http
        .lifecycle
        .has_started(|| statuses.contains(&Status::Connecting) || http.auth.lacks_key_set())
    {
        return not_ready("starting");
    }
    let is_ok = statuses.iter().all(|status| *status == Status::Ok);
    json(
        StatusCode::OK,
        &State {
            status: if is_ok { "ready" } else { "degraded" },
        },
    )
}

/// `GET /api/session/{id}/connection-status`, across the cluster.
pub async fn connection_status(http: &Http, session_id: &SessionId) -> Answer {
    match tokio::time::timeout(STATUS_PATIENCE, http.chat.presence.status(session_id)).await {
        Ok(Ok(data)) => {
            let message = "Connection status retrieved successfully";
            json(
                StatusCode::OK,
                &Success {
                    success: true,
                    message,
                    data,
                },
            )
        }
        Ok(Err(_)) | Err(_) => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "Failed to get connection status",
            "the presence store is not available",
        ),
    }
}

/// `GET /metrics`.
pub async fn metrics(http: &Arc<Http>, headers: &HeaderMap) -> Answer {
    let format = Format::accepted(headers);
    let now = Now {
        connections: http.limits.connections(),
        sessions: http.chat.registry.len(),
        is_draining: http.lifecycle.is_draining(),
        is_ring_in_use: http.ring_in_use.get(),
    };
    let metrics = Arc::clone(&http.metrics);
    // It reads files in /proc, which must not block the runtime.
    match tokio::task::spawn_blocking(move || metrics.page_of(&now, format)).await {
        Ok(page) => with_body(StatusCode::OK, format.content_type(), page.into()),
        Err(why) => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal error",
            &why.to_string(),
        ),
    }
}
