//! Tests of the sources and their order, of `--help`, and of `.env.example`.

use std::io::Write;

use super::*;

const NO_ENV: [(&str, &str); 0] = [];

fn args(args: &[&str]) -> Vec<OsString> {
    std::iter::once("livechat-ws")
        .chain(args.iter().copied())
        .map(OsString::from)
        .collect()
}

fn served(command: Result<Command, ConfigError>) -> Config {
    match command {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn dotenv(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let file =
        dotenv("PORT=1\nWS_PORT=1\nENVIRONMENT=production # a comment\nLOG_FORMAT='json'\nPRESENCE_TTL=5s\n");
    // Empty: unset, and the file's value is hidden.
    let env = [("PORT", "2"), ("WS_PORT", "2"), ("PRESENCE_TTL", "")];
    let config = served(load(args(&["--port", "3"]), env, Some(file.path())));
    assert_eq!((config.port, config.ws_port), (3, Some(2)));
    assert_eq!(config.environment.as_str(), "production");
    assert_eq!(config.log_format, super::super::LogFormat::Json);
    assert_eq!(config.presence_ttl.as_secs(), 60);
}

#[test]
fn both_spellings_of_a_flag() {
    for spelling in ["--max-message-bytes=100", "--MAX_MESSAGE_BYTES=100"] {
        assert_eq!(
            served(load(args(&[spelling]), NO_ENV, None))
                .limits
                .max_message_bytes,
            100
        );
    }
    assert!(
        served(load(
            args(&["--allow-credentials", "--port", "1", "--port", "2"]),
            NO_ENV,
            None
        ))
        .allow_credentials
    );
    assert_eq!(served(load(args(&["--ws-port="]), NO_ENV, None)).ws_port, None);
}

#[test]
fn a_command_line_error_does_not_show_values() {
    for wrong in [
        &["--redis-pasword=hunter2"][..],
        &["--port"],
        &["surplus"],
        &["--check-config=x"],
    ] {
        match load(args(wrong), NO_ENV, None) {
            Err(ConfigError::Usage(message)) => assert!(!message.contains("hunter2"), "{message}"),
            other => panic!("{wrong:?}: {other:?}"),
        }
    }
}

#[test]
fn the_other_commands() {
    assert!(matches!(
        load(args(&["--check-config"]), NO_ENV, None),
        Ok(Command::CheckConfig(_))
    ));
    assert!(matches!(
        load(args(&["--healthcheck"]), NO_ENV, None),
        Ok(Command::Healthcheck(_))
    ));
    assert_eq!(
        load(args(&["--version"]), NO_ENV, None),
        Ok(Command::Version(VERSION.to_owned()))
    );
    let wrong = load(args(&["--check-config", "--port=x"]), NO_ENV, None);
    assert_eq!(wrong.unwrap_err().names(), ["PORT"]);
}

#[test]
fn help_names_every_variable_with_its_default() {
    let Ok(Command::Help(help)) = load(args(&["--help"]), NO_ENV, None) else {
        panic!()
    };
    for variable in VARIABLES {
        assert!(
            help.contains(&format!("--{} ", variable.flag())),
            "{}",
            variable.name
        );
        assert!(
            help.contains(&format!("[{}={}]", variable.name, variable.default)),
            "{}",
            variable.name
        );
    }
    assert!(!help.contains('\u{1b}'));
}

#[test]
fn a_missing_file_is_ignored_and_an_unreadable_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    served(load(args(&[]), NO_ENV, Some(&folder.path().join(".env"))));
    assert!(load(args(&[]), NO_ENV, Some(folder.path())).is_err());
}

#[test]
fn broken_lines_are_reported_by_number_without_their_text() {
    let broken = |text: &str| {
        let file = dotenv(text);
        let error = load(args(&[]), NO_ENV, Some(file.path())).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let place = format!("{}, line ", file.path().display());
        let lines: Vec<String> = error
            .names()
            .iter()
            .map(|name| name.replace(&place, ""))
            .collect();
        lines.join(" ")
    };
    assert_eq!(
        broken("PORT=1\n\n# a comment\nhunter2 is not a line\nWS_PORT=2\n"),
        "4"
    );
    assert_eq!(
        broken("\u{feff}WS_PORT=1\nA B=hunter2\nPORT=x\nhunter2"),
        "2 4 PORT"
    );
    assert_eq!(
        broken("PORT=1\r\nREDIS_PASSWORD=a #hunter2\r\n"),
        "REDIS_PASSWORD (2)"
    );
    // A quote that is never closed: the line on which it was opened, not the end of the file.
    assert_eq!(
        broken("PORT=1\n\nREDIS_PASSWORD='hunter2\nWS_PORT=3\nHOST=::1\n"),
        "REDIS_PASSWORD (3)"
    );
}

#[test]
fn references_to_variables_cause_a_warning() {
    for (line, is_told) in [
        ("REDIS_PASSWORD=hunter$two", true),
        ("REDIS_PASSWORD=hunter${TWO}", true),
        ("REDIS_PASSWORD='hunter$two'", false),
        ("REDIS_PASSWORD=hunter$2$", false),
        ("SOMEBODYS=$HOME/x", false),
    ] {
        let file = dotenv(&format!("REDIS_HOST=redis\n{line}\n"));
        let warnings = served(load(args(&[]), NO_ENV, Some(file.path()))).warnings;
        let is_it = |text: &String| text.starts_with("REDIS_PASSWORD (") && text.contains("line 2");
        assert_eq!(warnings.iter().any(is_it), is_told, "{line}: {warnings:?}");
        assert!(!warnings.concat().contains("hunter"), "{warnings:?}");
    }
}

#[test]
fn an_unclosed_quote_shows_no_secret() {
    for text in [
        "PORT='8082\nREDIS_HOST=h\nREDIS_PASSWORD=hunter2'\n",
        "LOG_FORMAT=\"json\nREDIS_HOST=h\nREDIS_PASSWORD=hunter2\"\n",
    ] {
        let file = dotenv(text);
        let error = load(args(&[]), NO_ENV, Some(file.path()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_broken_line_of_another_programs_variable_causes_a_warning() {
    for line in ["BUILD='hunter2", "BUILD='hunter2' x", "BUILD=a\u{7}b"] {
        let file = dotenv(&format!("{line}\nPORT=1\n"));
        let config = served(load(args(&[]), NO_ENV, Some(file.path())));
        assert_eq!(config.port, 1, "{line}");
        let warnings = config.warnings.join("\n");
        assert!(
            warnings.contains("BUILD") && warnings.contains("line 1") && !warnings.contains("hunter2"),
            "{line}: {warnings:?}"
        );
    }
    // Escapes have another meaning there.
    let file = dotenv("BUILD=\"C:\\dir\nmore\"\nPORT=1\n");
    assert_eq!(
        served(load(args(&[]), NO_ENV, Some(file.path()))).warnings,
        [""; 0]
    );
}

#[test]
fn values_over_several_lines_do_not_confuse_the_count() {
    let file = dotenv("NODE_ID=a\nREDIS_HOST=h\nREDIS_PASSWORD='one\ntwo'\nbroken line\n");
    let error = load(args(&[]), NO_ENV, Some(file.path())).unwrap_err();
    assert!(error.to_string().contains(", line 5"), "{error}");
}

#[test]
fn every_variable_has_one_name_a_help_and_a_section() {
    for (index, variable) in VARIABLES.iter().enumerate() {
        assert!(VARIABLES[..index].iter().all(|other| other.name != variable.name));
        assert!(
            variable.name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
            "{}",
            variable.name
        );
        assert!(!variable.help.is_empty() && Section::ALL.contains(&variable.section));
    }
    command().debug_assert();
}

fn redis_password(config: &Config) -> String {
    let redis = config.redis.as_ref().expect("there is one");
    redis.password.as_ref().expect("it has one").value().to_string()
}

#[test]
fn a_password_in_the_file_is_taken_whole() {
    let file = dotenv("REDIS_HOST=redis\nREDIS_PASSWORD=pa$ss\n");
    let config = served(load(args(&[]), NO_ENV, Some(file.path())));
    assert_eq!(redis_password(&config), "pa$ss");
}

#[test]
fn a_line_break_at_the_end_of_a_secret_is_trimmed() {
    for password in ["s3cret\n", "s3cret\r\n", "s3cret"] {
        let env = [("REDIS_HOST", "redis"), ("REDIS_PASSWORD", password)];
        let config = served(load(args(&[]), env, None));
        assert_eq!(redis_password(&config), "s3cret");
    }
    let env = [("REDIS_HOST", "redis"), ("REDIS_PASSWORD", " a b ")];
    let config = served(load(args(&[]), env, None));
    assert_eq!(redis_password(&config), " a b ");
}

#[test]
fn two_values_of_one_variable_are_refused() {
    let file = dotenv("REDIS_HOST=r\nREDIS_PASSWORD=hunter2\nREDIS_PASSWORD=hunter3\nREDIS_HOST=r\n");
    let error = load(args(&[]), NO_ENV, Some(file.path())).unwrap_err();
    assert_eq!(error.names(), ["REDIS_PASSWORD"]);
    let text = error.to_string();
    assert!(
        text.contains("line 2") && text.contains("line 3") && !text.contains("hunter"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf_8_is_refused_by_name() {
    use std::os::unix::ffi::OsStringExt;
    let value = OsString::from_vec(b"pa\xffss".to_vec());
    for name in ["REDIS_PASSWORD", "PORT"] {
        let error = load(args(&[]), [(name, value.clone())], None).unwrap_err();
        assert_eq!(error.names(), [name]);
    }
    served(load(args(&[]), [("SOMEBODY_ELSES", value)], None));
}

#[test]
fn a_service_link_counts_as_unset() {
    let link = "tcp://10.96.12.7:6379";
    let env = [("REDIS_PORT", link), ("WS_PORT", link), ("REDIS_HOST", "redis")];
    let file = dotenv("WS_PORT=9001\n");
    let config = served(load(args(&[]), env, Some(file.path())));
    assert_eq!(config.ws_port, Some(9001), "the file's");
    assert_eq!(config.redis.unwrap().url, "redis://redis:6379");
    assert!(
        config
            .warnings
            .iter()
            .any(|text| text.contains("enableServiceLinks"))
    );
    // Nobody but Kubernetes writes it so.
    for file in [
        "REDIS_PORT=tcp://10.96.12.7:6379\n",
        "REDIS_PORT=10.96.12.7:6379\n",
    ] {
        let file = dotenv(file);
        assert_eq!(
            load(args(&[]), NO_ENV, Some(file.path())).unwrap_err().names(),
            ["REDIS_PORT"]
        );
    }
}

#[test]
fn surprising_settings_cause_a_warning() {
    let warnings = |env: &[(&str, &str)]| {
        let config = served(load(args(&[]), env.iter().copied(), None));
        config.warnings.join("\n")
    };
    assert_eq!(warnings(&[]), "");
    for (env, named) in [
        (&[("KAFKA_BROKRS", "k:9092")][..], "KAFKA_BROKERS"),
        (&[("ENVIRONMENT", "production")], "ALLOWED_ORIGINS=*"),
        (&[("ENVIRONMENT", "production")], "without tokens"),
        (&[("ENVIRONMENT", "production"), ("DEMO", "true")], "DEMO=true"),
        (&[("JWT_CLAIM_ROLES", "r")], "JWT_CLAIM_ROLE"),
        (
            &[("ALLOWED_ORIGINS", "https://a.example")],
            "ENVIRONMENT=production",
        ),
        (&[("ALLOW_CREDENTIALS", "true")], "ALLOW_CREDENTIALS"),
        (&[("REDIS_URL", "redis://a"), ("REDIS_HOST", "b")], "REDIS_HOST"),
        (&[("REDIS_PORT", "6380")], "REDIS_HOST"),
        (
            &[("KAFKA_BROKERS", "a:1"), ("KAFKA_BROKER", "b:1")],
            "KAFKA_BROKER ",
        ),
        (&[("RATE_LIMIT_BURST", "0")], "no rate limit"),
        (&[("DRAIN_TIMEOUT", "0s")], "at once"),
        (&[("PORT", "8081")], ""),
        (&[("PORT", "8081"), ("WS_PORT", "8081")], "one listener"),
    ] {
        let text = warnings(env);
        assert!(
            text.contains(named) && text.is_empty() == named.is_empty(),
            "{env:?}: {text}"
        );
    }
    let file = dotenv("REDIS_PASSWROD=hunter2\nCOMPOSE_PROJECT_NAME=x\n");
    let config = served(load(args(&[]), NO_ENV, Some(file.path())));
    let [warning] = &config.warnings[..] else {
        panic!("{:?}", config.warnings)
    };
    assert!(
        warning.contains("REDIS_PASSWORD") && !warning.contains("hunter2"),
        "{warning}"
    );
}

/// `.env.example` as the table has it. To renew the file after a change: `UPDATE_ENV_EXAMPLE=1 cargo test env_example`.
fn env_example() -> String {
    let mut text = String::from(
        "# Copy this file to .env. What is commented out is optional; every value shown is the default.\n\
         # A flag (--max-message-bytes) wins over the environment, and that over this file.\n\
         # Durations: 500ms, 25s, 2m. Sizes: bytes.\n\
         # A value is taken as it is, to the end of the line: $ and \\ mean nothing. Blanks at its ends, a # behind a\n\
         # blank, or a quote as its first character need single quotes around it. Comments have lines of their own.\n",
    );
    for section in Section::ALL {
        text += &format!("\n# --- {} ---\n", section.title());
        for variable in VARIABLES.iter().filter(|variable| variable.section == *section) {
            let mark = if section.is_optional() || variable.default.is_empty() {
                "# "
            } else {
                ""
            };
            text += &format!(
                "\n# {}\n{mark}{}={}\n",
                variable.help, variable.name, variable.default
            );
        }
    }
    text
}

#[test]
fn env_example_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    if std::env::var_os("UPDATE_ENV_EXAMPLE").is_some() {
        std::fs::write(&path, env_example()).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        file,
        env_example(),
        "see env_example() in src/config/sources_tests.rs"
    );
}

#[test]
fn env_example_changes_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    assert_eq!(
        served(load(args(&[]), NO_ENV, Some(&path))),
        served(load(args(&[]), NO_ENV, None))
    );
}
