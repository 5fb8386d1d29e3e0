//! Reading request headers: single values and comma-separated lists.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// The value of a header that occurs exactly once.
pub fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// The items of a comma-separated list, which may span several header lines (RFC 9110, section 5.6.1).
pub fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter();
    let items = values.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    items.map(<[u8]>::trim_ascii)
}

/// Whether a header lists this token, in any case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    items(headers, name).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}
