//! `GET /api/session/{id}/messages`: a page of a session's messages.

use bytes::{Bytes, BytesMut};
use hyper::{StatusCode, header};

use super::Http;
use super::refusal::{RequestRefusal, retry_after};
use super::response::{Answer, error_with, with_body};
use crate::chat::Messages;
use crate::protocol::ids::SessionId;
use crate::protocol::resume::{NotResumed, Resume, query_value};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The last messages, or the first ones after `since`.
pub async fn messages(http: &Http, session_id: &SessionId, query: Option<&str>) -> Answer {
    let query = query.unwrap_or_default();
    let Some(limit) = limit(query) else {
        return RequestRefusal::Limit.answer(&http.metrics);
    };
    let since = Resume::since_of_query(query);
    answer(&http.chat.messages(session_id, since, limit).await)
}

fn answer(messages: &Messages) -> Answer {
    match messages.refused {
        Some(NotResumed::Unavailable) => try_again("unavailable: the log can't be read at the moment"),
        Some(NotResumed::Busy) => try_again("busy: too many clients read the log"),
        _ => with_body(StatusCode::OK, "application/json", body(messages)),
    }
}

/// `None` if there is one that is not accepted.
fn limit(query: &str) -> Option<usize> {
    match query_value(query, "limit") {
        None => Some(DEFAULT_LIMIT),
        Some(limit) => limit.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit)),
    }
}

fn try_again(why: &str) -> Answer {
    let (status, message) = (StatusCode::SERVICE_UNAVAILABLE, "Failed to get messages");
    error_with(status, message, why, header::RETRY_AFTER, retry_after())
}

/// The payloads are JSON and are inserted as they are.
fn body(messages: &Messages) -> Bytes {
    const START: &str = r#"{"success":true,"message":"Messages retrieved successfully","data":{"messages":["#;
    let page = &messages.page;
    let reason = messages
        .refused
        .map_or(String::new(), |why| format!(r#""reason":"{}","#, why.name()));
    // A cursor has no characters that JSON escapes.
    let cursor = page
        .cursor
        .as_ref()
        .map_or("null".to_owned(), |cursor| format!("\"{cursor}\""));
    let (recovered, has_more) = (messages.refused.is_none(), page.has_more);
    let end = format!(r#"],"recovered":{recovered},{reason}"has_more":{has_more},"cursor":{cursor}}}}}"#);

    let payloads: usize = page.payloads.iter().map(|payload| payload.len() + 1).sum();
    let mut body = BytesMut::with_capacity(START.len() + payloads + end.len());
    body.extend_from_slice(START.as_bytes());
    for (number, payload) in page.payloads.iter().enumerate() {
        if number > 0 {
            body.extend_from_slice(b",");
        }
        body.extend_from_slice(payload);
    }
    body.extend_from_slice(end.as_bytes());
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Page;

    #[test]
    fn limits_are_numbers_from_1_to_1000() {
        assert_eq!(limit(""), Some(100));
        assert_eq!(limit("since=a&limit=7"), Some(7));
        assert_eq!(limit("limit=1000"), Some(1000));
        for bad in [
            "limit",
            "limit=",
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=1.5",
            "limit=ten",
        ] {
            assert_eq!(limit(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_may_come_back_for_it_gets_503() {
        for why in NotResumed::ALL {
            let page = Page::empty(None);
            let refused = Some(why);
            let answer = answer(&Messages { page, refused });
            let is_retried = matches!(why, NotResumed::Unavailable | NotResumed::Busy);
            let status = if is_retried { 503 } else { 200 };
            assert_eq!(answer.status().as_u16(), status, "{why:?}");
            assert_eq!(
                answer.headers().contains_key(header::RETRY_AFTER),
                is_retried,
                "{why:?}"
            );
        }
    }

    #[test]
    fn payloads_are_inserted_as_they_are() {
        let text = |payloads: &[&'static str], refused, cursor: Option<&str>| {
            let mut page = Page::empty(cursor.map(str::to_owned));
            let bytes = payloads.iter().map(|text| Bytes::from_static(text.as_bytes()));
            page.payloads = bytes.collect();
            page.has_more = !payloads.is_empty();
            String::from_utf8(body(&Messages { page, refused }).to_vec()).unwrap()
        };
        const START: &str = r#"{"success":true,"message":"Messages retrieved successfully","data":"#;
        assert_eq!(
            text(&[r#"{ "a" : 1.0 }"#, "7"], None, Some("~2.x")),
            START.to_owned()
                + r#"{"messages":[{ "a" : 1.0 },7],"recovered":true,"has_more":true,"cursor":"~2.x"}}"#
        );
        assert_eq!(
            text(&[], Some(NotResumed::TooOld), None),
            START.to_owned()
                + r#"{"messages":[],"recovered":false,"reason":"too_old","has_more":false,"cursor":null}}"#
        );
    }
}
