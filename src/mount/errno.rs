//! What a failed system call of a mount means to whoever must act.

use crate::{
    error::{Code, Error, Result, codes},
    sys::fs::{Errno, Sys},
};

/// Names the step in which a system call failed.
pub(super) trait Step<T> {
    /// Of a call that files need. The code follows the errno; `step` is what was being done, as a phrase: "write a file".
    fn file_step(self, step: &'static str) -> Result<T>;
    /// Of a call that mounts need: EPERM is a missing CAP_SYS_ADMIN.
    fn step(self, step: &'static str) -> Result<T>;
}

impl<T> Step<T> for Sys<T> {
    fn file_step(self, step: &'static str) -> Result<T> {
        self.map_err(|errno| Error::new(code_of(errno)).step(step).source(errno))
    }

    fn step(self, step: &'static str) -> Result<T> {
        self.map_err(|errno| {
            let code = match errno {
                Errno::PERM => &codes::MOUNT_NOT_PERMITTED,
                errno => code_of(errno),
            };
            Error::new(code).step(step).source(errno)
        })
    }
}

/// Repeats a call as long as it answers EBUSY, some 100 ms at the most.
///
/// Making a mount read-only needs that nobody has a file of it open for writing. We have closed ours, but a child that another
/// thread is just starting has copies of our descriptors until it executes its program.
pub(super) fn patiently(mut call: impl FnMut() -> Sys<()>) -> Sys<()> {
    for _ in 0..100 {
        match call() {
            Err(Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(1)),
            done => return done,
        }
    }
    call()
}

fn code_of(errno: Errno) -> &'static Code {
    match errno {
        Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE => &codes::MOUNT_NO_SPACE,
        _ => &codes::MOUNT_KERNEL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_mount_is_waited_for_and_nothing_else_is() {
        let mut answers = vec![Ok(()), Err(Errno::BUSY), Err(Errno::BUSY)];
        assert_eq!(patiently(|| answers.pop().unwrap()), Ok(()));
        let mut calls = 0;
        let mut count = |answer| {
            patiently(|| {
                calls += 1;
                answer
            })
        };
        assert_eq!(count(Err(Errno::IO)), Err(Errno::IO));
        assert_eq!(count(Err(Errno::BUSY)), Err(Errno::BUSY), "not for ever");
        assert_eq!(calls, 1 + 101);
    }

    #[test]
    fn a_missing_capability_is_named() {
        let error = Err::<(), _>(Errno::PERM).step("make the tmpfs");
        let error = error.unwrap_err();
        assert_eq!(error.code(), &codes::MOUNT_NOT_PERMITTED);
        assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
        assert_eq!(error.failed_step(), "make the tmpfs");
        let error = Err::<(), _>(Errno::PERM).file_step("x").unwrap_err();
        assert_eq!(error.code(), &codes::MOUNT_KERNEL);
    }
}
