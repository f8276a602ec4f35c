//! Ways to replace a set of files that are wrong on purpose, each for one reason that people have had.
//!
//! They show that the readers of [`super::readers`] can see what they are there for. Each works in a plain directory, in
//! the layout of the real mount, and stops where it is half done until every reader has been there: what can be
//! seen is seen, not left to chance.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use secretfs::{
    clock::Mono,
    error::Result,
    mount::{Mounted, Usage},
    render::{FileContent, Generation, Snapshot},
};

use super::{content::PAIR, pace::Pace};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Writes over each file's bytes, then sets its length.
    InPlace,
    /// Cuts each file to nothing and writes it.
    Truncate,
    /// Removes each file and makes it anew.
    Recreate,
    /// Renames each new file over its old one: each is whole, the set is not.
    FileByFile,
    /// Shows the new directory before all is in it.
    HalfFilled,
    /// Swaps directories, and removes the old one at once (the kubelet's way).
    RemoveAtOnce,
    /// Swaps directories, then renames copies of the *new* files over the old ones.
    CopyNew,
}

impl How {
    /// All of them.
    pub const ALL: [How; 7] = [
        How::InPlace,
        How::Truncate,
        How::Recreate,
        How::FileByFile,
        How::HalfFilled,
        How::RemoveAtOnce,
        How::CopyNew,
    ];
}

/// A volume that is replaced wrongly.
pub struct Broken<'a> {
    how: How,
    root: PathBuf,
    pace: &'a Pace,
    generation: Generation,
    data: PathBuf,
}

impl<'a> Broken<'a> {
    /// Shows `first` in the directory `root`.
    pub fn publish(how: How, root: &Path, first: &Snapshot, pace: &'a Pace) -> io::Result<Self> {
        let mut broken = Self {
            how,
            root: root.to_owned(),
            pace,
            generation: first.generation,
            data: PathBuf::new(),
        };
        broken.data = broken.directory(first)?;
        for (name, bytes) in files(first) {
            fs::write(broken.data.join(name), bytes)?;
        }
        broken.show()?;
        for name in PAIR {
            symlink(Path::new("..data").join(name), root.join(name))?;
        }
        Ok(broken)
    }

    fn swap(&mut self, next: &Snapshot) -> io::Result<()> {
        self.pace.tick_half_done(); // whoever straddles from here on has seen the old state
        match self.how {
            How::InPlace | How::Truncate | How::Recreate | How::FileByFile => {
                for (name, bytes) in files(next) {
                    self.one_file(name, bytes)?;
                }
                self.remove_others(next)
            }
            How::HalfFilled | How::RemoveAtOnce | How::CopyNew => self.directories(next),
        }
    }

    fn one_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.data.join(name);
        let half_done = || {
            if name == PAIR[0] {
                self.pace.tick_half_done();
            }
        };
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        match self.how {
            How::FileByFile => {
                let whole = self.root.join("..whole");
                fs::write(&whole, bytes)?;
                fs::rename(whole, path)?;
                half_done();
            }
            How::Recreate => {
                if path.exists() {
                    fs::remove_file(&path)?;
                }
                half_done();
                fs::write(path, bytes)?;
            }
            _ => {
                let cut = self.how == How::Truncate;
                let mut options = OpenOptions::new();
                let mut file = options.write(true).create(true).truncate(cut).open(path)?;
                file.write_all(first)?;
                half_done();
                file.write_all(rest)?;
                file.set_len(bytes.len() as u64)?;
            }
        }
        Ok(())
    }

    fn directories(&mut self, next: &Snapshot) -> io::Result<()> {
        let new = self.directory(next)?;
        let old = std::mem::replace(&mut self.data, new);
        let mut shown = false;
        for (name, bytes) in files(next) {
            let mut file = File::create(self.data.join(name))?;
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            file.write_all(first)?;
            if self.how == How::HalfFilled && !shown {
                self.show()?;
                shown = true;
                self.pace.tick_half_done();
            }
            file.write_all(rest)?;
        }
        if !shown {
            self.show()?;
        }
        if self.how == How::RemoveAtOnce {
            return fs::remove_dir_all(old);
        }
        if self.how == How::CopyNew {
            for (name, bytes) in files(next) {
                let copy = self.root.join("..copy");
                fs::write(&copy, bytes)?;
                fs::rename(copy, old.join(name))?;
            }
        }
        Ok(()) // the temporary directory takes the old ones with it
    }

    fn directory(&self, of: &Snapshot) -> io::Result<PathBuf> {
        let path = self.root.join(format!("..{}", of.generation.0));
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Lets `..data` lead to `data`.
    fn show(&self) -> io::Result<()> {
        let link = self.root.join("..data_tmp");
        symlink(self.data.file_name().unwrap_or_default(), &link)?;
        fs::rename(link, self.root.join("..data"))
    }

    fn remove_others(&self, next: &Snapshot) -> io::Result<()> {
        for entry in fs::read_dir(&self.data)? {
            let name = entry?.file_name();
            if files(next).all(|(kept, _)| *kept != *name) {
                fs::remove_file(self.data.join(name))?;
            }
        }
        Ok(())
    }
}

impl Mounted for Broken<'_> {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn replace(&mut self, next: &Snapshot) -> Result<bool> {
        self.swap(next)
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.how));
        self.generation = next.generation;
        Ok(true)
    }

    fn sweep(&mut self, _: Mono) -> Option<Mono> {
        None
    }

    fn attach(&mut self) -> Result<()> {
        Ok(())
    }

    fn wipe(&mut self) -> Result<()> {
        Ok(())
    }

    fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }
}

fn files(of: &Snapshot) -> impl Iterator<Item = (&str, &[u8])> {
    of.files
        .iter()
        .filter_map(|(path, file)| match &file.content {
            FileContent::New(bytes) => Some((path.as_str(), bytes.expose())),
            FileContent::Keep => None,
        })
}
