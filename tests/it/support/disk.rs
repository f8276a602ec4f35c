//! A disk of a test's own: a file system in an image, of which every byte can be looked at afterwards; and no other to write to.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags};

use super::{program::eventually, sandbox::Sandbox};

/// Size of the image, in bytes: room for the store, logs and records of a session.
const IMAGE_BYTES: u64 = 48 << 20;
/// File systems that are not on a disk; all others are made read-only.
const NOT_ON_A_DISK: [&str; 12] = [
    "tmpfs",
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "securityfs",
    "bpf",
    "tracefs",
    "debugfs",
];

/// The sandbox is on it; everything outside can be read only, tmpfs excepted. All ends with it.
pub struct Disk {
    /// Where the file system is mounted.
    pub dir: PathBuf,
    image: PathBuf,
    /// Mount points that were made read-only.
    read_only: Vec<PathBuf>,
    sandbox: Sandbox,
}

fn run(program: &str, args: &[&OsStr]) -> io::Result<()> {
    let output = Command::new(program).args(args).output()?;
    let says = || String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{program}: {}", says()))),
    }
}

impl Disk {
    /// 1. A tmpfs for the image, so that the image itself is on no disk.
    /// 2. ext4 on it. `sync`: what is written reaches the image at once, so that it is found there though the file may be gone
    ///    a moment later.
    /// 3. Make the other file systems read-only for us. Whoever writes to one of them fails, and shows in the session.
    ///
    /// # Errors
    /// There are no loop devices here, or none for us.
    pub fn new() -> io::Result<Self> {
        let sandbox = Sandbox::new();
        let (ram, dir) = (sandbox.path().join("ram"), sandbox.path().join("disk"));
        fs::create_dir(&ram)?;
        fs::create_dir(&dir)?;
        rustix::mount::mount("ram", &ram, "tmpfs", MountFlags::empty(), None)?; // 1
        let image = ram.join("image");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()])?; // 2
        let options = ["-o", "loop,sync"].map(OsStr::new);
        run(
            "mount",
            &[options[0], options[1], image.as_ref(), dir.as_ref()],
        )?;
        let mut disk = Self {
            dir,
            image,
            read_only: Vec::new(),
            sandbox,
        };
        disk.make_others_read_only(); // 3
        Ok(disk)
    }

    fn make_others_read_only(&mut self) {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for line in table.lines() {
            // 36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw (proc_pid_mountinfo(5))
            let (mount, file_system) = line.split_once(" - ").unwrap();
            let words: Vec<_> = mount.split(' ').collect();
            let (point, options) = (PathBuf::from(words[4]), words[5]);
            let kind = file_system.split(' ').next().unwrap();
            let is_writable = options.split(',').any(|option| option == "rw");
            if is_writable && point != self.dir && !NOT_ON_A_DISK.contains(&kind) {
                remount(&point, "ro");
                self.read_only.push(point);
            }
        }
        let outside = self.sandbox.path().join("outside");
        let refused = fs::write(outside, "").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    /// The image, for after the sandbox's end: a descriptor keeps it.
    pub fn image(&self) -> Image {
        Image {
            file: File::open(&self.image).unwrap(),
            dir: self.dir.clone(),
        }
    }
}

fn remount(point: &Path, how: &str) {
    let options = format!("remount,bind,{how}");
    let args = [OsStr::new("-o"), options.as_ref(), point.as_ref()];
    run("mount", &args).unwrap();
}

impl Drop for Disk {
    fn drop(&mut self) {
        // the sandbox's directory is to be removed
        self.read_only
            .iter()
            .rev()
            .for_each(|point| remount(point, "rw"));
    }
}

/// The bytes of a disk.
pub struct Image {
    file: File,
    dir: PathBuf,
}

impl Image {
    /// Unmounts the file system, with all that is mounted below it, and reads all of the image.
    pub fn read(&self) -> Vec<u8> {
        let is_below = |line: &&str| {
            let point = line.split(' ').nth(4).unwrap();
            Path::new(point).starts_with(&self.dir)
        };
        eventually("the disk can be unmounted", || {
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let mut below: Vec<_> = table.lines().filter(is_below).collect();
            below.reverse();
            below.iter().all(|line| {
                let point = line.split(' ').nth(4).unwrap();
                rustix::mount::unmount(point, UnmountFlags::empty()).is_ok()
            })
        });
        let length = self.file.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
