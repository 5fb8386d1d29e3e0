//! Tests of what is refused because it would be cut, mistaken or shown.

use super::tests::{read, wrong};

#[test]
fn characters_that_a_redis_url_would_lose_are_refused() {
    for url in [
        "redis://:pa#hunter2@cache",
        "redis://user:12#hunter2@cache",
        "redis://user:12?hunter2@cache",
        "redis://cache?db=hunter2",
        "redis://:pa\thunter2@cache",
        "redis://:pa\nhunter2@cache",
        " redis://:hunter2@cache",
        "redis://:hunter2@cache/-1",
        "redis://:hunter2@cache/x",
    ] {
        let (names, message) = wrong(&[("REDIS_URL", url)]);
        assert_eq!(names, ["REDIS_URL"], "{url:?}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    for (url, kept) in [
        ("redis://:pa%23ss@cache", "pa%23ss"),
        ("redis://:pa$ss@cache", "pa$ss"),
        ("rediss://:pass@cache#insecure", "pass"),
    ] {
        let config = read(&[("REDIS_URL", url)]).unwrap();
        assert!(config.redis.unwrap().url.contains(kept), "{url}");
    }
}

#[test]
fn a_misplaced_secret_is_not_shown() {
    for (name, value) in [
        ("REDIS_HOST", "redis://:hunter2@cache:6379"),
        ("REDIS_HOST", "bob:hunter2@cache"),
        ("KAFKA_BROKERS", "bob:hunter2@kafka:9092,other:x"),
        ("ALLOWED_ORIGINS", "https://bob:hunter2@example.com"),
        ("NODE_ID", "bob:hunter2@node"),
    ] {
        let (names, message) = wrong(&[(name, value)]);
        assert_eq!(names, [name]);
        assert!(!message.contains("hunter2"), "{message}");
        assert!(message.contains("***@"), "{message}");
    }
}

#[test]
fn a_password_given_instead_of_its_file_is_not_shown() {
    for value in ["hunter2", "hun/ter2hunter2", "/hunter2", "/hunter2/hunter2"] {
        for name in ["REDIS_PASSWORD_FILE", "KAFKA_SASL_PASSWORD_FILE"] {
            for more in [&[][..], &[("REDIS_HOST", "h"), ("REDIS_PASSWORD", "x")]] {
                let pairs = [&[(name, value)], more].concat();
                let (names, message) = wrong(&pairs);
                assert!(names.iter().any(|wrong| wrong == name), "{names:?}");
                assert!(!message.contains("ter2"), "{message}");
            }
        }
    }
    // A slip in a path is shown: its folder is there.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pasword");
    let (_, message) = wrong(&[("REDIS_PASSWORD_FILE", path.to_str().unwrap())]);
    assert!(message.contains("pasword\""), "{message}");
}

#[test]
fn text_after_a_line_break_is_not_shown() {
    let (_, message) = wrong(&[("PORT", "8082\nREDIS_PASSWORD=hunter2")]);
    assert!(
        message.contains("PORT=\"8082") && !message.contains("hunter2"),
        "{message}"
    );
}

#[test]
fn text_keeps_the_blanks_around_it() {
    let value = |name: &'static str, value: &str| {
        let lookup = |_: &str| Some(value.to_owned());
        super::Reader::new(&lookup).text(name)
    };
    for name in ["KAFKA_SASL_USERNAME", "KAFKA_SSL_CA", "REDIS_PASSWORD"] {
        assert_eq!(value(name, " bob \n").as_deref(), Some(" bob "), "{name}");
        assert_eq!(value(name, "  ").as_deref(), Some("  "), "{name}");
        assert_eq!(value(name, "\n"), None, "{name}");
    }
    // No number has blanks.
    assert_eq!(value("PORT", " 8082\r\n").as_deref(), Some("8082"));
}

#[test]
fn numbers_durations_and_lists_are_taken_whole_or_refused() {
    for (name, values) in [
        (
            "MAX_MESSAGE_BYTES",
            &[
                "+65536",
                "-1",
                "65536.0",
                "6e4",
                "64k",
                "0x400",
                "1_000",
                "6 5536",
                "٦٤",
                "18446744073709551616",
            ][..],
        ),
        (
            "SEND_TIMEOUT",
            &[
                "10",
                "10 s",
                "1.5s",
                "1m30s",
                "10S",
                "s",
                "-1s",
                "+1s",
                "99999999999999999999s",
                "18446744073709552s",
                "0s",
            ],
        ),
        ("ALLOW_CREDENTIALS", &["ja", "2", "t", "true,false"]),
        (
            "TRUSTED_PROXIES",
            &[
                ",",
                " , ",
                "10.0.0.0/8;10.1.0.0/16",
                "10.0.0.0/8 10.1.0.0/16",
                "10.0.0/8",
            ],
        ),
        (
            "KAFKA_BROKERS",
            &[",", "a:1 b:1", "a:0", "a:65536", "a:+1", "http://a:1"],
        ),
        ("ALLOWED_ORIGINS", &[",", "https://a.example;https://b.example"]),
    ] {
        for value in values {
            let (names, message) = wrong(&[(name, value)]);
            assert_eq!(names, [name], "{value:?}");
            assert!(
                message.contains(&format!("{name}={:?}", value.trim())),
                "{message}"
            );
        }
    }
}

#[test]
fn a_password_in_a_list_is_not_shown_by_the_reason_either() {
    for (name, value) in [
        ("TRUSTED_PROXIES", "u:hunter2@h"),
        ("ALLOWED_HEADERS", "X-A: u:hunter2@h"),
        ("ALLOWED_ORIGINS", "https://u:hunter2@h"),
        ("KAFKA_BROKERS", "u:hunter2@h"),
    ] {
        let (names, message) = wrong(&[(name, value)]);
        assert_eq!(names, [name]);
        assert!(!message.contains("hunter2"), "{message}");
    }
}
