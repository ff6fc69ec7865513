//! Figures into lines.

use std::fmt;
use std::time::Duration;

/// One line.
pub(crate) struct Row([String; 7]);

const HEADINGS: [&str; 7] = ["", "direct", "pass-through", "ours", "added", "added / pass-through's", "target"];

impl Row {
    pub(crate) fn new(what: &str) -> Self {
        let mut row = Self(Default::default());
        what.clone_into(&mut row.0[0]);
        row
    }

    pub(crate) fn direct(self, value: String) -> Self {
        self.with(1, value)
    }

    pub(crate) fn relay(self, value: String) -> Self {
        self.with(2, value)
    }

    pub(crate) fn worker(self, value: String) -> Self {
        self.with(3, value)
    }

    /// What the worker adds to the direct route, and how that compares with what the pass-through adds.
    pub(crate) fn added(self, direct: Duration, relay: Duration, worker: Duration) -> Self {
        let [ours, floor] = [worker, relay].map(|time| (time.as_secs_f64() - direct.as_secs_f64()) * 1e6);
        let ratio = if floor > 0.0 { format!("{:.2}", ours / floor) } else { "–".to_owned() };
        self.with(4, format!("{ours:.0}")).with(5, ratio)
    }

    /// The goal: of what is added where that is shown, else of the worker's figure.
    pub(crate) fn target(self, value: &str) -> Self {
        let value = if value.is_empty() { String::new() } else { format!("≤ {value}") };
        self.with(6, value)
    }

    fn with(mut self, place: usize, value: String) -> Self {
        self.0[place] = value;
        self
    }
}

/// All lines; its display aligns the columns.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = Row(HEADINGS.map(str::to_owned));
        let rows: Vec<&Row> = std::iter::once(&headings).chain(&self.0).collect();
        let widths: Vec<usize> = (0..HEADINGS.len())
            .map(|column| rows.iter().map(|row| row.0[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells = row.0.iter().zip(&widths).enumerate();
            let cells: Vec<String> = cells
                .map(
                    |(column, (cell, width))| {
                        if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

pub(crate) fn us(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1e6)
}

pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1024.0 * 1024.0))
}
