//! Secrets, given as values or in files. A file is read again at SIGHUP and every few seconds, so a secret can be
//! changed while the server runs. Code that needs a secret gets its value each time and never keeps it.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How often files are read: a change takes effect within ten seconds. Contents are compared, because mounted secrets
/// are replaced by changing a symbolic link, which a watch on the file would miss.
const INTERVAL: Duration = Duration::from_secs(5);
/// A longer file is refused.
const MAX_BYTES: u64 = 1 << 20;

/// A value that is never printed. Clones share it and its changes.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    source: Option<Source>,
    current: Mutex<Current>,
    /// How often the value has changed.
    version: AtomicU64,
}

/// The file, and the variable that names it.
struct Source {
    variable: &'static str,
    path: PathBuf,
}

struct Current {
    value: Arc<str>,
    /// Whether the last attempt to read it failed, which has been logged.
    is_failing: bool,
}

impl Secret {
    /// A secret that never changes.
    pub fn fixed(value: String) -> Self {
        Self::new(None, value)
    }

    /// The content of a file, without one line break at its end.
    ///
    /// # Errors
    ///
    /// The message says what kind of file was expected.
    pub fn from_file(variable: &'static str, path: &Path) -> Result<Self, String> {
        let value = read(path)?;
        let path = path.to_owned();
        Ok(Self::new(Some(Source { variable, path }), value))
    }

    fn new(source: Option<Source>, value: String) -> Self {
        let value = value.into();
        Self(Arc::new(Inner {
            source,
            current: Mutex::new(Current {
                value,
                is_failing: false,
            }),
            version: AtomicU64::new(0),
        }))
    }

    /// The current value.
    pub fn value(&self) -> Arc<str> {
        Arc::clone(&self.0.current.lock().value)
    }

    /// A number that differs from before if the value may have changed.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// Reads the file again, if there is one. If it can't be read, the value does not change.
    pub(crate) fn read_again(&self) {
        let Some(Source { variable, path }) = &self.0.source else {
            return;
        };
        let found = read(path);
        let mut current = self.0.current.lock();
        match found {
            Ok(value) => {
                current.is_failing = false;
                if value != *current.value {
                    current.value = value.into();
                    self.0.version.fetch_add(1, Ordering::Release);
                    tracing::info!(variable, "a secret has changed: new connections use it");
                }
            }
            Err(error) if !current.is_failing => {
                current.is_failing = true;
                tracing::warn!(
                    variable,
                    path = %path.display(),
                    error,
                    "the file of a secret can't be read: its last value stays"
                );
            }
            Err(_) => {}
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.source {
            Some(source) => write!(f, "Secret({})", source.path.display()),
            None => f.write_str("Secret(***)"),
        }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let path = |secret: &Self| secret.0.source.as_ref().map(|source| source.path.clone());
        Arc::ptr_eq(&self.0, &other.0) || (path(self) == path(other) && self.value() == other.value())
    }
}

impl Eq for Secret {}

/// Reads the files again periodically, and when `reload` is notified. Returns at once if no secret has a file.
pub async fn watch(secrets: Vec<Secret>, reload: Arc<Notify>) {
    let files: Arc<[Secret]> = secrets
        .into_iter()
        .filter(|secret| secret.0.source.is_some())
        .collect();
    if files.is_empty() {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = reload.notified() => {}
        }
        let files = Arc::clone(&files);
        // A file system may be slow, or hang.
        let read = tokio::task::spawn_blocking(move || files.iter().for_each(Secret::read_again));
        let _ = read.await;
    }
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("expected a readable file: {error}");
    // Checked before opening: opening a pipe without a writer blocks forever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err("expected a regular file, which can be read again".to_owned());
    }
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(failed)?.take(MAX_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("expected a file of at most 1 MiB".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "expected a file of UTF-8 text".to_owned())?;
    let value = without_line_break(&text);
    if value.is_empty() {
        return Err("expected a file that is not empty".to_owned());
    }
    if value.contains('\0') {
        return Err("expected a file of text, without NUL".to_owned());
    }
    Ok(value.to_owned())
}

/// The text without one line break at its end, such as editors and `echo` append.
pub fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_is_not_part_of_a_secret() {
        let cases = [
            ("pa$ss", "pa$ss"),
            (" pa ss \n", " pa ss "),
            ("pass\r\n", "pass"),
            ("pass\n\n", "pass\n"),
            ("a\nb", "a\nb"),
            ("\n", ""),
        ];
        for (text, secret) in cases {
            assert_eq!(without_line_break(text), secret, "{text:?}");
        }
    }

    #[test]
    fn an_invalid_secret_is_refused_without_showing_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let error_for = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            Secret::from_file("X_FILE", &path).unwrap_err()
        };
        for (content, word) in [
            (&b""[..], "empty"),
            (b"\n", "empty"),
            (b"\xffhunter2", "UTF-8"),
            (b"hunter2\0", "NUL"),
            (&vec![b'x'; (MAX_BYTES + 1) as usize], "1 MiB"),
        ] {
            let why = error_for(content);
            assert!(why.contains(word) && !why.contains("hunter2"), "{why}");
        }
        let none = Secret::from_file("X_FILE", &dir.path().join("none")).unwrap_err();
        assert!(none.contains("No such file"), "{none}");
        let folder = Secret::from_file("X_FILE", dir.path()).unwrap_err();
        assert!(folder.contains("regular file"), "{folder}");
    }

    #[test]
    fn a_changed_file_changes_the_value_and_a_missing_or_empty_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "first\n").unwrap();
        let secret = Secret::from_file("X_FILE", &path).unwrap();
        let shared = secret.clone();
        assert_eq!((&*shared.value(), shared.version()), ("first", 0));
        secret.read_again();
        assert_eq!(shared.version(), 0, "nothing has changed");

        // While it is being rewritten, the file may be missing or empty.
        for gone in [true, false] {
            let _ = if gone {
                fs::remove_file(&path)
            } else {
                fs::write(&path, "")
            };
            secret.read_again();
            assert_eq!((&*shared.value(), shared.version()), ("first", 0));
        }
        fs::write(&path, "second").unwrap();
        secret.read_again();
        assert_eq!((&*shared.value(), shared.version()), ("second", 1));
        assert!(!format!("{secret:?}").contains("second"));
    }

    #[tokio::test]
    async fn files_are_read_again_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "first").unwrap();
        let secret = Secret::from_file("X_FILE", &path).unwrap();
        let reload = Arc::new(Notify::new());
        let task = tokio::spawn(watch(
            vec![Secret::fixed("fixed".to_owned()), secret.clone()],
            Arc::clone(&reload),
        ));
        fs::write(&path, "second").unwrap();
        reload.notify_one();
        while &*secret.value() != "second" {
            tokio::task::yield_now().await;
        }
        task.abort();
        watch(vec![Secret::fixed("fixed".to_owned())], reload).await;
    }
}
