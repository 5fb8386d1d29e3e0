//! How much memory this process may use: the machine's, or its control group's limit if that is lower.

use std::fs;
use std::path::{Component, Path};

/// In bytes; `None` if the system does not report it. `root` is `/`.
pub(super) fn available(root: &Path) -> Option<u64> {
    let limits = control_groups(root).into_iter().min();
    machine(root).into_iter().chain(limits).min()
}

/// `MemTotal` of `/proc/meminfo`.
fn machine(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The limits of this process's group and of its ancestors (cgroups(7)). A container may see its own group as the root,
/// or a path that only exists outside: then only the root's limit is read.
fn control_groups(root: &Path) -> Vec<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // Version 2 has one group for everything, version 1 one per controller.
        let (base, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut group = root.join(base);
        let inner = Path::new(path).components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        limits.extend(limit(&group.join(file)));
        for name in inner {
            group.push(name);
            limits.extend(limit(&group.join(file)));
        }
    }
    limits
}

/// Reads a limit; `max` means none.
fn limit(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// The memory of a machine of 8 GiB with these files.
    fn available_with(files: &[(&str, String)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:        8388608 kB\nMemFree:         1234 kB\n";
        for (name, text) in [("proc/meminfo", meminfo.to_owned())].iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        available(root.path())
    }

    #[test]
    fn the_smaller_of_machine_and_group() {
        let group = |path: &str| ("proc/self/cgroup", format!("0::{path}\n"));
        let max = |path: &'static str, limit: u64| (path, format!("{limit}\n"));
        assert_eq!(available_with(&[]), Some(8 * GIB));
        assert_eq!(available(Path::new("/nowhere")), None);
        // In a container.
        let own = max("sys/fs/cgroup/memory.max", GIB);
        assert_eq!(available_with(&[group("/"), own.clone()]), Some(GIB));
        assert_eq!(available_with(&[group("/../other"), own]), Some(GIB));
        // A systemd unit, which has no limit of its own in a slice that has.
        let slice = max("sys/fs/cgroup/chat.slice/memory.max", 2 * GIB);
        let unit = (
            "sys/fs/cgroup/chat.slice/ws.service/memory.max",
            "max\n".to_owned(),
        );
        let files = [group("/chat.slice/ws.service"), slice, unit];
        assert_eq!(available_with(&files), Some(2 * GIB));
        // More than there is.
        let own = max("sys/fs/cgroup/memory.max", 64 * GIB);
        assert_eq!(available_with(&[group("/"), own]), Some(8 * GIB));
    }

    #[test]
    fn version_1_has_a_group_for_memory() {
        let groups = "5:cpu,cpuacct:/a\n4:memory:/docker/1234\n1:name=systemd:/a\n0::/\n".to_owned();
        let limit = (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "536870912\n".to_owned(),
        );
        let unlimited = (
            "sys/fs/cgroup/memory/docker/1234/memory.limit_in_bytes",
            "9223372036854771712\n".to_owned(),
        );
        let group = ("proc/self/cgroup", groups);
        assert_eq!(available_with(&[group.clone(), limit]), Some(GIB / 2));
        assert_eq!(available_with(&[group, unlimited]), Some(8 * GIB));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available(Path::new("/")).is_some_and(|bytes| bytes > 16 << 20));
    }
}
