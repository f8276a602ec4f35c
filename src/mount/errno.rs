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
