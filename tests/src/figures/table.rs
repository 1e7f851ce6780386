//! The table, for the terminal and for the README.

use imsvisor_boot::machine::Kind;

use super::Figure;

const COLUMNS: usize = 9;
const HEADS: [&str; COLUMNS] =
    ["scenario", "variant", "live slots", "vCPUs", "exits/op", "min", "median", "p99", "× null exit"];
/// The first two columns are words, the others numbers.
const WORDS: usize = 2;

fn rows(figures: &[Figure]) -> Vec<[String; COLUMNS]> {
    figures.iter().map(row).collect()
}

fn row(figure: &Figure) -> [String; COLUMNS] {
    [
        figure.scenario.clone(),
        figure.variant.clone(),
        figure.slots.to_string(),
        figure.vcpus.to_string(),
        exits(figure.exits_per_op),
        grouped(figure.min),
        grouped(figure.median),
        grouped(figure.p99),
        format!("{:.2}", figure.ratio()),
    ]
}

/// Exits of an operation, as short as can be.
pub fn exits(count: f64) -> String {
    let text = format!("{count:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A whole number with its thousands apart.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The columns' heads, where times are counted in `unit`.
fn heads(unit: &str) -> [String; COLUMNS] {
    let timed = ["min", "median", "p99"];
    HEADS.map(|head| if timed.contains(&head) { format!("{head}, {unit}") } else { head.to_owned() })
}

/// For a terminal: columns under each other. The unit stands above them, or they would be wider than most terminals.
pub fn terminal(figures: &[Figure], kind: Kind) -> String {
    let mut rows = rows(figures);
    // Where an exit costs what the outer hypervisor makes of it, the ratio says more with what it is a ratio to.
    if kind != Kind::Bochs {
        for (row, figure) in rows.iter_mut().zip(figures) {
            row[COLUMNS - 1] = format!("{} × {}", row[COLUMNS - 1], grouped(figure.null_exit));
        }
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADS[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |cells: [&str; COLUMNS]| {
        let cell = |(n, text): (usize, &str)| {
            let width = widths[n];
            if n < WORDS { format!("  {text:<width$}") } else { format!("  {text:>width$}") }
        };
        cells.into_iter().enumerate().map(cell).collect::<String>() + "\n"
    };
    let head = format!("\n  VM exits and {} of one operation\n", kind.unit());
    let mut text =
        format!("{head}\n{}  {}\n", line(HEADS), "─".repeat(widths.iter().sum::<usize>() + 2 * (COLUMNS - 1)));
    rows.iter().for_each(|row| text += &line(row.each_ref().map(String::as_str)));
    text
}

/// For the README.
pub fn markdown(figures: &[Figure]) -> String {
    let mut text =
        format!("| {} |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n", heads(Kind::Bochs.unit()).join(" | "));
    rows(figures).iter().for_each(|row| text += &format!("| {} |\n", row.join(" | ")));
    text
}

#[cfg(test)]
mod tests {
    use super::super::figure;
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!([0.0, 999.6, 1000.0, 1_234_567.0].map(grouped), ["0", "1,000", "1,000", "1,234,567"]);
        assert_eq!([1.0, 0.0625, 10.0, 2.90625, 0.0].map(exits), ["1", "0.0625", "10", "2.9062", "0"]);
    }

    #[test]
    fn columns_stand_under_each_other() {
        let text =
            terminal(&[figure("mask", "trapped", 16, 1234.0), figure("a-long-scenario", "x", 4096, 7.0)], Kind::Kvm);
        let mut lines = text.lines().filter(|line| !line.is_empty());
        assert_eq!(lines.next(), Some("  VM exits and TSC ticks of one operation"));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].ends_with("12.34 × 100"), "what the ratio is to: {text}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
    }

    #[test]
    fn the_readme_s_table_has_a_row_for_each_figure() {
        let text = markdown(&[figure("mask", "trapped", 16, 1234.0)]);
        assert!(
            text.contains("| exits/op | min, instructions | median, instructions | p99, instructions | ×"),
            "{text}"
        );
        assert!(text.ends_with("| mask | trapped | 16 | 1 | 1 | 1,233 | 1,234 | 1,235 | 12.34 |\n"), "{text}");
        assert!(text.lines().all(|line| line.matches('|').count() == COLUMNS + 1), "{text}");
    }
}
