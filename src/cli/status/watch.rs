//! `status --watch`: on a terminal the table again and again; elsewhere only what changes, a line for each, so that it can be kept and read.

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use super::{Answers, Found, json, show, text};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, Result},
    sys::process,
    volume::VolumeStatus,
};

/// How often volumes are looked at.
pub const EVERY: Duration = Duration::from_secs(1);

/// How changes are shown.
pub enum Watch {
    /// A person looks at it.
    Screen,
    /// A document when it differs from the last one.
    Json(Option<String>),
    /// A line for what differs.
    Lines(Lines),
}

/// What was told last.
#[derive(Default)]
pub struct Lines {
    heads: String,
    /// By id: the socket that answered for it, and its line.
    volumes: BTreeMap<String, (PathBuf, String)>,
    /// Why nobody answered at the socket that was named.
    failure: Option<String>,
    /// Sockets that were there and did not answer, and what was told of that.
    silent: BTreeMap<PathBuf, String>,
}

impl Watch {
    /// For what stdout is.
    pub fn new(is_json: bool, is_terminal: bool) -> Self {
        match (is_json, is_terminal) {
            (true, _) => Self::Json(None),
            (false, true) => Self::Screen,
            (false, false) => Self::Lines(Lines::default()),
        }
    }

    /// Shows how things are now. That nobody answers any more is shown as well: a plugin that is being replaced will be back.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn show(&mut self, seen: Result<Answers>, out: &mut dyn Write) -> Result<()> {
        let text = match (self, seen) {
            (Self::Screen, Ok(found)) => screen(&text(&found), process::terminal_size()),
            (Self::Screen, Err(error)) => screen(&format!("{error}\n"), process::terminal_size()),
            (Self::Json(last), Ok(found)) => {
                let ageless = json(&found, &found.statuses().map(ageless).collect::<Vec<_>>());
                if last.as_ref() == Some(&ageless) {
                    return Ok(());
                }
                *last = Some(ageless);
                json(&found, &found.statuses().collect::<Vec<_>>())
            }
            (Self::Json(last), Err(error)) => {
                if last.take().is_some() {
                    tracing::warn!(%error, "no answer");
                }
                return Ok(());
            }
            (Self::Lines(lines), seen) => {
                lines.news(seen).iter().fold(String::new(), |text, line| {
                    format!("{text}{} {line}\n", SystemClock.wall().to_rfc3339())
                })
            }
        };
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Error::stdout)
    }
}

impl Lines {
    fn news(&mut self, seen: Result<Answers>) -> Vec<String> {
        let found = match seen {
            Ok(found) => found,
            Err(error) => {
                let failure = Some(format!("no answer: {error}"));
                let is_new = self.failure != failure;
                self.failure = failure;
                return self.failure.iter().filter(|_| is_new).cloned().collect();
            }
        };
        let mut news = Vec::new();
        if self.failure.take().is_some() {
            news.push("answers again".to_owned());
        }
        news.extend(self.silence(&found));
        let heads = show::heads(&found.nodes);
        if self.heads != heads {
            news.extend(heads.lines().map(str::to_owned));
            self.heads = heads;
        }
        let mut volumes = BTreeMap::new();
        for Found { socket, status } in &found.volumes {
            let line = show::line(status);
            let told = self.volumes.get(&status.id);
            if told.is_none_or(|(_, told)| *told != line) {
                news.push(line.clone());
            }
            volumes.insert(status.id.clone(), (socket.clone(), line));
        }
        for (id, (socket, line)) in std::mem::replace(&mut self.volumes, volumes) {
            if self.volumes.contains_key(&id) {
                continue;
            }
            if self.silent.contains_key(&socket) {
                self.volumes.insert(id, (socket, line)); // who served it does not answer: nothing is known of it
            } else if show::is_mounted(&id) {
                news.push(format!("nobody serves it any more, was {line}"));
            } else {
                news.push(format!("gone, was {line}"));
            }
        }
        news
    }

    /// Which sockets do not answer any more, or answer again.
    fn silence(&mut self, found: &Answers) -> Vec<String> {
        let lines = found.unreachable.iter();
        let now = lines.map(|silent| (silent.socket.clone(), silent.line()));
        let before = std::mem::replace(&mut self.silent, now.collect());
        let mut news = Vec::new();
        for (socket, line) in &self.silent {
            if before.get(socket) != Some(line) {
                news.push(line.clone());
            }
        }
        for socket in before.keys() {
            if !self.silent.contains_key(socket) && socket.exists() {
                news.push(format!("{}: answers again", socket.display()));
            }
        }
        news
    }
}

/// From the top, each line over the one before, and nothing below: a screen that is cleared first flickers. No line wraps and none makes
/// the terminal scroll; of a longer text the beginning, which is the worst, and how much more there is.
fn screen(text: &str, (rows, columns): (usize, usize)) -> String {
    let lines: Vec<_> = text.lines().collect();
    let last = rows.saturating_sub(2); // the last row but one says what is cut; on the last one is the cursor
    let more = (lines.len() >= rows).then(|| format!("… {} more lines", lines.len() - last));
    let shown = if more.is_some() { last } else { lines.len() };
    let mut screen = String::from("\x1b[H");
    for line in lines[..shown].iter().copied().chain(more.as_deref()) {
        screen.extend(line.chars().take(columns));
        screen.push_str("\x1b[K\n");
    }
    screen + "\x1b[J"
}

/// The same at any moment, as long as nothing changes.
fn ageless(status: &VolumeStatus) -> VolumeStatus {
    VolumeStatus {
        checked_seconds_ago: None,
        next_in_seconds: None,
        usage: None,
        ..status.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_what_fits() {
        let text = "abcdef\nb\nc\nd\n";
        let all = "\x1b[Habcdef\x1b[K\nb\x1b[K\nc\x1b[K\nd\x1b[K\n\x1b[J";
        assert_eq!(screen(text, (usize::MAX, usize::MAX)), all);
        assert_eq!(screen(text, (5, 6)), all);
        let cut = "\x1b[Habc\x1b[K\nb\x1b[K\n… 2\x1b[K\n\x1b[J";
        assert_eq!(screen(text, (4, 3)), cut);
        for rows in 1..4 {
            let rest = screen(text, (rows, 80));
            assert!(rest.contains("more lines"), "{rest:?}");
        }
    }
}
