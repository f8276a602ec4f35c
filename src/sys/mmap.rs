//! Reads a file through a mapping, as programs that map their configuration do. For tests and benchmarks only.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
};

/// A private read-only mapping of a file's first bytes.
///
/// It never becomes a `&[u8]`: another process may change or cut the file meanwhile, which Rust's references rule out and
/// which costs a direct access SIGBUS. The kernel copies out of it, and says EFAULT instead.
pub struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of `file`.
    ///
    /// # Errors
    /// EINVAL for a length of zero; ENODEV where the file system maps nothing; EACCES and the like.
    pub fn new(file: impl AsFd, length: usize) -> io::Result<Self> {
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours. `fd` is open during the
        // call, because `file` is; the mapping outlives it by itself.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                fd,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length })
    }

    /// What is in it now; shorter than the mapping if the file has been cut meanwhile.
    ///
    /// # Errors
    /// EFAULT when nothing of it is there any more.
    pub fn copy(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0_u8; self.length];
        let into = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: self.length,
        };
        let from = libc::iovec {
            iov_base: self.start.as_ptr(),
            iov_len: self.length,
        };
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: the kernel writes at most `length` bytes to `bytes`, which is that long and lives through the call, and
        // reads from the mapping by itself: an address that cannot be read is an error, not a fault of ours.
        let copied = unsafe { libc::process_vm_readv(process, &into, 1, &from, 1, 0) };
        let copied = usize::try_from(copied).map_err(|_| io::Error::last_os_error())?;
        bytes.truncate(copied);
        Ok(bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, with this length, for this value alone, and no reference into it exists.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapping_shows_the_file_and_a_cut_file_is_an_error_not_a_signal() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        file.write_all(&bytes).unwrap();
        let mapping = Mapping::new(&file, bytes.len()).unwrap();
        assert_eq!(mapping.copy().unwrap(), bytes);
        file.set_len(5_000).unwrap();
        let cut = mapping.copy().unwrap();
        assert!(cut.len() < bytes.len(), "{} bytes of a cut file", cut.len());
        assert_eq!(cut[..5_000], bytes[..5_000]);
        file.set_len(0).unwrap();
        assert_eq!(
            mapping.copy().unwrap_err().raw_os_error(),
            Some(libc::EFAULT)
        );
        assert!(Mapping::new(&file, 0).is_err());
    }
}
