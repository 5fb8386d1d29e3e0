//! `DELETE /api/session/{id}/users/{uid}`: a backend disconnects a user from a session.

use std::time::Duration;

use hyper::{StatusCode, header};
use serde::Serialize;

use super::Http;
use super::refusal::{RequestRefusal, retry_after};
use super::response::{Answer, Success, error, error_with, json};
use crate::bus::PublishError;
use crate::config::duration;
use crate::protocol::control::time_text;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::resume::query_value;

/// The longest refusal.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

const FAILED: &str = "Failed to disconnect the user";

#[derive(Serialize)]
struct Disconnected<'a> {
    session_id: &'a SessionId,
    user_id: &'a UserId,
    refused_until: Option<String>,
}

pub async fn disconnect(
    http: &Http,
    session_id: &SessionId,
    user_id: &UserId,
    query: Option<&str>,
) -> Answer {
    let Ok(refused_for) = refused_for(query.unwrap_or_default()) else {
        return RequestRefusal::Duration.answer(&http.metrics);
    };
    if http.lifecycle.is_draining() {
        return unavailable("this node is draining");
    }
    let until = match http.chat.disconnect(session_id, user_id, refused_for).await {
        Ok(until) => until,
        Err(PublishError::Unknown) => {
            let detail = "outcome_unknown: no answer in time, the user may be disconnected all the same";
            return error(StatusCode::GATEWAY_TIMEOUT, FAILED, detail);
        }
        Err(_) => return unavailable("disconnects can't be stored at the moment"),
    };
    json(
        StatusCode::ACCEPTED,
        &Success {
            success: true,
            message: "User disconnected",
            data: Disconnected {
                session_id,
                user_id,
                refused_until: until.map(time_text),
            },
        },
    )
}

fn unavailable(why: &str) -> Answer {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    error_with(status, FAILED, why, header::RETRY_AFTER, retry_after())
}

/// `for`, if it is there.
fn refused_for(query: &str) -> Result<Option<Duration>, String> {
    let given = query_value(query, "for");
    given
        .map(|text| duration(&text, Duration::ZERO..=LONGEST))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lasts_24_hours_at_most() {
        let seconds = |query| refused_for(query).map(|length| length.map(|length| length.as_secs()));
        assert_eq!(seconds(""), Ok(None));
        assert_eq!(seconds("a=b&for=10m"), Ok(Some(600)));
        assert_eq!(seconds("for=24h"), Ok(Some(86_400)));
        assert_eq!(seconds("for=0s"), Ok(Some(0)));
        for bad in [
            "for",
            "for=",
            "for=10",
            "for=-1s",
            "for=25h",
            "for=1d",
            "for=86400001ms",
            "for=1h30m",
        ] {
            assert!(refused_for(bad).is_err(), "{bad}");
        }
    }
}
