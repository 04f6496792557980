//! Tables for people.
//!
//! Ids and names are other people's text: control characters are shown as escapes, so that no tenant can drive an
//! operator's terminal.

/// What is printed where there is nothing.
pub(crate) const NOTHING: &str = "-";

/// The text, or what is printed where there is none.
pub(crate) fn or_nothing(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| NOTHING.into())
}

/// Columns as wide as their widest cell, two spaces apart.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads and no row.
    pub(crate) fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row, a cell for each column.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The lines.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows[0].len();
        let width = |at: usize| self.rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let line: Vec<String> =
                std::iter::zip(row, &widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text without control characters, spaces kept.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
