//! The program that is run, and how.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::names::Variables;
use crate::{
    config::Env,
    error::{Error, Result, codes},
    sys::{
        child::{Before, Mask},
        fs::Errno,
        process,
    },
};

/// A program, its arguments, and what it gets beside the secrets.
pub struct Program {
    path: PathBuf,
    name: OsString,
    args: Vec<OsString>,
    /// All of its other variables; `None`: ours.
    kept: Option<Vec<(String, OsString)>>,
    before: Before,
}

impl Program {
    /// Looks for it, by our own PATH: no secret decides what is run.
    ///
    /// # Errors
    /// `exec.not_found`, `exec.cannot_run`.
    pub fn find(
        command: &[OsString],
        kept: Option<&[String]>,
        env: &Env,
        before: Before,
    ) -> Result<Self> {
        let (name, args) = command.split_first().ok_or_else(|| {
            let none = "no command is given after `--`";
            Error::new(&codes::USAGE).detail(none)
        })?;
        let kept = kept.map(|names| Env::some(names).map(|(name, value)| (name.clone(), value)));
        Ok(Self {
            path: found(name, &env.path)?,
            name: name.clone(),
            args: args.to_vec(),
            kept: kept.map(Iterator::collect),
            before,
        })
    }

    /// This one, with these signals blocked, and not those that we have blocked.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.before.mask = Some(mask);
        self
    }

    fn command(&self, variables: &Variables) -> Command {
        tracing::trace!(program = %self.path.display(), variables = variables.len(), "a program is run");
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.args);
        if let Some(kept) = &self.kept {
            command.env_clear();
            command.envs(kept.iter().map(|(name, value)| (name, value)));
        }
        command.envs(variables.iter());
        self.before.give_back(&mut command);
        command
    }

    /// Becomes the program. Returns only where that fails.
    pub fn become_it(&self, variables: &Variables) -> Error {
        let error = self.command(variables).exec();
        self.failed(error)
    }

    /// Starts it below us; its process id.
    ///
    /// # Errors
    /// `exec.not_found`, `exec.cannot_run`, `exec.too_large`, `node.io`.
    pub fn start(&self, variables: &Variables) -> Result<u32> {
        let started = self.command(variables).spawn(); // we wait for it by `child::reap`
        started
            .map(|child| child.id())
            .map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> Error {
        let code = match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => &codes::EXEC_NOT_FOUND,
            Some(Errno::TOOBIG) => &codes::EXEC_TOO_LARGE,
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => &codes::NODE_IO,
            _ => &codes::EXEC_CANNOT_RUN,
        };
        let error = Error::new(code).source(error);
        error.object(shown(&self.name)).step("run it")
    }
}

/// The file that a command's name leads to, as for a shell. A file that cannot be executed is passed over, and told if there is no other.
fn found(name: &OsStr, path: &OsStr) -> Result<PathBuf> {
    let as_it_is = name.as_bytes().contains(&b'/');
    let dirs = path.as_bytes().split(|byte| *byte == b':');
    let in_dir = |dir: &[u8]| match dir {
        [] => Path::new(".").join(name),
        dir => Path::new(OsStr::from_bytes(dir)).join(name),
    };
    let candidates: Vec<PathBuf> = match as_it_is {
        true => vec![PathBuf::from(name)],
        false if name.is_empty() || path.is_empty() => Vec::new(),
        false => dirs.map(in_dir).collect(),
    };
    if let Some(good) = candidates.iter().find(|path| process::may_execute(path)) {
        return Ok(good.clone());
    }
    Err(match candidates.iter().find(|path| path.exists()) {
        Some(there) => Error::new(&codes::EXEC_CANNOT_RUN).object(there.display()),
        None => Error::new(&codes::EXEC_NOT_FOUND).object(shown(name)),
    })
}

fn shown(name: &OsStr) -> std::path::Display<'_> {
    Path::new(name).display()
}
