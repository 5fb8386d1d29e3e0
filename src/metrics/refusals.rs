//! Why HTTP requests are refused, with the label of each reason; `http/refusal.rs` has the responses.

/// The labels of requests that hyper refuses itself, with 400 and 431.
pub const MALFORMED: &str = "malformed";
pub const HEAD_TOO_BIG: &str = "head_too_big";

/// Why a request is refused before its route is known, or on any route except the WebSocket's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestRefusal {
    AmbiguousLength,
    UriTooLong,
    Host,
    NotFound,
    Method,
    SessionId,
    UserId,
    Limit,
    State,
    Cursor,
    Duration,
    ContentType,
    IdempotencyKey,
    Body,
    BodyTooLarge,
    BodyTimeout,
}

/// Why a WebSocket upgrade is refused, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRefusal {
    SessionId,
    UserId,
    UserType,
    Origin,
    /// A customer.
    Lobby,
    Draining,
    Capacity,
    PerIp,
    PerUser,
    /// A plain GET without an upgrade; nothing else was wrong.
    NoUpgrade,
    Version,
    Body,
    Key,
}

impl RequestRefusal {
    pub const ALL: [Self; 16] = [
        Self::AmbiguousLength,
        Self::UriTooLong,
        Self::Host,
        Self::NotFound,
        Self::Method,
        Self::SessionId,
        Self::UserId,
        Self::Limit,
        Self::State,
        Self::Cursor,
        Self::Duration,
        Self::ContentType,
        Self::IdempotencyKey,
        Self::Body,
        Self::BodyTooLarge,
        Self::BodyTimeout,
    ];

    /// The label in `livechat_requests_refused_total`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AmbiguousLength => "ambiguous_length",
            Self::UriTooLong => "uri_too_long",
            Self::Host => "host",
            Self::NotFound => "not_found",
            Self::Method => "method",
            Self::SessionId => "session_id",
            Self::UserId => "user_id",
            Self::Limit => "limit",
            Self::State => "state",
            Self::Cursor => "cursor",
            Self::Duration => "duration",
            Self::ContentType => "content_type",
            Self::IdempotencyKey => "idempotency_key",
            Self::Body => "body",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
        }
    }
}

impl UpgradeRefusal {
    pub const ALL: [Self; 13] = [
        Self::SessionId,
        Self::UserId,
        Self::UserType,
        Self::Origin,
        Self::Lobby,
        Self::Draining,
        Self::Capacity,
        Self::PerIp,
        Self::PerUser,
        Self::NoUpgrade,
        Self::Version,
        Self::Body,
        Self::Key,
    ];

    /// The label in `livechat_upgrades_refused_total`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionId => "session_id",
            Self::UserId => "user_id",
            Self::UserType => "user_type",
            Self::Origin => "origin",
            Self::Lobby => "lobby",
            Self::Draining => "draining",
            Self::Capacity => "capacity",
            Self::PerIp => "per_ip",
            Self::PerUser => "per_user",
            Self::NoUpgrade => "no_upgrade",
            Self::Version => "version",
            Self::Body => "body",
            Self::Key => "key",
        }
    }
}

/// What was asked for: its refusals are counted in one metric or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Request,
    Upgrade,
}

/// Why a request or an upgrade is refused for who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessRefusal {
    TokenMissing,
    TokenInvalid,
    TokenExpired,
    /// The key set has never been fetched, or not yet for the key of this token.
    KeysUnavailable,
    /// Too many tokens wait to be verified, from addresses of which many were refused.
    Busy,
    Forbidden,
    /// A backend has disconnected the user, for a time that is not over.
    UserRefused,
    /// Not offered in production without tokens.
    TokensOff,
    /// A route of backends, and no API key is set.
    NoApiKeys,
    /// Too many refused tokens or API keys from this address.
    AuthFailures,
}

impl AccessRefusal {
    pub const ALL: [Self; 10] = [
        Self::TokenMissing,
        Self::TokenInvalid,
        Self::TokenExpired,
        Self::KeysUnavailable,
        Self::Busy,
        Self::Forbidden,
        Self::UserRefused,
        Self::TokensOff,
        Self::NoApiKeys,
        Self::AuthFailures,
    ];

    /// The label in both metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenMissing => "token_missing",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::KeysUnavailable => "keys_unavailable",
            Self::Busy => "busy",
            Self::Forbidden => "forbidden",
            Self::UserRefused => "user_refused",
            Self::TokensOff => "tokens_off",
            Self::NoApiKeys => "no_api_keys",
            Self::AuthFailures => "auth_failures",
        }
    }
}
