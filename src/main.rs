//! The `livechat-ws` program: reads the configuration, runs the server, returns the exit status.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use livechat_ws::config::{self, Command, Config};
use livechat_ws::signals::Signals;
use livechat_ws::{Server, logging, secret};

/// mimalloc is made for this load: frames and small tasks that several threads allocate and free.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's `mi_option_purge_delay`, which the binding does not export.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// In milliseconds; whole blocks wait ten times as long. A later call returns the freed pages, and an idle node makes
/// few, so the default of ten is too long; with 0 a connect storm costs a tenth to a fifth more:
/// docs/decisions/0001-allocator.md.
const PURGE_DELAY_MS: std::ffi::c_long = 1;

/// Returns freed pages to the system soon. `MIMALLOC_PURGE_DELAY` in the environment still wins.
#[allow(unsafe_code, reason = "the allocator is a C library")]
fn return_freed_memory() {
    // SAFETY: sets a number in mimalloc's options; it may be called at any time, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) };
}

fn main() -> ExitCode {
    return_freed_memory();
    // Each connection takes a descriptor: the default of MAX_CONNECTIONS depends on this limit.
    config::raise_descriptor_limit();
    match config::load(std::env::args_os(), std::env::vars_os(), Some(Path::new(".env"))) {
        Ok(Command::Serve(config)) => serve(*config),
        Ok(Command::CheckConfig(config)) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            println!("The configuration is valid.");
            ExitCode::SUCCESS
        }
        Ok(Command::Healthcheck(config)) => healthcheck(&config),
        Ok(Command::Help(text) | Command::Version(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(config::EXIT_CODE)
        }
    }
}

fn serve(config: Config) -> ExitCode {
    let _flush = match logging::install(&config) {
        Ok(flush) => flush,
        Err(error) => {
            eprintln!("cannot start logging: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "livechat-ws starts");
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let served: anyhow::Result<()> = runtime.block_on(async {
        let signals = Signals::install()?;
        tokio::spawn(secret::watch(config.secrets(), Arc::clone(&signals.reload)));
        Server::bind(config)?.run(signals.stop()).await;
        Ok(())
    });
    // Only plain HTTP and answers that nobody waits for are left.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Reports the error even if LOG_LEVEL suppresses errors: otherwise nobody would know why the server did not start.
fn failed(error: &anyhow::Error) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error:#}");
    } else {
        logging::write_line(&format!("{error:#}"));
    }
    ExitCode::FAILURE
}

/// Asks the running server for its health; for a container's health check.
fn healthcheck(config: &Config) -> ExitCode {
    match ask_health(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unhealthy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask_health(config: &Config) -> anyhow::Result<()> {
    let public = SocketAddr::new(config.host, config.port);
    // With the PROXY protocol the public port only accepts balancers, and the admin port never expects its header.
    let (address, introduction, path) = match (config.proxy_protocol, config.admin_addr) {
        (false, _) => (public, "", "/health"),
        (true, Some(admin)) => (admin, "", "/live"),
        (true, None) => (public, "PROXY UNKNOWN\r\n", "/health"),
    };
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let patience = Duration::from_secs(3);
    let mut socket = TcpStream::connect_timeout(&SocketAddr::new(host, address.port()), patience)?;
    socket.set_read_timeout(Some(patience))?;
    let request =
        format!("{introduction}GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200 "),
        "{}",
        answer.lines().next().unwrap_or("no answer")
    );
    Ok(())
}
