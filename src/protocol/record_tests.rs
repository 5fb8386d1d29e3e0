//! Tests of the records' forms, old and native.

use serde_json::json;

use super::*;

fn convert(record: &serde_json::Value) -> Result<serde_json::Value, Poison> {
    let (_, payload) = Converter::default()
        .message(record.to_string().as_bytes(), |_| true)?
        .unwrap();
    Ok(serde_json::from_slice(&payload).unwrap())
}

fn old_record() -> serde_json::Value {
    json!({
        "id": "m1", "session_id": "s1", "sender_id": null, "sender_type": "ai", "message": "héllo \"😀\"\u{0}",
        "message_type": "text", "attachments": null, "read_at": "R", "created_at": "2026-01-01 10:00:00+07",
        "updated_at": "U", "show_escalation_offer": {"deep": [1, 2.5, true]},
    })
}

#[test]
fn an_old_record_becomes_new_message() {
    assert_eq!(
        convert(&old_record()).unwrap(),
        json!({"type": "new_message", "success": true, "data": {
            "message_id": "m1", "session_id": "s1", "sender_id": null, "sender_type": "ai",
            "message": "héllo \"😀\"\u{0}", "message_type": "text", "attachments": null,
            "timestamp": "2026-01-01 10:00:00+07", "show_escalation_offer": {"deep": [1, 2.5, true]},
        }})
    );
}

#[test]
fn mapped_names_win_over_unknown_fields() {
    let mut record = old_record();
    record["message_id"] = json!("forged");
    record["timestamp"] = json!("forged");
    let frame = convert(&record).unwrap();
    assert_eq!(frame["data"]["message_id"], "m1");
    assert_eq!(frame["data"]["timestamp"], "2026-01-01 10:00:00+07");
}

/// Half an emoji, in any field of a record of the backend or of another service.
#[test]
fn an_unpaired_surrogate_is_no_poison() {
    let text = r#"{"id":"m\ud83d","session_id":"s1","sender_id":"\uDE00","message":"cut \ud83d","attachments":["\ud83d\ud83d\ude00"],
        "created_at":"T","\ude00":{"\ud83d\ude00":"\ude00\ud83d","b":["\ud83d\n"]}}"#;
    let (_, payload) = Converter::default()
        .message(text.as_bytes(), |_| true)
        .unwrap()
        .unwrap();
    let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        frame["data"],
        json!({"message_id": "m\u{FFFD}", "session_id": "s1", "sender_id": "\u{FFFD}", "sender_type": null,
            "message": "cut \u{FFFD}", "message_type": null, "attachments": ["\u{FFFD}😀"], "timestamp": "T",
            "\u{FFFD}": {"😀": "\u{FFFD}\u{FFFD}", "b": ["\u{FFFD}\n"]}})
    );
    let typing =
        r#"{"session_id":"s1","user_id":"u1","user_type":"\ud83d","is_typing":true,"timestamp":"T"}"#;
    let Ok(Ephemeral::Typing(typing)) = Converter::default().typing_topic(typing.as_bytes()) else {
        panic!("no typing");
    };
    assert_eq!(typing.user_type, "\u{FFFD}");
    let status = r#"{"session_id":"s1","connection_status":{"\ud83d":"\ude00"}}"#;
    let (_, status) = Converter::default().status(status.as_bytes(), false).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.unwrap()).unwrap();
    assert_eq!(
        status["data"]["connection_status"],
        json!({"\u{FFFD}": "\u{FFFD}"})
    );
}

#[test]
fn a_uuid_is_written_in_lower_case() {
    let (lower, upper) = (
        "018f4e3a-7c1e-7000-8000-00000000000a",
        "018F4E3A-7C1E-7000-8000-00000000000A",
    );
    let mut record = old_record();
    record["session_id"] = json!(upper);
    let mut asked = String::new();
    let converted = Converter::default().message(record.to_string().as_bytes(), |session| {
        asked = session.to_owned();
        true
    });
    let (session_id, payload) = converted.unwrap().unwrap();
    assert_eq!((asked.as_str(), session_id.as_str()), (lower, lower));
    let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(frame["data"]["session_id"], lower);
    assert_eq!(&*native_session(Some(upper.as_bytes())).unwrap(), lower);
}

#[test]
fn records_without_their_required_fields_are_poison() {
    for name in ["id", "session_id", "message"] {
        for value in [None, Some(json!(null)), Some(json!({}))] {
            let mut record = old_record();
            match value {
                None => drop(record.as_object_mut().unwrap().remove(name)),
                Some(value) => record[name] = value,
            }
            assert_eq!(convert(&record), Err(Poison::MissingField), "{name}");
        }
    }
    let mut record = old_record();
    record["session_id"] = json!("a/b");
    assert_eq!(convert(&record), Err(Poison::BadKey));
    record["session_id"] = json!("@lobby");
    assert_eq!(convert(&record), Err(Poison::BadKey));
    record = old_record();
    record["id"] = json!(7);
    assert_eq!(convert(&record).unwrap()["data"]["message_id"], 7);
    let mut converter = Converter::default();
    assert_eq!(converter.message(b"nonsense", |_| true), Err(Poison::NotJson));
    assert_eq!(converter.message(b"[1]", |_| true), Err(Poison::NotJson));
    assert_eq!(converter.message(b"\"\xFF\"", |_| true), Err(Poison::NotUtf8));
    assert_eq!(
        converter.message(old_record().to_string().as_bytes(), |_| false),
        Ok(None)
    );
}

#[test]
fn typing_records_round_trip() {
    let session_id = SessionId::parse("s1").unwrap();
    let user_id = UserId::parse("u1").unwrap();
    let value = typing_value(&session_id, &user_id, "agent", true, "T").unwrap();
    assert_eq!(
        Converter::default().typing_topic(&value).unwrap(),
        Ephemeral::Typing(TypingRecord {
            session_id: session_id.clone(),
            user_id: user_id.clone(),
            user_type: "agent".into(),
            is_typing: true,
            timestamp: "T".into()
        })
    );
    assert_eq!(
        Converter::default().typing_topic(b"{}"),
        Err(Poison::MissingField)
    );
    let (longest, longer) = ("x".repeat(MAX_LABEL), "x".repeat(MAX_LABEL + 1));
    let typing = |user_type, at| {
        let value = typing_value(&session_id, &user_id, user_type, true, at).unwrap();
        Converter::default().typing_topic(&value).map(|_| ())
    };
    assert_eq!(typing(&longest, &longest), Ok(()));
    assert_eq!(typing(&longer, "T"), Err(Poison::TooBig));
    assert_eq!(typing("agent", &longer), Err(Poison::TooBig));
}

#[test]
fn the_header_alone_decides() {
    assert_eq!(Form::of_header(None), Form::Legacy);
    assert_eq!(Form::of_header(Some(b"1")), Form::Native);
    assert_eq!(Form::of_header(Some(b"2")), Form::Unknown);
    assert_eq!(Form::of_header(Some(b"")), Form::Unknown);
    let session = |key| native_session(key).map(|key| key.to_string());
    assert_eq!(session(Some(b"s1")), Ok("s1".to_owned()));
    for bad in [None, Some(&b"a b"[..]), Some(b"@lobby"), Some(b"\xff"), Some(b"")] {
        assert_eq!(session(bad), Err(Poison::BadKey));
    }
    assert!(is_reserved(Some(b"@lobby")) && !is_reserved(Some(b"s1")) && !is_reserved(None));
}
