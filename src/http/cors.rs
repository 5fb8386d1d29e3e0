//! CORS (the Fetch standard, section 3.2) as docs/CORS_CONFIGURATION.md describes it, and the WebSocket's Origin check.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::headers::only;
use crate::config::{AllowedHeaders, Config, Environment, Origins};

const METHODS: HeaderValue = HeaderValue::from_static("GET,POST,HEAD,PUT,DELETE,PATCH,OPTIONS");
/// The headers that pages may send in production: the old server's list, then ours, which include those that tracing
/// libraries add.
const REQUEST_HEADERS: &str = "Origin,Content-Type,Accept,Authorization,X-Requested-With,\
    Access-Control-Request-Method,Access-Control-Request-Headers,\
    X-API-Key,Idempotency-Key,Cache-Control,X-CSRF-Token,X-Request-ID,Traceparent,Tracestate,Baggage,Sentry-Trace";
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Content-Length,Access-Control-Allow-Origin,Access-Control-Allow-Headers,Content-Type,Retry-After,WWW-Authenticate",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Which origins may read our responses.
pub struct Cors {
    /// `None`: any origin, without credentials.
    listed: Option<Origins>,
    credentials: bool,
    request_headers: HeaderValue,
    /// Whether a preflight may ask for any header.
    any_header: bool,
}

impl Cors {
    pub fn new(config: &Config) -> Self {
        let is_production = config.environment == Environment::Production;
        let is_listed = is_production && config.allowed_origins != Origins::Any;
        let more: &[String] = match &config.allowed_headers {
            AllowedHeaders::Any => &[],
            AllowedHeaders::List(names) => names,
        };
        let names: Vec<_> = std::iter::once(REQUEST_HEADERS)
            .chain(more.iter().map(String::as_str))
            .collect();
        Self {
            listed: is_listed.then(|| config.allowed_origins.clone()),
            credentials: is_listed && config.allow_credentials,
            request_headers: HeaderValue::from_str(&names.join(","))
                .unwrap_or(HeaderValue::from_static(REQUEST_HEADERS)),
            any_header: !is_production || config.allowed_headers == AllowedHeaders::Any,
        }
    }

    /// Whether a page of this origin may open a WebSocket. Clients other than browsers send no Origin, and may.
    pub fn allows_upgrade(&self, headers: &HeaderMap) -> bool {
        let Some(listed) = &self.listed else { return true };
        !headers.contains_key(header::ORIGIN) || listed_origin(listed, headers).is_some()
    }

    /// Adds the CORS headers of a response.
    pub fn decorate(&self, request: &HeaderMap, is_preflight: bool, response: &mut HeaderMap) {
        match &self.listed {
            None => {
                response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Some(listed) => {
                // Caches must not serve one origin's response to another.
                response.append(header::VARY, HeaderValue::from_static("Origin"));
                let Some(origin) = listed_origin(listed, request) else {
                    return;
                };
                response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                if self.credentials {
                    response.insert(
                        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                        HeaderValue::from_static("true"),
                    );
                }
            }
        }
        if is_preflight {
            response.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            self.allow_headers(request, response);
            response.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        } else {
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    /// Allows the configured headers, or those that the preflight asks for: `*` would not cover Authorization, and with
    /// credentials it would cover nothing.
    fn allow_headers(&self, request: &HeaderMap, response: &mut HeaderMap) {
        const ASKED_FOR: HeaderName = header::ACCESS_CONTROL_REQUEST_HEADERS;
        const ALLOWED: HeaderName = header::ACCESS_CONTROL_ALLOW_HEADERS;
        if self.any_header {
            response.append(header::VARY, HeaderValue::from_name(ASKED_FOR));
        }
        if self.any_header && request.contains_key(ASKED_FOR) {
            for asked_for in request.get_all(ASKED_FOR) {
                response.append(ALLOWED, asked_for.clone());
            }
        } else {
            response.insert(ALLOWED, self.request_headers.clone());
        }
    }
}

/// The request's origin, if it has exactly one and that is listed.
fn listed_origin<'a>(listed: &Origins, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
    only(request, &header::ORIGIN).filter(|origin| origin.to_str().is_ok_and(|text| listed.allows(text)))
}
