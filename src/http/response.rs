//! JSON answers, and errors in their one shape.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

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

pub fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).unwrap_or_default();
    with_body(status, "application/json", body.into())
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
