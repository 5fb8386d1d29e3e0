//! The responses to refused requests. Making one counts it, so that no refusal goes uncounted.

use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};

use super::response::{Answer, error};
use crate::metrics::Metrics;
pub use crate::metrics::refusals::{AccessRefusal, RequestRefusal, UpgradeRefusal};
use crate::metrics::refusals::{Asked, HEAD_TOO_BIG, MALFORMED};

/// The metric label, if hyper refused the request.
pub fn by_hyper(error: &hyper::Error) -> Option<&'static str> {
    if error.is_parse_too_large() {
        Some(HEAD_TOO_BIG)
    } else {
        error.is_parse().then_some(MALFORMED)
    }
}

/// Status, `message` and `error`.
type Parts = (StatusCode, &'static str, &'static str);

const BAD_REQUEST: &str = "Bad request";
const BAD_USER_ID: Parts = (
    StatusCode::BAD_REQUEST,
    "Invalid user ID",
    "a user ID is 1 to 128 bytes of UTF-8 without control and format characters and \
     / \\ % \" < > { } `, neither . nor .., with no space at either end",
);
const BAD_SESSION_ID: Parts = (
    StatusCode::BAD_REQUEST,
    "Invalid session ID",
    "a session ID is 1 to 128 of the characters A-Z a-z 0-9 . _ @ + = ~ - and none of . .. @lobby",
);

impl RequestRefusal {
    fn parts(self) -> Parts {
        match self {
            Self::AmbiguousLength => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                "the length of the body is given twice",
            ),
            Self::UriTooLong => (
                StatusCode::URI_TOO_LONG,
                "URI too long",
                "the request target is longer than 8192 bytes",
            ),
            Self::Host => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                "a request has exactly one Host header",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found", "there is no such path"),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "this path does not answer this method",
            ),
            Self::SessionId => BAD_SESSION_ID,
            Self::UserId => BAD_USER_ID,
            Self::Limit => (
                StatusCode::BAD_REQUEST,
                "Invalid limit",
                "the limit must be a number from 1 to 1000",
            ),
            Self::State => (
                StatusCode::BAD_REQUEST,
                "Invalid state",
                "the state must be waiting, active or all",
            ),
            Self::Cursor => (
                StatusCode::BAD_REQUEST,
                "Invalid cursor",
                "the cursor must be empty or a next_cursor",
            ),
            Self::Duration => (
                StatusCode::BAD_REQUEST,
                "Invalid duration",
                "for must be a duration of at most 24h, such as 10m",
            ),
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported media type",
                "the body must be application/json, without an encoding",
            ),
            Self::IdempotencyKey => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                "Idempotency-Key must be one header of 1 to 128 bytes, and the same as client_message_id if both are there",
            ),
            Self::Body => (StatusCode::BAD_REQUEST, BAD_REQUEST, "the body could not be read"),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "Message too large",
                "the body is larger than MAX_MESSAGE_BYTES",
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "Request timeout",
                "the body did not arrive within 10 seconds",
            ),
        }
    }

    /// Refuses a method, naming those that the path answers.
    pub fn method(metrics: &Metrics, allowed: &'static str) -> Answer {
        let mut answer = Self::Method.naming(metrics, &format!("this path answers {allowed}"));
        set(&mut answer, header::ALLOW, allowed);
        answer
    }

    /// As [`Self::answer`], with another `error`.
    pub fn naming(self, metrics: &Metrics, detail: &str) -> Answer {
        metrics.request_refused(self.name());
        let (status, message, _) = self.parts();
        error(status, message, detail)
    }

    /// Counts the refusal and makes its response.
    pub fn answer(self, metrics: &Metrics) -> Answer {
        metrics.request_refused(self.name());
        let mut answer = answer(self.parts());
        if matches!(self, Self::BodyTooLarge | Self::BodyTimeout) {
            // The rest of the body may still come.
            set(&mut answer, header::CONNECTION, "close");
        }
        answer
    }
}

impl UpgradeRefusal {
    fn parts(self) -> Parts {
        match self {
            Self::SessionId => BAD_SESSION_ID,
            Self::UserId => BAD_USER_ID,
            Self::UserType => (
                StatusCode::BAD_REQUEST,
                "Invalid user type",
                "the user type must be customer, agent or admin",
            ),
            Self::Origin => (
                StatusCode::FORBIDDEN,
                "Origin not allowed",
                "this origin is not in ALLOWED_ORIGINS",
            ),
            Self::Lobby => (
                StatusCode::FORBIDDEN,
                "Forbidden",
                "the lobby is for agents and admins",
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Service unavailable",
                "this node is draining",
            ),
            Self::Capacity => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Service unavailable",
                "this node is at its MAX_CONNECTIONS",
            ),
            Self::PerIp => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many connections",
                "too many connections from this address",
            ),
            Self::PerUser => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many connections",
                "connections of this user replace each other too often",
            ),
            Self::NoUpgrade => (
                StatusCode::UPGRADE_REQUIRED,
                "Upgrade required",
                "send a WebSocket handshake (RFC 6455)",
            ),
            Self::Version => (
                StatusCode::UPGRADE_REQUIRED,
                "Upgrade required",
                "the WebSocket version must be 13",
            ),
            Self::Body => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                "a WebSocket handshake has no body",
            ),
            Self::Key => (
                StatusCode::BAD_REQUEST,
                BAD_REQUEST,
                "Sec-WebSocket-Key must be 16 bytes in base64",
            ),
        }
    }

    /// Counts the refusal and makes its response.
    pub fn answer(self, metrics: &Metrics) -> Answer {
        metrics.upgrade_refused(self.name());
        let mut answer = answer(self.parts());
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                set(&mut answer, header::RETRY_AFTER, retry_after());
            }
            // A 426 names the protocol to upgrade to (RFC 9110, section 15.5.22).
            StatusCode::UPGRADE_REQUIRED => {
                set(&mut answer, header::UPGRADE, "websocket");
                set(&mut answer, header::CONNECTION, "Upgrade");
            }
            _ => {}
        }
        if self == Self::Version {
            set(&mut answer, header::SEC_WEBSOCKET_VERSION, "13");
        }
        answer
    }
}

impl AccessRefusal {
    /// The same for sessions that exist and those that don't.
    fn parts(self) -> Parts {
        match self {
            Self::TokenMissing => (
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "this needs a valid token (Authorization: Bearer) or API key",
            ),
            Self::TokenInvalid => (StatusCode::UNAUTHORIZED, "Unauthorized", "the token is not valid"),
            Self::TokenExpired => (StatusCode::UNAUTHORIZED, "Unauthorized", "the token has expired"),
            Self::KeysUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Service unavailable",
                "the key of this token is not known yet",
            ),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Service unavailable",
                "too many refused tokens from this address: the others wait too long",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "Forbidden",
                "the token is not for this user, type or session",
            ),
            Self::UserRefused => (
                StatusCode::FORBIDDEN,
                "Forbidden",
                "this user is refused in this session for now",
            ),
            Self::TokensOff => (
                StatusCode::FORBIDDEN,
                "Forbidden",
                "not offered in production without tokens (JWT_SECRET and others)",
            ),
            Self::NoApiKeys => (StatusCode::FORBIDDEN, "Forbidden", "not offered without API_KEYS"),
            Self::AuthFailures => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests",
                "too many refused tokens or API keys from this address",
            ),
        }
    }

    /// Counts the refusal and makes its response.
    pub fn answer(self, metrics: &Metrics, asked: Asked) -> Answer {
        metrics.access_refused(self, asked);
        let mut answer = answer(self.parts());
        match answer.status() {
            StatusCode::UNAUTHORIZED => set(&mut answer, header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                set(&mut answer, header::RETRY_AFTER, retry_after());
            }
            _ => {}
        }
        answer
    }
}

/// Seconds, randomised so that clients that were refused together do not retry together.
pub fn retry_after() -> &'static str {
    ["1", "2", "3", "4", "5"][fastrand::usize(..5)]
}

fn answer((status, message, detail): Parts) -> Answer {
    error(status, message, detail)
}

fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No label occurs twice in one metric, and each series exists from the start.
    #[test]
    fn every_reason_has_a_label_of_its_own() {
        let metrics = Metrics::default();
        let page = metrics.page();
        let count = |name: &str, reason: &str| {
            page.matches(&format!(
                "livechat_{name}_refused_total{{reason=\"{reason}\"}} 0\n"
            ))
            .count()
        };
        for reason in RequestRefusal::ALL
            .map(RequestRefusal::name)
            .into_iter()
            .chain([MALFORMED, HEAD_TOO_BIG])
        {
            assert_eq!(count("requests", reason), 1, "{reason}");
        }
        for refusal in UpgradeRefusal::ALL {
            assert_eq!(count("upgrades", refusal.name()), 1, "{refusal:?}");
        }
        for refusal in AccessRefusal::ALL {
            assert_eq!(count("requests", refusal.name()), 1, "{refusal:?}");
            assert_eq!(count("upgrades", refusal.name()), 1, "{refusal:?}");
        }
    }
}
