//! Aligned columns for a terminal or a log file.

use std::fmt;

/// A table: a header and rows of as many cells, with notes between them.
pub struct Table(Vec<Line>);

enum Line {
    Row(Vec<String>),
    Note(String),
}

impl Table {
    /// A table with this header.
    pub fn new(header: &[&str]) -> Self {
        let header = header.iter().map(|cell| (*cell).to_owned());
        Self(vec![Line::Row(header.collect())])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(Line::Row(cells.into_iter().collect()));
    }

    /// Adds a line below the last row that is as long as it is.
    pub fn note(&mut self, note: String) {
        self.0.push(Line::Note(note));
    }
}

impl fmt::Display for Table {
    /// Two spaces between columns, none at a line's end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = || {
            self.0.iter().filter_map(|line| match line {
                Line::Row(row) => Some(row),
                Line::Note(_) => None,
            })
        };
        let columns = rows().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = rows().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for line in &self.0 {
            let row = match line {
                Line::Row(row) => row,
                Line::Note(note) => {
                    writeln!(f, "{note}")?;
                    continue;
                }
            };
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(["wide cell".into(), "x".into()]);
        table.note("  a note may be longer than any cell".into());
        let note = "  a note may be longer than any cell\n";
        assert_eq!(
            table.to_string(),
            format!("A          LONG\nwide cell  x\n{note}")
        );
    }
}
