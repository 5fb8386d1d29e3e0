//! Close codes and error codes, documented in docs/PROTOCOL.md.

use std::borrow::Cow;

/// Close codes we send. 1000-1015 are RFC 6455, section 7.4.1; 4000-4999 are private use (7.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// Echoes the client's own close frame.
    Normal,
    /// This node is draining: reconnect at once.
    GoingAway,
    Protocol,
    /// A binary frame: this protocol is text only.
    Unsupported,
    InvalidUtf8,
    /// The client kept exceeding a limit: fix the client, and reconnect with back-off.
    Policy,
    TooBig,
    /// A bug in the server.
    Internal,
    /// No pong in time.
    NoPong,
    /// The outbound queue is full and the client does not read.
    SlowConsumer,
    /// A newer connection of the same user has replaced it: do not reconnect automatically.
    Replaced,
    /// The token has expired: reconnect with another one.
    Unauthenticated,
    /// The token no longer covers the session, or the user was disconnected: do not reconnect.
    Forbidden,
}

impl CloseCode {
    /// All of them, in the documentation's order.
    pub const ALL: [CloseCode; 13] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::Unsupported,
        Self::InvalidUtf8,
        Self::Policy,
        Self::TooBig,
        Self::Internal,
        Self::NoPong,
        Self::SlowConsumer,
        Self::Replaced,
        Self::Unauthenticated,
        Self::Forbidden,
    ];

    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::GoingAway => 1001,
            Self::Protocol => 1002,
            Self::Unsupported => 1003,
            Self::InvalidUtf8 => 1007,
            Self::Policy => 1008,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::NoPong => 4001,
            Self::SlowConsumer => 4008,
            Self::Replaced => 4009,
            Self::Unauthenticated => 4401,
            Self::Forbidden => 4403,
        }
    }

    /// The label in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol_error",
            Self::Unsupported => "unsupported_data",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Policy => "policy",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::NoPong => "no_pong",
            Self::SlowConsumer => "slow_consumer",
            Self::Replaced => "replaced",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Whether a client may send this close code (RFC 6455, section 7.4, and the registry's additions).
pub fn is_sendable_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// `data.code` of an `error` frame: stable, snake_case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    InvalidJson,
    InvalidFrame,
    UnknownType,
    InvalidField,
    RateLimited,
    RecordTooLarge,
    BusUnavailable,
    OutcomeUnknown,
    /// The token of an `auth` is refused; the one before it stays.
    InvalidToken,
    /// Whether the token of an `auth` is good is not known yet; the one before it stays.
    KeysUnavailable,
    /// There is nothing to authenticate with.
    AuthDisabled,
    /// Not here: the lobby is no session.
    NotAllowed,
    /// A bug in the server.
    Internal,
}

impl ErrorCode {
    pub const ALL: [ErrorCode; 13] = [
        Self::InvalidJson,
        Self::InvalidFrame,
        Self::UnknownType,
        Self::InvalidField,
        Self::RateLimited,
        Self::RecordTooLarge,
        Self::BusUnavailable,
        Self::OutcomeUnknown,
        Self::InvalidToken,
        Self::KeysUnavailable,
        Self::AuthDisabled,
        Self::NotAllowed,
        Self::Internal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidFrame => "invalid_frame",
            Self::UnknownType => "unknown_type",
            Self::InvalidField => "invalid_field",
            Self::RateLimited => "rate_limited",
            Self::RecordTooLarge => "record_too_large",
            Self::BusUnavailable => "bus_unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::InvalidToken => "invalid_token",
            Self::KeysUnavailable => "keys_unavailable",
            Self::AuthDisabled => "auth_disabled",
            Self::NotAllowed => "not_allowed",
            Self::Internal => "internal_error",
        }
    }

    /// Whether the same frame, sent again later, may succeed.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited | Self::BusUnavailable | Self::OutcomeUnknown | Self::KeysUnavailable
        )
    }
}

/// What an `error` frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    pub code: ErrorCode,
    pub text: Cow<'static, str>,
}

impl WireError {
    pub fn new(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// A bug in the server prevented the operation.
    pub fn internal() -> Self {
        Self::new(ErrorCode::Internal, "Internal error")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_send_only_defined_or_private_close_codes() {
        let bad = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535];
        assert!(bad.iter().all(|&code| !is_sendable_close_code(code)));
        let good = [1000, 1003, 1007, 1014, 3000, 4000, 4999];
        assert!(good.iter().all(|&code| is_sendable_close_code(code)));
    }

    #[test]
    fn all_our_close_codes_are_legal() {
        assert!(
            CloseCode::ALL
                .iter()
                .all(|code| is_sendable_close_code(code.code()))
        );
    }
}
