//! Encrypting the whole store anew, to other recipients.

use crate::{
    error::{Error, Result},
    store::{
        Identities, Name, Recipients, Store,
        seal::{mark_of, seal, unseal},
        version_file,
    },
};

/// What a rekey did.
#[derive(Debug, Default)]
pub struct Rekeyed {
    /// Versions that were encrypted anew.
    pub done: usize,
    /// Versions that were encrypted to these recipients already: by a put, or by a rekey that was killed.
    pub already: usize,
    /// Versions that could not be: one error each, with the file's name. They are as they were.
    pub problems: Vec<Error>,
}

impl Store {
    /// Encrypts every version of every secret to the present recipients, or to `to`, which then become the present ones.
    ///
    /// 1. Replace the recipients file, so that every put from now on follows it.
    /// 2. For each secret: take the lock, and for each version whose header does not bear the recipients' mark: decrypt,
    ///    encrypt, replace the file by one rename. Numbers, content and times stay.
    ///
    /// Killed, it leaves each file whole, old or new; run again, it passes over those that bear the mark.
    ///
    /// # Errors
    /// `store.bad_recipient`, `store.io`: nothing more was done. What is wrong with single files is in the result.
    pub fn rekey(&self, to: Option<&Recipients>, with: &Identities) -> Result<Rekeyed> {
        if let Some(to) = to {
            self.writer()?
                .replace("recipients", to.to_text().as_bytes())?; // 1
        }
        self.recipients()?;
        let mut rekeyed = Rekeyed::default();
        for name in self.names()? {
            self.rekey_secret(&name, with, &mut rekeyed)?; // 2
        }
        Ok(rekeyed)
    }

    fn rekey_secret(&self, name: &Name, with: &Identities, rekeyed: &mut Rekeyed) -> Result<()> {
        tracing::trace!(%name, "a secret is encrypted anew");
        let writer = self.writer()?;
        let to = self.recipients()?;
        let mark = to.mark();
        let versions = match self.versions(name) {
            Ok(versions) => versions.map(|versions| versions.kept).unwrap_or_default(),
            Err(error) => {
                rekeyed.problems.push(error);
                return Ok(());
            }
        };
        for version in versions {
            let path = self.secret_dir(name).join(version_file(version));
            let anew = || -> Result<Option<(Vec<u8>, _)>> {
                let found = self
                    .look_up(name, Some(version))?
                    .or_error(name, Some(version))?;
                let modified = found.modified();
                let sealed = found.read_sealed()?;
                if mark_of(&sealed) == Some(&mark) {
                    return Ok(None);
                }
                Ok(Some((seal(&unseal(&sealed, with)?, &to)?, modified)))
            };
            match anew() {
                Ok(None) => rekeyed.already += 1,
                Ok(Some((sealed, modified))) => {
                    writer.replace_at(&path, &sealed, modified)?;
                    rekeyed.done += 1;
                }
                Err(error) => rekeyed.problems.push(error.object(path.display())),
            }
        }
        Ok(())
    }
}
