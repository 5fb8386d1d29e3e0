//! The results: every round in JSON, medians in a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

/// A figure that each round of an arm gives.
#[derive(Clone, Copy, Serialize)]
pub struct Column {
    /// In JSON.
    pub name: &'static str,
    /// Over the table.
    pub title: &'static str,
    pub decimals: usize,
}

pub const fn column(name: &'static str, title: &'static str, decimals: usize) -> Column {
    Column {
        name,
        title,
        decimals,
    }
}

/// An arm has the same name in tables as among the options.
pub trait Named {
    fn name(self) -> String;
}

impl<T: ValueEnum> Named for T {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// One round's figures by column; those that an arm lacks are left out.
pub type Figures = BTreeMap<&'static str, f64>;

#[derive(Serialize)]
pub struct Report {
    pub title: String,
    columns: Vec<Column>,
    arms: Vec<Arm>,
    pub notes: Vec<String>,
    /// Not measured: there are no rounds.
    #[serde(skip)]
    is_computed: bool,
}

#[derive(Serialize)]
struct Arm {
    name: String,
    rounds: Vec<Figures>,
    medians: Figures,
}

impl Report {
    pub fn new(title: impl Into<String>, columns: &[Column]) -> Self {
        Self {
            title: title.into(),
            columns: columns.to_vec(),
            arms: Vec::new(),
            notes: Vec::new(),
            is_computed: false,
        }
    }

    /// For figures that are the same in every round, since nothing is measured.
    pub fn computed(title: impl Into<String>, columns: &[Column]) -> Self {
        Self {
            is_computed: true,
            ..Self::new(title, columns)
        }
    }

    /// Adds a round's figures to an arm.
    pub fn add(&mut self, name: &str, figures: Figures) {
        let at = self
            .arms
            .iter()
            .position(|arm| arm.name == name)
            .unwrap_or_else(|| {
                self.arms.push(Arm {
                    name: name.to_owned(),
                    rounds: Vec::new(),
                    medians: Figures::new(),
                });
                self.arms.len() - 1
            });
        let arm = &mut self.arms[at];
        arm.rounds.push(figures);
        arm.medians = medians(&arm.rounds);
    }

    /// A figure of all arms and rounds together; `None` where no round has it.
    pub fn total(&self, column: &str) -> Option<f64> {
        let rounds = self.arms.iter().flat_map(|arm| &arm.rounds);
        rounds
            .filter_map(|round| round.get(column))
            .copied()
            .reduce(|sum, value| sum + value)
    }

    pub fn median(&self, arm: &str, column: &str) -> Option<f64> {
        let arm = self.arms.iter().find(|candidate| candidate.name == arm)?;
        arm.medians.get(column).copied()
    }

    /// One arm's figure over another's, round by round: the median of that, which the machine's mood in a round
    /// touches least.
    pub fn ratio(&self, arm: &str, base: &str, column: &str) -> Option<f64> {
        let rounds = |name: &str| Some(&self.arms.iter().find(|arm| arm.name == name)?.rounds);
        let pairs = rounds(arm)?.iter().zip(rounds(base)?);
        let ratio = |(arm, base): (&Figures, &Figures)| Some(arm.get(column)? / base.get(column)?);
        median(&pairs.filter_map(ratio).collect::<Vec<_>>())
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A table for people, which is Markdown as well.
    pub fn table(&self) -> String {
        let mut rows = vec![
            std::iter::once(String::new())
                .chain(self.columns.iter().map(|c| c.title.to_owned()))
                .collect(),
        ];
        for arm in &self.arms {
            let mut row = vec![arm.name.clone()];
            row.extend(self.columns.iter().map(|column| arm.cell(column)));
            rows.push(row);
        }
        let rounds = self.arms.iter().map(|arm| arm.rounds.len()).max().unwrap_or(0);
        let of = match self.is_computed {
            true => String::new(),
            false => format!(" (median of {rounds}, range in brackets)"),
        };
        let mut text = format!("\n{}{of}\n\n{}", self.title, align(&rows));
        for note in &self.notes {
            let _ = write!(text, "\n{note}");
        }
        text
    }
}

impl Arm {
    fn cell(&self, column: &Column) -> String {
        let values: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|round| round.get(column.name).copied())
            .collect();
        let Some(median) = median(&values) else {
            return "-".into();
        };
        let decimals = column.decimals;
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(least, most), &value| {
            (least.min(value), most.max(value))
        });
        let (least, most) = (format!("{least:.decimals$}"), format!("{most:.decimals$}"));
        if least == most {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({least}..{most})")
    }
}

fn medians(rounds: &[Figures]) -> Figures {
    let names: std::collections::BTreeSet<_> =
        rounds.iter().flat_map(|round| round.keys().copied()).collect();
    let of = |name| {
        let values: Vec<f64> = rounds
            .iter()
            .filter_map(|round| round.get(name).copied())
            .collect();
        Some((name, median(&values)?))
    };
    names.into_iter().filter_map(of).collect()
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Rows as a Markdown table with columns of one width; the first row is the heading.
fn align(rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for &width in &widths {
                let _ = write!(text, "| {} ", "-".repeat(width.max(3)));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Progress messages; results go to stdout.
pub fn progress(text: &str) {
    eprintln!("{text}");
}

/// Writes reports as one JSON file.
pub fn write_json(path: &Path, reports: &[Report]) -> Result<()> {
    let text = serde_json::to_string_pretty(reports)?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_what_is_there() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_table_has_an_arm_a_line_and_a_dash_for_what_is_missing() {
        let mut report = Report::new("T", &[column("a", "a, us", 1), column("b", "b", 0)]);
        report.add("x", Figures::from([("a", 1.0), ("b", 5.0)]));
        report.add("x", Figures::from([("a", 3.0), ("b", 5.0)]));
        report.add("y", Figures::from([("a", 7.25)]));
        let table = report.table();
        assert!(table.contains("| x | 2.0 (1.0..3.0) | 5 |"), "{table}");
        assert!(table.contains("| y | 7.2            | - |"), "{table}");
        assert_eq!(report.median("x", "a"), Some(2.0));
        assert_eq!((report.total("b"), report.total("c")), (Some(10.0), None));
        assert!(
            table.starts_with("\nT (median of 2, range in brackets)\n"),
            "{table}"
        );
        let computed = Report::computed("T", &[]).table();
        assert!(computed.starts_with("\nT\n"), "{computed}");
        report.add("y", Figures::from([("a", 3.0)]));
        assert_eq!(report.ratio("y", "x", "a"), Some((7.25 + 1.0) / 2.0));
        assert_eq!(report.ratio("y", "z", "a"), None);
    }
}
