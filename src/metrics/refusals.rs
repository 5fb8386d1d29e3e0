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
    Limit,
}

/// Why a WebSocket upgrade is refused, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRefusal {
    SessionId,
    UserId,
    UserType,
    Origin,
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
    pub const ALL: [Self; 7] = [
        Self::AmbiguousLength,
        Self::UriTooLong,
        Self::Host,
        Self::NotFound,
        Self::Method,
        Self::SessionId,
        Self::Limit,
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
            Self::Limit => "limit",
        }
    }
}

impl UpgradeRefusal {
    pub const ALL: [Self; 12] = [
        Self::SessionId,
        Self::UserId,
        Self::UserType,
        Self::Origin,
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
