//! One server process: started from a clean environment, watched through its log, killed when dropped.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::lines::Lines;
use super::{Http, PATIENCE, Response};

/// How a server is to be started. By default: embedded, ports drawn by the kernel on 127.0.0.1, no second listener,
/// no admin listener, an empty working directory, and nothing inherited from the environment.
pub struct ServerBuilder {
    env: BTreeMap<String, String>,
    args: Vec<String>,
    cwd: TempDir,
    descriptors: Option<u32>,
}

/// The exit code and output of a finished process.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl ServerBuilder {
    fn new() -> Self {
        let env = [
            ("PORT", "0"),
            ("WS_PORT", ""),
            ("HOST", "127.0.0.1"),
            ("ADMIN_ADDR", ""),
        ];
        let mut env: BTreeMap<String, String> = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        // scripts/test.sh runs the tests of delivery by the other way, too.
        if let Ok(fanout_io) = std::env::var("TEST_FANOUT_IO") {
            env.insert("FANOUT_IO".into(), fanout_io);
        }
        Self {
            env,
            args: Vec::new(),
            cwd: tempfile::tempdir().expect("a temporary directory"),
            descriptors: None,
        }
    }

    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    pub fn envs<'a>(mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (name, value) in pairs {
            self = self.env(name, value);
        }
        self
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The process's limit of open descriptors.
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Puts a file into the working directory, for example `.env`.
    pub fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.cwd.path().join(name), text).expect("write a file for the server");
        self
    }

    /// Starts the server and waits until `GET /ready` says 200.
    #[track_caller]
    pub fn start(self) -> Server {
        let server = self.spawn();
        server.wait_ready();
        server
    }

    /// Starts the server and waits only until the main port listens: for servers that are not ready yet.
    #[track_caller]
    pub fn start_listening(self) -> Server {
        let server = self.spawn();
        server.http_addr();
        server
    }

    /// Starts the process without waiting.
    #[track_caller]
    pub fn spawn(self) -> Server {
        let mut child = self.command().spawn().expect("start the server");
        let stderr = Lines::drain(child.stderr.take().expect("stderr is piped"));
        let stdout = Lines::drain(child.stdout.take().expect("stdout is piped"));
        Server {
            pid: child.id(),
            child: Mutex::new(child),
            exit: Mutex::new(None),
            stderr,
            stdout,
            _cwd: self.cwd,
        }
    }

    /// Runs the process to its end, for `--help` and start-up errors.
    #[track_caller]
    pub fn run(self) -> Exit {
        let server = self.spawn();
        let code = server.wait_exit(PATIENCE);
        server.stderr.wait_end();
        server.stdout.wait_end();
        Exit {
            code,
            stdout: server.stdout.text(),
            stderr: server.stderr.text(),
        }
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_livechat-ws");
        let mut command = Command::new(binary);
        if let Some(limit) = self.descriptors {
            command = Command::new("/bin/sh");
            command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), binary]);
        }
        command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.cwd.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A running server. Dropping it kills the process; a panicking test prints its log first.
pub struct Server {
    pid: u32,
    child: Mutex<Child>,
    exit: Mutex<Option<ExitStatus>>,
    stderr: Arc<Lines>,
    stdout: Arc<Lines>,
    _cwd: TempDir,
}

impl Server {
    pub fn builder() -> ServerBuilder {
        ServerBuilder::new()
    }

    /// An embedded server with default limits.
    #[track_caller]
    pub fn start() -> Server {
        Self::builder().start()
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    #[track_caller]
    pub fn http_addr(&self) -> SocketAddr {
        self.addr_of("PORT")
    }

    /// The second listener (`WS_PORT`).
    #[track_caller]
    pub fn ws_addr(&self) -> SocketAddr {
        self.addr_of("WS_PORT")
    }

    #[track_caller]
    pub fn admin_addr(&self) -> SocketAddr {
        self.addr_of("ADMIN_ADDR")
    }

    /// The address in the `listening` line of the variable, waited for.
    #[track_caller]
    pub fn addr_of(&self, variable: &str) -> SocketAddr {
        let line = self.wait_log_where(&format!("a `listening` line for {variable}"), |line| {
            line.contains("listening") && field(line, "variable").as_deref() == Some(variable)
        });
        let address = field(&line, "address").unwrap_or_else(|| panic!("no address in: {line}"));
        address
            .parse()
            .unwrap_or_else(|_| panic!("not an address: {address} in: {line}"))
    }

    #[track_caller]
    pub fn wait_ready(&self) {
        let addr = self.http_addr();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = Http::try_get(addr, "/ready");
            if last.as_ref().is_ok_and(|response| response.status == 200) {
                return;
            }
            assert!(Instant::now() < deadline, "not ready; the last answer: {last:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `GET path` on a fresh connection to the main port.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        Http::get(self.http_addr(), path)
    }

    #[track_caller]
    pub fn health(&self) -> Value {
        self.get("/health").json()
    }

    /// A metric's value, of all its series together. Needs `ADMIN_ADDR`.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let page = Http::get(self.admin_addr(), "/metrics").text();
        let is_of_it = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        let values: Vec<_> = page.lines().filter(is_of_it).filter_map(value).collect();
        assert!(!values.is_empty(), "no {name} in: {page}");
        values.iter().sum()
    }

    /// `data` of the connection-status REST answer, once the presence store can be asked: on a busy machine, Redis may take
    /// longer than a node waits for it.
    #[track_caller]
    pub fn connection_status(&self, session: &str) -> Value {
        let path = format!("/api/session/{session}/connection-status");
        let mut response = self.get(&path);
        super::eventually("the presence store answers", || {
            if response.status == 503 {
                response = self.get(&path);
            }
            response.status != 503
        });
        assert_eq!(response.status, 200, "{response:?}");
        response.json()["data"].clone()
    }

    /// Closes the pipe of the server's log after the line that `log` causes: further writes fail.
    pub fn close_log(&self, log: impl FnOnce()) {
        self.stderr.close_after_next();
        log();
        self.stderr.wait_end();
    }

    /// Stops reading the pipe of the server's log until [`Self::resume_log`].
    pub fn stall_log(&self) {
        self.stderr.stall(true);
    }

    pub fn resume_log(&self) {
        self.stderr.stall(false);
    }

    /// Sends a signal by name: "TERM", "INT", "KILL", "STOP", "CONT".
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let signal: Signal = format!("SIG{name}").parse().expect("a signal's name");
        let pid = Pid::from_raw(self.pid.try_into().expect("a process id"));
        kill(pid, signal).unwrap_or_else(|error| panic!("could not send {name} to the server: {error}"));
        if signal == Signal::SIGSTOP {
            // Its threads may run on for a moment.
            super::eventually("all threads have stopped", || self.is_stopped());
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the server's threads");
        threads.flatten().all(|thread| {
            // A thread that has ended since is not in the way.
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status
                .lines()
                .all(|line| !line.starts_with("State:") || line.contains("T (stopped)"))
        })
    }

    /// Waits for the end of the process: its exit code, or None when a signal ended it. Panics when it does not end.
    #[track_caller]
    pub fn wait_exit(&self, timeout: Duration) -> Option<i32> {
        let deadline = Instant::now() + timeout;
        while !self.has_exited() {
            assert!(
                Instant::now() < deadline,
                "the server did not exit within {timeout:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.exit.lock().unwrap().and_then(|status| status.code())
    }

    pub fn has_exited(&self) -> bool {
        let mut exit = self.exit.lock().unwrap();
        if exit.is_none() {
            *exit = self
                .child
                .lock()
                .unwrap()
                .try_wait()
                .expect("wait for the server");
        }
        exit.is_some()
    }

    /// Resident memory in KiB.
    #[track_caller]
    pub fn rss_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the server's /proc status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("VmRSS");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("VmRSS in kB")
    }

    /// Processor time used so far, user and system.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the server's /proc stat");
        // The name, in parentheses, may hold blanks; the times are the 14th and 15th field, in 1/100 s.
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// Open descriptors.
    #[track_caller]
    pub fn fd_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid))
            .expect("the server's descriptors")
            .count()
    }

    /// All log lines so far, without colours.
    pub fn log(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for a log line that contains `text`, and returns it. Lines already there count.
    #[track_caller]
    pub fn wait_log(&self, text: &str) -> String {
        self.wait_log_where(&format!("a log line with {text:?}"), |line| line.contains(text))
    }

    #[track_caller]
    pub fn wait_log_where(&self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        match self.stderr.wait(&matches) {
            Some(line) => line,
            None => panic!("the server never logged {what}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_exited() {
            let child = &mut *self.child.lock().unwrap();
            let _ = child.kill();
            let _ = child.wait();
        }
        self.resume_log();
        if std::thread::panicking() {
            self.stderr.wait_end();
            let lines = self.log();
            let shown = &lines[lines.len().saturating_sub(200)..];
            eprintln!(
                "--- log of server {} ({} lines, the last {}) ---",
                self.pid,
                lines.len(),
                shown.len()
            );
            for line in shown {
                eprintln!("{line}");
            }
            eprintln!(
                "--- end of the log of server {} ({:?}) ---",
                self.pid,
                self.exit.lock().unwrap()
            );
        }
    }
}

/// A field of a log line, in text format (`name=value`, `name="value"`) or JSON.
pub fn field(line: &str, name: &str) -> Option<String> {
    if line.starts_with('{') {
        let line: Value = serde_json::from_str(line).ok()?;
        let value = line.get(name).or_else(|| line.get("fields")?.get(name))?;
        return Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let key = format!(" {name}=");
    let value = &line[line.find(&key)? + key.len()..];
    Some(match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?.to_owned(),
        None => value.split_whitespace().next()?.to_owned(),
    })
}

/// Whether a process of that id exists; for tests of guards.
pub fn process_exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
