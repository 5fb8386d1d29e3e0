//! JSON responses, and errors in their common form.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::protocol::encode;

pub type Answer = Response<Full<Bytes>>;

/// `{"success":true,"message":…,"data":…}`.
#[derive(Serialize)]
pub struct Success<T: Serialize> {
    pub success: bool,
    pub message: &'static str,
    pub data: T,
}

#[derive(Serialize)]
struct Failure<'a> {
    success: bool,
    message: &'a str,
    error: &'a str,
}

/// The body when a response can't be encoded.
const UNENCODABLE: &str =
    r#"{"success":false,"message":"Internal error","error":"the answer could not be encoded"}"#;

pub fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match encode(body) {
        Some(body) => with_body(status, "application/json", body.into()),
        None => with_body(
            StatusCode::INTERNAL_SERVER_ERROR,
            "application/json",
            Bytes::from_static(UNENCODABLE.as_bytes()),
        ),
    }
}

pub fn error(status: StatusCode, message: &str, error: &str) -> Answer {
    json(
        status,
        &Failure {
            success: false,
            message,
            error,
        },
    )
}

/// An error with one more header.
pub fn error_with(
    status: StatusCode,
    message: &str,
    detail: &str,
    name: header::HeaderName,
    value: &'static str,
) -> Answer {
    let mut answer = error(status, message, detail);
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

pub fn with_body(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
