//! Allowed origins: exact ones, `null`, and the subdomains of a name.

use std::fmt;

use super::parse::{is_host, list, number, split_port, without_user};

/// The allowed origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// `*`.
    Any,
    /// These.
    List(Vec<Origin>),
}

/// An allowed origin, in the form that a browser sends: lower case, no default port, no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This one: `https://chat.example.com`, `capacitor://localhost`, `file://`, `null`.
    Exact(String),
    /// `https://*.example.com`: the parts before and after the asterisk.
    Subdomains {
        /// `https://`
        scheme: String,
        /// `.example.com` or `.example.com:8443`
        rest: String,
    },
}

/// Sent by pages without an origin of their own: sandboxed frames, local files, redirects between sites.
const NULL: &str = "null";

impl Origins {
    /// `*`, or a list.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Origins::Any);
        }
        let mut origins = Vec::new();
        for part in list(text) {
            let origin = Origin::parse(part)?;
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        if origins.is_empty() {
            return Err("expected * or a comma-separated list of origins".to_owned());
        }
        Ok(Origins::List(origins))
    }

    /// Whether the value of an `Origin` header is allowed.
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Origins::Any => true,
            Origins::List(origins) => {
                let origin = origin.to_ascii_lowercase();
                origins.iter().any(|allowed| allowed.matches(&origin))
            }
        }
    }

    /// Whether `null` is listed: any page can send it.
    pub fn lists_null(&self) -> bool {
        matches!(self, Origins::List(origins) if origins.contains(&Origin::Exact(NULL.to_owned())))
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origins::Any => f.write_str("*"),
            Origins::List(origins) => {
                let origins: Vec<_> = origins.iter().map(ToString::to_string).collect();
                f.write_str(&origins.join(","))
            }
        }
    }
}

impl Origin {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{:?} is not an origin: {why}; expected scheme://host, scheme://host:port, https://*.example.com, null, or * alone",
                without_user(text)
            )
        };
        if text == "*" {
            return Err(wrong("* cannot be part of a list"));
        }
        let lower = text.to_ascii_lowercase();
        if lower == NULL {
            return Ok(Origin::Exact(lower));
        }
        let (scheme, rest) = lower.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let scheme_is_legal = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        if !scheme_is_legal {
            return Err(wrong(
                "its scheme has other characters than letters, digits, + - and .",
            ));
        }
        if rest.contains(char::is_whitespace) {
            return Err(wrong("there is a blank in it (origins are separated by commas)"));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(wrong("it ends with a path (even if that is only a slash)"));
        }
        if rest.contains('@') {
            return Err(wrong("it has a user name"));
        }
        let is_of_the_web = matches!(scheme, "http" | "https" | "ws" | "wss");
        if rest.is_empty() && !is_of_the_web {
            return Ok(Origin::Exact(lower));
        }
        let (host, port) = split_port(rest).ok_or_else(|| wrong("its host or its port is malformed"))?;
        let port = match port.map(|port| number::<u16>(port, 1..=u16::MAX)) {
            None => None,
            Some(Ok(port)) => Some(port),
            Some(Err(_)) => return Err(wrong("its port is not from 1 to 65535")),
        };
        let port = match (scheme, port) {
            (_, None) | ("http" | "ws", Some(80)) | ("https" | "wss", Some(443)) => String::new(),
            (_, Some(port)) => format!(":{port}"),
        };
        if let Some(domain) = host.strip_prefix("*.") {
            if !is_parent(domain) {
                return Err(wrong(
                    "behind *. there must be a domain name of two labels or more, or localhost",
                ));
            }
            return Ok(Origin::Subdomains {
                scheme: format!("{scheme}://"),
                rest: format!(".{domain}{port}"),
            });
        }
        if host.contains('*') {
            return Err(wrong("a * can only be the whole first label of its host"));
        }
        if !is_host(host) {
            return Err(wrong(
                "its host has characters that a browser would not send (punycode is needed)",
            ));
        }
        Ok(Origin::Exact(format!("{scheme}://{host}{port}")))
    }

    /// Whether an origin, in lower case, is this one or one of its subdomains.
    fn matches(&self, origin: &str) -> bool {
        match self {
            Origin::Exact(exact) => exact == origin,
            Origin::Subdomains { scheme, rest } => {
                let host = origin.strip_prefix(scheme.as_str());
                let labels = host.and_then(|host| host.strip_suffix(rest.as_str()));
                // After a colon, a slash or an @, the rest would not be the end of a host name.
                labels.is_some_and(|labels| {
                    is_host(labels) && !labels.ends_with('.') && !labels.starts_with('[')
                })
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Exact(origin) => f.write_str(origin),
            Origin::Subdomains { scheme, rest } => write!(f, "{scheme}*{rest}"),
        }
    }
}

/// Whether one owner can hold all names below this one: it is neither an address nor a top-level domain.
fn is_parent(domain: &str) -> bool {
    let labels: Vec<_> = domain.split('.').collect();
    let is_address = labels
        .last()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let is_name = is_host(domain) && !domain.ends_with('.') && !domain.starts_with('[');
    is_name && !is_address && (labels.len() >= 2 || domain == "localhost")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origins(text: &str) -> Origins {
        Origins::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        assert_eq!(Origins::parse("*"), Ok(Origins::Any));
        let list = origins(" https://Chat.Example.com:443, http://localhost:3000,https://chat.example.com ,");
        assert_eq!(list.to_string(), "https://chat.example.com,http://localhost:3000");
        assert!(list.allows("http://localhost:3000"));
        assert!(!list.allows("http://localhost"));
        assert!(!list.allows("null"));
        for (text, shown) in [
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://a.example:80", "http://a.example"),
            ("https://*.Example.com:443", "https://*.example.com"),
            ("null", "null"),
        ] {
            assert_eq!(origins(text).to_string(), shown);
        }
    }

    #[test]
    fn origins_of_any_scheme_are_accepted() {
        for text in [
            "capacitor://localhost",
            "ionic://localhost",
            "file://",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            "moz-extension://0c5e2f6e-4b1f-4f0c-9d3b-0d2f5f9d2f6e",
            "tauri://localhost",
            "app://",
            "null",
        ] {
            let list = origins(&format!("https://a.example,{text}"));
            assert!(list.allows(text), "{text}");
            assert_eq!(list.lists_null(), text == "null");
        }
        assert!(!origins("file://").allows("https://a.example"));
        assert!(!origins("file://").allows("file://host"));
    }

    #[test]
    fn malformed_origins_are_refused() {
        for wrong in [
            "chat.example.com",
            "https://",
            "http://",
            "https://a.example/",
            "file:///",
            "https://a.example/path",
            "https://a.example?x",
            "https://a.example#x",
            "https://user@a.example",
            "https://a.example:",
            "https://a.example:0",
            "https://a.example:65536",
            "https://a.example:1:2",
            "https://münchen.example",
            "https://a..example",
            "https://[::1",
            "https://[nonsense]",
            "1http://a.example",
            "*",
            "*://a.example",
            "https://*",
            "https://*.",
            "https://*.com",
            "https://*example.com",
            "https://a.*.example.com",
            "https://*.*.example.com",
            "https://*.example.*",
            "https://*.192.0.2.1",
            "https://*.[::1]",
            "https://*.example.com.",
            "https://*.example.com:*",
        ] {
            let error = Origin::parse(wrong).expect_err(wrong);
            // What stands before an @ may be a password.
            assert!(error.contains(&without_user(wrong)), "{error}");
        }
        assert!(Origins::parse("https://a.example,*").is_err());
        assert!(Origins::parse(" , ").is_err());
    }

    #[test]
    fn an_asterisk_matches_one_label_or_more() {
        let list = origins("https://*.example.com, http://*.dev.test:3000, http://*.localhost");
        for good in [
            "https://a.example.com",
            "https://a.b-c.example.com",
            "https://A.Example.Com",
            "https://xn--mnchen-3ya.example.com",
            "http://x.dev.test:3000",
            "http://shop.localhost",
        ] {
            assert!(list.allows(good), "{good}");
        }
        for bad in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "https://a.example.com.evil.test",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://a.example.com:443",
            "https://evil.test/.example.com",
            "https://evil.test?.example.com",
            "https://evil.test#.example.com",
            "https://evil.test:80.example.com",
            "https://user@a.example.com",
            "https://a..example.com",
            "https://a.example.com/",
            "https://[::1].example.com",
            "https://*.example.com",
            "xhttps://a.example.com",
            "http://x.dev.test",
            "http://x.dev.test:30000",
            "http://dev.test:3000",
            "null",
            "",
        ] {
            assert!(!list.allows(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}", origin in "\\PC{0,60}") {
            if let Ok(origins) = Origins::parse(&text) {
                origins.allows(&origin);
            }
        }

        #[test]
        fn an_accepted_origin_stays_as_it_is(text in "[a-zA-Z]{1,5}://(\\*\\.)?[a-zA-Z0-9.\\[\\]:*/@-]{0,20}") {
            if let Ok(once) = Origin::parse(&text) {
                prop_assert_eq!(Origin::parse(&once.to_string()), Ok(once));
            }
        }

        #[test]
        fn ordinary_origins_are_accepted(tls: bool, host in "[a-z0-9-]{1,20}(\\.[a-z0-9-]{1,10}){0,3}", port in 1u16..) {
            let scheme = if tls { "https" } else { "http" };
            let origin = format!("{scheme}://{host}");
            prop_assert!(origins(&origin).allows(&origin));
            let with_port = format!("{origin}:{port}");
            prop_assert!(Origin::parse(&with_port).is_ok());
        }

        /// A pattern allows exactly what a plain reading of the origin allows: its scheme, its port, a host that ends
        /// with the pattern's labels and has more.
        #[test]
        fn a_pattern_allows_its_subdomains_only(
            scheme in prop::sample::select(vec!["https", "http"]),
            host in prop::collection::vec(prop::sample::select(vec!["a", "evil", "example", "com", "evilexample", "-"]), 1..5),
            port in prop::sample::select(vec!["", ":443", ":8443", ":84"]),
            wanted_port in prop::sample::select(vec!["", ":8443"]),
        ) {
            let pattern = origins(&format!("https://*.example.com{wanted_port}"));
            let is_below = host.len() > 2 && host[host.len() - 2..] == ["example", "com"];
            let expected = scheme == "https" && port == wanted_port && is_below;
            let origin = format!("{scheme}://{}{port}", host.join("."));
            prop_assert_eq!(pattern.allows(&origin), expected, "{}", origin);
        }

        /// However an origin is bent, its host is below the pattern's when it is allowed.
        #[test]
        fn nothing_else_slips_through(origin in "https://[a-z.@:/?#%\\[\\]\\\\ -]{0,12}\\.example\\.com[a-z.@:/0-9]{0,3}") {
            if origins("https://*.example.com").allows(&origin) {
                let host = origin.strip_prefix("https://").unwrap();
                prop_assert!(host.ends_with(".example.com"));
                prop_assert!(host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b)));
                prop_assert!(host.split('.').all(|label| !label.is_empty()));
            }
        }
    }
}
