//! Tests of the parsers, by example and by property.

use proptest::prelude::*;

use super::*;

const ALL_TIME: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

#[test]
fn durations_have_a_unit() {
    let read = |text| duration(text, ALL_TIME);
    assert_eq!(read("25s"), Ok(Duration::from_secs(25)));
    assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(read("2m"), Ok(Duration::from_secs(120)));
    assert_eq!(read("1h"), Ok(Duration::from_secs(3600)));
    assert_eq!(read("0s"), Ok(Duration::ZERO));
    for wrong in [
        "",
        "s",
        "25",
        "25 s",
        "-1s",
        "1.5s",
        "25S",
        "1us",
        "18446744073709551615h",
        "99999999999999999999s",
    ] {
        assert!(read(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn durations_say_their_range() {
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    assert_eq!(
        duration("99ms", range.clone()).unwrap_err(),
        "expected a duration such as 500ms, 25s or 2m, from 100ms to 1h"
    );
    assert!(duration("100ms", range.clone()).is_ok());
    assert!(duration("60m", range.clone()).is_ok());
    assert!(duration("61m", range).is_err());
}

#[test]
fn numbers_are_digits_in_a_range() {
    assert_eq!(number("7", 0..=9u16), Ok(7));
    for wrong in ["", "10", "-1", "+1", "0x1", "1_0", "99999999999999999999", " 1"] {
        assert!(number(wrong, 0..=9u16).is_err(), "{wrong:?}");
    }
}

#[test]
fn booleans_and_choices_ignore_case() {
    assert_eq!(boolean("True"), Ok(true));
    assert_eq!(boolean("0"), Ok(false));
    assert!(boolean("maybe").is_err());
    assert_eq!(choice("JSON", &[("text", 1), ("json", 2)]), Ok(2));
    assert_eq!(
        choice("x", &[("a", 1), ("b", 2), ("c", 3)]).unwrap_err(),
        "expected a, b or c"
    );
}

#[test]
fn allowed_headers_are_names() {
    assert_eq!(headers("*"), Ok(AllowedHeaders::Any));
    let names = AllowedHeaders::List(vec!["X-Tenant".into(), "x-b3-traceid".into()]);
    assert_eq!(headers(" X-Tenant, x-b3-traceid ,"), Ok(names));
    for wrong in ["X Tenant", "X-Tenant:", "X-Tenant, *", "x-ü", "a\nb"] {
        assert!(headers(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn brokers_get_kafkas_port() {
    assert_eq!(
        brokers("kafka, 10.0.0.1:9093 ,[::1]:9092,"),
        Ok("kafka:9092,10.0.0.1:9093,[::1]:9092".into())
    );
    for wrong in [
        "",
        ",",
        "kafka:",
        "kafka:0",
        "kafka:70000",
        "ssl://kafka:9092",
        "a b:9092",
        ":9092",
        "::1",
    ] {
        assert!(brokers(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn topics_and_node_ids_are_plain() {
    assert!(topic("chat.messages_2-x").is_ok());
    assert!(node_id("node-1.example").is_ok());
    for wrong in ["", "a b", "a/b", "a:b", "ä", "{a}", "a\n", &"x".repeat(250)] {
        assert!(topic(wrong).is_err(), "{wrong:?}");
        assert!(node_id(wrong).is_err(), "{wrong:?}");
    }
    assert!(topic(".").is_err());
    assert!(topic("..").is_err());
    assert!(node_id(&"x".repeat(65)).is_err());
}

#[test]
fn log_levels_are_levels() {
    assert_eq!(log_level("INFO"), Ok("info".into()));
    assert_eq!(log_level("warning"), Ok("warn".into()));
    assert_eq!(log_level("fatal"), Ok("error".into()));
    assert_eq!(
        log_level("info, livechat_ws::ws=trace"),
        Ok("info,livechat_ws::ws=trace".into())
    );
    // What is not named keeps the default.
    assert_eq!(log_level("a=debug,b=off"), Ok("info,a=debug,b=off".into()));
    assert_eq!(log_level("a=debug,error"), Ok("a=debug,error".into()));
    for wrong in ["", "infoo", "5", "=info", "a=b", "livechat_ws", "a[b]=info"] {
        assert!(log_level(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn accepted_log_levels_are_taken_by_the_filter() {
    for level in [
        "off",
        "error",
        "warn",
        "info",
        "debug",
        "trace",
        "info,a::b-c=debug,x.y=off",
    ] {
        tracing_subscriber::EnvFilter::try_new(log_level(level).unwrap()).unwrap();
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,60}") {
        let _ = duration(&text, ALL_TIME);
        let _ = number(&text, 0..=u16::MAX);
        let _ = boolean(&text);
        let _ = headers(&text);
        let _ = brokers(&text);
        let _ = topic(&text);
        let _ = node_id(&text);
        let _ = log_level(&text);
    }

    #[test]
    fn a_shown_duration_is_read_back(milliseconds in 0u64..=u64::MAX / 2) {
        let value = Duration::from_millis(milliseconds);
        prop_assert_eq!(duration(&show_duration(value), ALL_TIME), Ok(value));
    }

    #[test]
    fn any_host_has_a_usable_node_id(hostname in "\\PC{0,100}") {
        prop_assert!(node_id(&node_id_of_host(&hostname)).is_ok());
    }
}
