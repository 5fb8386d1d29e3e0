//! CORS (the Fetch standard, section 3.2) as docs/CORS_CONFIGURATION.md describes it, and the WebSocket's Origin check.

use hyper::header::{self, HeaderMap, HeaderValue};

use crate::config::{Config, Environment, Origins};

const METHODS: HeaderValue = HeaderValue::from_static("GET,POST,HEAD,PUT,DELETE,PATCH,OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Origin,Content-Type,Accept,Authorization,X-Requested-With,Access-Control-Request-Method,Access-Control-Request-Headers",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Content-Length,Access-Control-Allow-Origin,Access-Control-Allow-Headers,Content-Type",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Which origins may read our answers.
pub struct Cors {
    /// `None`: any origin, without credentials.
    listed: Option<Origins>,
    credentials: bool,
}

impl Cors {
    pub fn new(config: &Config) -> Self {
        let is_listed =
            config.environment == Environment::Production && config.allowed_origins != Origins::Any;
        Self {
            listed: is_listed.then(|| config.allowed_origins.clone()),
            credentials: is_listed && config.allow_credentials,
        }
    }

    /// Whether a page of this origin may open a WebSocket. Clients that are no browser send none, and may.
    pub fn allows_upgrade(&self, headers: &HeaderMap) -> bool {
        let Some(listed) = &self.listed else { return true };
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => true,
            (Some(origin), None) => origin.to_str().is_ok_and(|origin| listed.allows(origin)),
            (Some(_), Some(_)) => false,
        }
    }

    /// Adds the headers of an answer.
    pub fn decorate(&self, request: &HeaderMap, is_preflight: bool, response: &mut HeaderMap) {
        match &self.listed {
            None => {
                response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Some(listed) => {
                // Caches must not hand one origin's answer to another.
                response.insert(header::VARY, HeaderValue::from_static("Origin"));
                let origin = request.get(header::ORIGIN);
                let Some(origin) =
                    origin.filter(|origin| origin.to_str().is_ok_and(|origin| listed.allows(origin)))
                else {
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
            response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            response.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        } else {
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}
