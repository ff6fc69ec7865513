//! Figures into lines.

use std::fmt;
use std::time::Duration;

/// One line: figures of one unit, and what ours should be.
pub(crate) struct Row {
    what: String,
    decimals: usize,
    direct: Option<f64>,
    relay: Option<f64>,
    ours: f64,
    /// Whether what counts is the time above the direct route's.
    is_added: bool,
    target: Option<Target>,
}

#[derive(Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

const HEADINGS: [&str; 8] = ["", "direct", "pass-through", "ours", "added", "ratio", "target", ""];

impl Row {
    /// The worker's or the supervisor's figure, shown with so many decimals.
    pub(crate) fn new(what: impl Into<String>, decimals: usize, ours: f64) -> Self {
        Self { what: what.into(), decimals, direct: None, relay: None, ours, is_added: false, target: None }
    }

    /// Beside that of the pass-through.
    pub(crate) fn beside(mut self, relay: f64) -> Self {
        self.relay = Some(relay);
        self
    }

    /// Beside those of both floors; what is added to the direct route is what counts.
    pub(crate) fn above(mut self, direct: f64, relay: f64) -> Self {
        self.direct = Some(direct);
        self.is_added = true;
        self.beside(relay)
    }

    pub(crate) fn at_most(mut self, target: f64) -> Self {
        self.target = Some(Target::AtMost(target));
        self
    }

    pub(crate) fn at_least(mut self, target: f64) -> Self {
        self.target = Some(Target::AtLeast(target));
        self
    }

    fn cells(&self) -> [String; 8] {
        let show = |value: f64| format!("{value:.*}", self.decimals);
        let base = self.direct.filter(|_| self.is_added).unwrap_or(0.0);
        let counts = self.ours - base;
        let ratio = self.relay.map(|relay| relay - base).filter(|floor| *floor > 0.0).map(|floor| counts / floor);
        let (target, is_reached) = match self.target {
            None => (String::new(), None),
            Some(Target::AtMost(most)) => (format!("≤ {most}"), Some(counts <= most)),
            Some(Target::AtLeast(least)) => (format!("≥ {least}"), Some(counts >= least)),
        };
        [
            self.what.clone(),
            self.direct.map(show).unwrap_or_default(),
            self.relay.map(show).unwrap_or_default(),
            show(self.ours),
            if self.is_added { show(counts) } else { String::new() },
            ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            target,
            is_reached.map_or("", |is_reached| if is_reached { "reached" } else { "MISSED" }).to_owned(),
        ]
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
        let rows: Vec<_> = std::iter::once(HEADINGS.map(str::to_owned)).chain(self.0.iter().map(Row::cells)).collect();
        let widths: [usize; HEADINGS.len()] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for row in rows {
            let cells = row.iter().zip(widths).enumerate();
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

pub(crate) fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
