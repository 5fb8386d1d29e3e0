//! Child processes and their cost, from the kernel's CPU clocks and `/proc`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tempfile::TempDir;

/// `/proc` counts in hundredths of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);
/// How long a program may take to answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A program that runs in its own folder, and is ended with its owner.
pub struct Process {
    child: Child,
    name: String,
    dir: TempDir,
}

impl Process {
    /// Starts a program with nothing inherited from the environment but these variables; its output goes to a file.
    pub fn start(binary: &Path, args: &[String], env: &[(String, String)]) -> Result<Self> {
        let name = binary
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let binary = match binary.parent() {
            // A bare name is looked up in PATH; a path must be valid from another folder.
            Some(parent) if parent.as_os_str().is_empty() => binary.to_owned(),
            _ => fs::canonicalize(binary).with_context(|| format!("no program {}", binary.display()))?,
        };
        let dir = tempfile::tempdir()?;
        let log = File::create(dir.path().join("log"))?;
        let child = Command::new(&binary)
            .args(args)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Self { child, name, dir })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time of all its threads, those that have ended too.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.pid()).with_context(|| format!("{} has ended:\n{}", self.name, self.log()))
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        rss_of(self.pid()).with_context(|| format!("{} has ended:\n{}", self.name, self.log()))
    }

    /// The most resident memory that it has had, in bytes.
    pub fn peak_rss(&self) -> Result<u64> {
        peak_rss_of(self.pid()).with_context(|| format!("{} has ended:\n{}", self.name, self.log()))
    }

    /// The end of its output.
    pub fn log(&self) -> String {
        let text = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Calls `is_up` until it holds.
    pub fn wait_until(&mut self, what: &str, mut is_up: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !is_up() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended ({status}) before it was {what}:\n{}",
                    self.name,
                    self.log()
                );
            }
            if started.elapsed() > START_PATIENCE {
                bail!("{} is not {what}:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid().try_into()?), Signal::SIGTERM)?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > STOP_PATIENCE {
                bail!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process, by its CPU clock: `/proc/PID/stat` counts ticks, and ten thousand connects are
/// ten of them.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?;
    Ok(clock.now()?.into())
}

/// User and system time of the threads of a process that have this name; `None` where there is none.
pub fn cpu_of_threads(pid: u32, name: &str) -> Result<Option<Duration>> {
    let mut total = None;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end between the two lines.
        let (Ok(comm), Ok(stat)) = (
            fs::read_to_string(task.join("comm")),
            fs::read_to_string(task.join("stat")),
        ) else {
            continue;
        };
        if comm.trim_end() == name {
            let cpu = parse_cpu(&stat).context("an unknown form of /proc/PID/task/TID/stat")?;
            total = Some(total.unwrap_or_default() + cpu);
        }
    }
    Ok(total)
}

/// Resident memory of a process, in bytes.
pub fn rss_of(pid: u32) -> Result<u64> {
    parse_kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Rss:")
        .context("no Rss in smaps_rollup")
}

/// The most resident memory that a process has had, in bytes.
pub fn peak_rss_of(pid: u32) -> Result<u64> {
    parse_kib(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:").context("no VmHWM in status")
}

/// Fields 14 and 15; the name in field 2 may hold blanks, so count from the bracket that ends it.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

fn parse_kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// A free port of 127.0.0.1, below the kernel's ephemeral range.
pub fn free_port() -> Result<u16> {
    (0..200)
        .map(|_| fastrand::u16(15_000..30_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port")
}

/// Status and body.
pub fn get(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("no status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 1 0 100 0 0";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_cpu("7 (a"), None);
    }

    #[test]
    fn rss_is_in_bytes() {
        let rollup = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:                1024 kB\nPss: 7 kB\n";
        assert_eq!(parse_kib(rollup, "Rss:"), Some(1024 * 1024));
    }

    #[test]
    fn our_own_figures_are_there() {
        let pid = std::process::id();
        assert!(rss_of(pid).unwrap() > 100_000);
        assert!(peak_rss_of(pid).unwrap() > 100_000);
        // Finer than the ticks of /proc, which would show 0 or a whole tick.
        let step = || {
            let before = cpu_of(pid).unwrap();
            std::iter::repeat_with(|| cpu_of(pid).unwrap() - before).find(|step| !step.is_zero())
        };
        assert!((0..10).any(|_| step().unwrap() < TICK));
    }

    #[test]
    fn a_thread_is_found_by_its_name() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("by-its-name".into());
        let thread = thread.spawn(move || {
            begin.send(()).unwrap();
            let _ = stopped.recv();
        });
        begun.recv().unwrap();
        let pid = std::process::id();
        assert!(cpu_of_threads(pid, "by-its-name").unwrap().is_some());
        assert_eq!(cpu_of_threads(pid, "no such thread").unwrap(), None);
        drop(stop);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_program_ends_with_its_owner_and_says_why_it_failed() {
        let sleeper = Process::start(Path::new("sleep"), &["60".into()], &[]).unwrap();
        let pid = sleeper.pid();
        drop(sleeper);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let args = ["-c".into(), "echo no such luck; exit 3".into()];
        let mut failing = Process::start(Path::new("sh"), &args, &[]).unwrap();
        let error = failing.wait_until("ready", || false).unwrap_err().to_string();
        assert!(error.contains("no such luck"), "{error}");
    }
}
