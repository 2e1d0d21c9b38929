//! A report for a terminal, 100 columns wide: every case in a line, then each fault with its advice.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::{Report, Verdict};
use crate::selftest::{Language, Text};

/// Reads well in most terminals, and in print.
const WIDTH: u16 = 100;
const MARK: u16 = 8;
const CASE: u16 = 24;
const TIME: u16 = 9;
/// Two columns of advice.
const LABEL: u16 = 10;

/// The report as text.
pub fn render(report: &Report, language: Language) -> String {
    let mut out = String::new();
    for (group, entries) in report.groups() {
        let mut rows = Vec::new();
        for entry in entries {
            let mark = entry.verdict.text();
            let mut text = entry.title.get(language).to_owned();
            for more in entry.reason.iter().chain(&entry.notes) {
                text.push_str(&format!("\n- {}", more.get(language)));
            }
            let time = if entry.verdict == Verdict::NotRun { String::new() } else { format!("{:.3} s", entry.seconds) };
            rows.push([mark.get(language).to_owned(), entry.id.clone(), text, time]);
        }
        let table = columns(rows, [MARK, CASE, WIDTH - MARK - CASE - TIME, TIME]);
        out.push_str(&format!("{}\n{table}\n\n", group.title().get(language)));
    }
    for (number, problem) in report.problems().iter().enumerate() {
        let finding = problem.finding;
        let mut rows = Vec::new();
        let mut row = |label: &Text, text: &str| rows.push([label.get(language).to_owned(), text.to_owned()]);
        row(&Text::new("cases", "用例"), &problem.cases.join(", "));
        row(&Text::new("demanded", "要求"), finding.demanded.get(language));
        row(&Text::new("came", "实际"), finding.came.get(language));
        row(&Text::new("to do", "修复"), finding.fix.get(language));
        for snippet in &finding.snippets {
            row(&Text::new(snippet.language, snippet.language), snippet.code);
        }
        let table = columns(rows, [LABEL, WIDTH - LABEL]);
        out.push_str(&format!("{}. {}\n{table}\n\n", number + 1, finding.rule));
    }
    let left_out = report.left_out.len();
    if left_out > 0 {
        let text = Text::new(
            format!("{left_out} cases were left out; --list shows all."),
            format!("未选择 {left_out} 个用例；--list 可查看全部。"),
        );
        out.push_str(&format!("{}\n", text.get(language)));
    }
    let summary = report.summary;
    let text = Text::new(
        format!(
            "{}: {} passed, {} failed, {} not run",
            report.verdict.text().en,
            summary.passed,
            summary.failed,
            summary.not_run
        ),
        format!(
            "{}：通过 {}，未通过 {}，未执行 {}",
            report.verdict.text().zh,
            summary.passed,
            summary.failed,
            summary.not_run
        ),
    );
    out.push_str(text.get(language));
    out
}

/// Rows without lines around them, in columns that are so wide.
fn columns<const N: usize>(rows: Vec<[String; N]>, widths: [u16; N]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.add_rows(rows);
    table.set_constraints(widths.map(|width| ColumnConstraint::Absolute(Width::Fixed(width))));
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::selftest::report::sample;

    #[test]
    fn no_line_is_wider_than_a_terminal_in_either_language() {
        for language in [Language::En, Language::Zh] {
            let text = render(&sample::report(), language);
            let widest = text.lines().map(UnicodeWidthStr::width).max().unwrap();
            assert!(widest <= usize::from(WIDTH), "{widest}:\n{text}");
            assert!(text.contains("create, renew") && text.contains("header('Content-Type"), "{text}");
        }
    }

    #[test]
    fn columns_begin_at_the_same_place_in_chinese() {
        let text = render(&sample::report(), Language::Zh);
        let begins: Vec<_> =
            text.lines().filter_map(|line| Some(line.split_once("购买后创建实例")?.0.width())).collect();
        assert_eq!(begins.len(), 4);
        assert!(begins.iter().all(|begin| *begin == begins[0]), "{text}");
    }

    #[test]
    fn a_closing_line_says_what_it_came_to() {
        let text = render(&sample::report(), Language::En);
        assert!(text.ends_with("Failed: 1 passed, 2 failed, 1 not run"), "{text}");
    }
}
