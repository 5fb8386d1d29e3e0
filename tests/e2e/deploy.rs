//! The files people deploy with (`Dockerfile`, `docker-compose.yml`, `.env.example`) against the binary's own
//! configuration: a renamed variable, a moved port or another image would otherwise be found out on somebody's machine.
//!
//! The only tests here that look into the library instead of at a process: its table of variables is the measure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use livechat_ws::config::{self, Command, Config, VARIABLES, Variable};
use yaml_rust2::{Yaml, YamlLoader};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The compose file with its `${NAME:-default}` replaced, as `docker compose` does when nothing is set.
fn compose() -> Yaml {
    compose_with(&|_| None)
}

fn compose_with(set: &dyn Fn(&str) -> Option<&'static str>) -> Yaml {
    let file = YamlLoader::load_from_str(&read("docker-compose.yml"))
        .expect("valid YAML")
        .remove(0);
    interpolated(file, set)
}

/// Compose replaces inside the values of the parsed file, never in its text.
fn interpolated(yaml: Yaml, set: &dyn Fn(&str) -> Option<&'static str>) -> Yaml {
    match yaml {
        Yaml::Hash(pairs) => Yaml::Hash(
            pairs
                .into_iter()
                .map(|(name, value)| (name, interpolated(value, set)))
                .collect(),
        ),
        Yaml::Array(values) => {
            Yaml::Array(values.into_iter().map(|value| interpolated(value, set)).collect())
        }
        Yaml::String(text) if text.contains("${") => {
            let inside = text
                .strip_prefix("${")
                .and_then(|rest| rest.strip_suffix('}'))
                .expect("a whole value");
            let (name, default) = inside
                .split_once(":-")
                .unwrap_or_else(|| panic!("{text} has no default"));
            assert!(
                Variable::named(name).is_some(),
                "{name} is not a variable of the server"
            );
            Yaml::String(set(name).unwrap_or(default).to_owned())
        }
        other => other,
    }
}

fn scalar(yaml: &Yaml) -> String {
    match yaml {
        Yaml::String(text) => text.clone(),
        Yaml::Integer(number) => number.to_string(),
        Yaml::Boolean(_) | Yaml::Real(_) => panic!("{yaml:?}: Docker wants quotes around it"),
        other => panic!("{other:?} is not a scalar"),
    }
}

fn strings(yaml: &Yaml) -> Vec<String> {
    yaml.as_vec().into_iter().flatten().map(scalar).collect()
}

fn environment(service: &Yaml) -> BTreeMap<String, String> {
    let pairs = service["environment"].as_hash().expect("an environment");
    pairs
        .iter()
        .map(|(name, value)| (scalar(name), scalar(value)))
        .collect()
}

fn server_config(compose: &Yaml) -> Config {
    let environment = environment(&compose["services"]["server"]);
    Config::from_lookup(&|name| environment.get(name).cloned()).unwrap_or_else(|error| panic!("{error}"))
}

/// Lines of a Dockerfile, continuations joined, comments left out, as (instruction, arguments).
fn dockerfile() -> Vec<(String, String)> {
    let text = read("Dockerfile");
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    code.join("\n")
        .replace("\\\n", " ")
        .lines()
        .filter_map(|line| line.trim().split_once(' '))
        .map(|(instruction, arguments)| {
            (
                instruction.to_owned(),
                arguments.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect()
}

fn last(instruction: &str) -> String {
    let lines = dockerfile();
    let found = lines.iter().rfind(|(name, _)| name == instruction);
    found
        .unwrap_or_else(|| panic!("no {instruction} in the Dockerfile"))
        .1
        .clone()
}

#[test]
fn compose_sets_only_variables_that_exist() {
    for name in environment(&compose()["services"]["server"]).keys() {
        assert!(
            Variable::named(name).is_some(),
            "{name} is not a variable of the server"
        );
    }
}

#[test]
fn composes_environment_is_a_valid_configuration() {
    let config = server_config(&compose());
    let kafka = config.kafka.expect("Kafka is on");
    let redis = config.redis.expect("Redis is on");
    assert_eq!(kafka.brokers, "kafka:19092");
    assert_eq!(redis.url, "redis://redis:6379");
    assert_eq!(config.environment.as_str(), "development");
}

#[test]
fn a_copied_env_example_changes_nothing_in_compose() {
    let copied = |name: &str| Variable::named(name).map(|variable| variable.default);
    assert_eq!(server_config(&compose_with(&copied)), server_config(&compose()));
}

#[test]
fn compose_publishes_the_servers_ports_and_keeps_the_others_to_this_machine() {
    let compose = compose();
    let config = server_config(&compose);
    let services = &compose["services"];
    let mut ports = strings(&services["server"]["ports"]);
    let admin = config.admin_addr.unwrap();
    assert!(
        admin.ip().is_unspecified(),
        "a published port doesn't reach the container's loopback"
    );
    let expected = [
        format!("127.0.0.1:{0}:{0}", admin.port()),
        format!("{0}:{0}", config.ws_port.unwrap()),
        format!("{0}:{0}", config.port),
    ];
    ports.sort();
    assert_eq!(ports, expected);
    for name in ["kafka", "redis"] {
        let ports = strings(&services[name]["ports"]);
        assert!(
            !ports.is_empty() && ports.iter().all(|port| port.starts_with("127.0.0.1:")),
            "{name}: {ports:?}"
        );
    }
}

#[test]
fn compose_waits_for_health_and_restarts() {
    let compose = compose();
    let services = compose["services"].as_hash().unwrap();
    let names: Vec<String> = services.keys().map(scalar).collect();
    assert_eq!(names, ["server", "kafka", "redis"]);
    let depends = compose["services"]["server"]["depends_on"].as_hash().unwrap();
    for name in ["kafka", "redis"] {
        assert_eq!(
            depends[&Yaml::String(name.into())]["condition"].as_str(),
            Some("service_healthy")
        );
        let check = strings(&compose["services"][name]["healthcheck"]["test"]);
        assert!(
            check.len() > 1 && check[0].starts_with("CMD"),
            "{name}: {check:?}"
        );
    }
    for (name, service) in services {
        assert_eq!(service["restart"].as_str(), Some("unless-stopped"), "{name:?}");
    }
}

#[test]
fn images_are_pinned_and_named_once() {
    let compose = compose();
    let image = |name: &str| scalar(&compose["services"][name]["image"]);
    assert_eq!(
        (image("kafka").as_str(), image("redis").as_str()),
        ("apache/kafka:4.1.0", "redis:7-alpine")
    );
    let toolchain = read("Cargo.toml")
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    let toolchain = toolchain.expect("a rust-version").replace('"', "");
    let bases: Vec<String> = dockerfile()
        .into_iter()
        .filter(|(name, _)| name == "FROM")
        .map(|(_, base)| base)
        .collect();
    assert_eq!(
        bases,
        [
            format!("rust:{toolchain}-bookworm AS builder"),
            "debian:bookworm-slim".to_owned()
        ]
    );
}

#[test]
fn named_volumes_are_declared_and_used() {
    let compose = compose();
    let declared: BTreeSet<String> = compose["volumes"].as_hash().unwrap().keys().map(scalar).collect();
    let mut used = BTreeSet::new();
    for name in ["kafka", "redis"] {
        for volume in strings(&compose["services"][name]["volumes"]) {
            used.insert(volume.split(':').next().unwrap().to_owned());
        }
    }
    assert_eq!(declared, used);
    let kafka = environment(&compose["services"]["kafka"]);
    let mounted = strings(&compose["services"]["kafka"]["volumes"]);
    assert!(
        mounted[0].ends_with(&format!(":{}", kafka["KAFKA_LOG_DIRS"])),
        "Kafka's data is not in its volume"
    );
}

#[test]
fn kafkas_listeners_match_their_clients() {
    let compose = compose();
    let service = &compose["services"]["kafka"];
    let kafka = environment(service);
    let parse = |name: &str| -> BTreeMap<String, String> {
        kafka[name]
            .split(',')
            .map(|part| part.split_once(':').unwrap())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    };
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    let (listeners, advertised) = (parse("KAFKA_LISTENERS"), parse("KAFKA_ADVERTISED_LISTENERS"));
    let protocols = parse("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP");
    assert_eq!(
        listeners.keys().collect::<Vec<_>>(),
        protocols.keys().collect::<Vec<_>>()
    );
    for (name, address) in &advertised {
        assert_eq!(port(address), port(&listeners[name]), "{name}");
    }
    let ours = server_config(&compose).kafka.unwrap().brokers;
    assert_eq!(advertised["INTERNAL"], format!("//{ours}"));
    assert_eq!(advertised["HOST"], "//localhost:9092");
    let published = format!("127.0.0.1:9092:{}", port(&listeners["HOST"]));
    assert_eq!(strings(&service["ports"]), [published]);
    assert!(strings(&service["healthcheck"]["test"]).contains(&"localhost:9092".to_owned()));
    assert!(listeners.contains_key(&kafka["KAFKA_INTER_BROKER_LISTENER_NAME"]));
    assert!(listeners.contains_key(&kafka["KAFKA_CONTROLLER_LISTENER_NAMES"]));
    let voter = format!(
        "{}@localhost:{}",
        kafka["KAFKA_NODE_ID"],
        port(&listeners["CONTROLLER"])
    );
    assert_eq!(kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"], voter);
}

#[test]
fn compose_allows_time_for_draining_and_enough_descriptors() {
    let compose = compose();
    let config = server_config(&compose);
    let server = &compose["services"]["server"];
    let grace = scalar(&server["stop_grace_period"])
        .strip_suffix('s')
        .unwrap()
        .parse::<u64>()
        .unwrap();
    assert!(grace >= config.drain_timeout.as_secs() + 5, "{grace}s");
    let soft = server["ulimits"]["nofile"]["soft"].as_i64().unwrap();
    assert_eq!(Some(soft), server["ulimits"]["nofile"]["hard"].as_i64());
    assert!(soft >= 65_536);
    assert_eq!(last("STOPSIGNAL"), "SIGTERM");
}

#[test]
fn the_image_exposes_the_default_ports_and_runs_unprivileged() {
    let config = Config::from_lookup(&|_| None).unwrap();
    assert_eq!(
        last("EXPOSE"),
        format!("{} {}", config.port, config.ws_port.unwrap())
    );
    assert!(!matches!(
        last("USER").split(':').next(),
        None | Some("0" | "root")
    ));
    let build = dockerfile()
        .into_iter()
        .find(|(_, arguments)| arguments.contains("cargo build"))
        .unwrap()
        .1;
    for needed in ["--profile dist", "--locked", "--features kafka-tls"] {
        assert!(build.contains(needed), "{build}");
    }
    assert!(read("Cargo.toml").contains("\nkafka-tls = "));
}

#[test]
fn the_images_health_check_is_a_command_line_of_the_binary() {
    let check = last("HEALTHCHECK");
    let command = check.split_once("CMD ").expect("a CMD").1;
    let command: Vec<String> = serde_json::from_str(command).expect("the exec form");
    let entrypoint: Vec<String> = serde_json::from_str(&last("ENTRYPOINT")).expect("the exec form");
    assert_eq!(command[0], entrypoint[0]);
    // With compose's environment, since it runs in the same container.
    let environment = environment(&compose()["services"]["server"]);
    let asked = config::load(command.iter().map(OsString::from), environment.clone(), None);
    assert!(matches!(asked, Ok(Command::Healthcheck(_))), "{asked:?}");
}

#[test]
fn env_example_names_every_variable_with_its_default() {
    let text = read(".env.example");
    let mut seen = BTreeMap::new();
    for line in text.lines() {
        let (commented, line) = match line.strip_prefix("# ") {
            Some(line) => (true, line),
            None => (false, line),
        };
        if let Some((name, value)) = line.split_once('=')
            && Variable::named(name).is_some()
        {
            assert_eq!(seen.insert(name, (commented, value)), None, "{name} twice");
        }
    }
    for variable in VARIABLES {
        let Some((commented, value)) = seen.get(variable.name) else {
            panic!("{} is missing", variable.name)
        };
        assert_eq!(*value, variable.default, "{}", variable.name);
        // Who copies the file gets a server that runs by itself.
        assert!(
            *commented || !variable.section.is_optional(),
            "{} must be commented out",
            variable.name
        );
    }
    assert_eq!(seen.len(), VARIABLES.len());
}

#[test]
fn the_image_gets_neither_secrets_nor_build_products() {
    let ignored = read(".dockerignore");
    let ignored: Vec<&str> = ignored.lines().collect();
    for path in [".env", ".git", "target"] {
        assert!(ignored.contains(&path), "{path}");
    }
    for needed in [
        "src",
        "Cargo.toml",
        "Cargo.lock",
        "tests",
        "benches",
        "examples",
        "loadtest",
    ] {
        assert!(
            !ignored.contains(&needed),
            "cargo needs {needed} to read the manifest"
        );
    }
}
