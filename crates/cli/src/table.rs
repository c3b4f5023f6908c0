//! Tables and bars of plain text.

/// Rows of cells, padded to columns. The first column is text, the others are numbers.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if column == 0 {
                line.push_str(cell);
                line.push_str(&pad);
            } else {
                line.push_str("  ");
                line.push_str(&pad);
                line.push_str(cell);
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A bar of `width` characters of which `share` (0 to 1) is filled; anything above 0 shows.
pub(crate) fn bar(share: f64, width: usize) -> String {
    let share = share.clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most `width`
    let mut filled = (share * width as f64).round() as usize;
    if share > 0.0 {
        filled = filled.max(1);
    }
    format!("{}{}", "█".repeat(filled), "░".repeat(width.saturating_sub(filled)))
}

/// A number for people: three digits that count, more only before the point.
pub(crate) fn figures(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["weights".into(), "5".into()], vec!["KV".into(), "123".into()]];
        assert_eq!(table(&rows), "  weights    5\n  KV       123\n");
    }

    #[test]
    fn bars_fill() {
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(0.001, 4), "█░░░");
        assert_eq!(bar(0.0, 4), "░░░░");
        assert_eq!(bar(7.0, 2), "██");
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in
            [(0.0, "0.000"), (0.12345, "0.123"), (1.0, "1.00"), (12.345, "12.3"), (1024.4, "1024")]
        {
            assert_eq!(figures(value), text);
        }
    }
}
