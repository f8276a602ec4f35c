//! How much memory this process takes, and its control group, as the kernel counts it.

use std::{fs, path::PathBuf};

/// Bytes of this process that are in memory.
pub fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A control group (version 2).
#[derive(Clone, Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Ours; `None` without version 2. A privileged container sees the whole tree and is somewhere in it; any other is at its root.
    pub fn ours() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = of(&groups)?;
        Some(Self {
            dir: PathBuf::from(format!("/sys/fs/cgroup{path}")),
        })
    }

    /// Bytes charged to it.
    pub fn used(&self) -> Option<u64> {
        self.number("memory.current")
    }

    /// Bytes beyond which something in it is killed; `None`: no limit.
    pub fn limit(&self) -> Option<u64> {
        self.number("memory.max") // "max" is no number
    }

    fn number(&self, file: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        text.trim().parse().ok()
    }
}

/// The path in the line of version 2 (cgroups(7)); one that leads out of our root is none that we could read.
fn of(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    inside.then_some(path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_version_2() {
        for (groups, expect) in [
            ("0::/\n", Some("")),
            ("0::/kubepods.slice/x\n", Some("/kubepods.slice/x")),
            ("4:memory:/a\n0::/b\n", Some("/b")),
            ("4:memory:/a\n", None),
            ("0::/../x\n", None),
            ("", None),
        ] {
            assert_eq!(of(groups), expect, "{groups:?}");
        }
    }

    #[test]
    fn a_process_takes_some_memory_and_a_group_says_numbers_only() {
        assert!(resident().unwrap() > 1 << 20);
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup {
            dir: dir.path().to_owned(),
        };
        assert_eq!((group.used(), group.limit()), (None, None));
        fs::write(dir.path().join("memory.current"), "4096\n").unwrap();
        fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!((group.used(), group.limit()), (Some(4096), None));
        fs::write(dir.path().join("memory.max"), "8192\n").unwrap();
        assert_eq!(group.limit(), Some(8192));
    }
}
