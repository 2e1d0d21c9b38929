//! A report as Markdown, for issues and wikis.

use std::fmt::Write as _;

use super::Report;
use crate::selftest::{Language, Text};

/// The report as Markdown.
pub fn render(report: &Report, language: Language) -> String {
    let say = |en: &str, zh: &str| Text::new(en, zh).get(language).to_owned();
    let mut out = String::new();
    let summary = report.summary;
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        out,
        "# {}: {}\n\n{}: {} · {}: {} · {}: {}\n",
        say("Self-test", "自测报告"),
        report.verdict.text().get(language),
        say("passed", "通过"),
        summary.passed,
        say("failed", "未通过"),
        summary.failed,
        say("not run", "未执行"),
        summary.not_run
    );
    let _ = writeln!(out, "| | |\n|---|---|");
    let mut row = |name: String, value: &str| {
        let _ = writeln!(out, "| {name} | {} |", escape(value));
    };
    row(say("notify URL", "通知地址"), &report.target.url);
    row(say("dialect", "方言"), &format!("{} ({})", report.target.dialect_title, report.target.dialect));
    if let (Some(app), Some(send)) = (&report.target.app, report.target.send) {
        row(say("app", "应用"), app);
        row("send".to_owned(), send);
    }
    row(say("time", "时间"), &format!("{} – {}", report.started, report.finished));
    row(
        say("environment", "环境"),
        &format!("spigate {}, {}, {}", report.spigate, report.environment.system, report.environment.platform),
    );
    for remark in &report.target.remarks {
        let _ = writeln!(out, "\n> {}", escape(remark.get(language)));
    }
    for (group, entries) in report.groups() {
        let _ = writeln!(
            out,
            "\n## {}\n\n| {} | {} | {} | {} |\n|---|---|---|---:|",
            group.title().get(language),
            say("case", "用例"),
            say("what it shows", "说明"),
            say("verdict", "结论"),
            say("time", "耗时")
        );
        for entry in entries {
            let mut text = escape(entry.title.get(language));
            for more in entry.reason.iter().chain(&entry.notes) {
                let _ = write!(text, "<br>{}", escape(more.get(language)));
            }
            let _ = writeln!(
                out,
                "| `{}` | {text} | {} | {:.3} s |",
                entry.id,
                entry.verdict.text().get(language),
                entry.seconds
            );
        }
    }
    for problem in report.problems() {
        let finding = problem.finding;
        let _ = writeln!(
            out,
            "\n## `{}`\n\n{}: {}\n\n- {}: {}\n- {}: {}\n- {}: {}",
            finding.rule,
            say("cases", "用例"),
            problem.cases.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", "),
            say("demanded", "要求"),
            escape(finding.demanded.get(language)),
            say("came", "实际"),
            escape(finding.came.get(language)),
            say("to do", "修复"),
            escape(finding.fix.get(language)),
        );
        for snippet in &finding.snippets {
            let _ = writeln!(out, "\n{}\n", fenced(&snippet.language.to_lowercase(), snippet.code));
        }
    }
    let _ = writeln!(out, "\n## {}", say("Exchanges", "交互记录"));
    for entry in &report.cases {
        for (number, exchange) in entry.exchanges.iter().enumerate() {
            let mut text = format!("GET {}\n", exchange.url);
            if let Some(header) = &exchange.header {
                let _ = writeln!(text, "{header}");
            }
            match &exchange.reply {
                Some(reply) => {
                    let content_type = reply.content_type.as_deref().unwrap_or("–");
                    let cut = if reply.cut { say("\n… (cut)", "\n…（已截断）") } else { String::new() };
                    let _ = write!(
                        text,
                        "\n{} {content_type} ({} B, {:.3} s)\n{}{cut}",
                        reply.status, reply.bytes, exchange.seconds, reply.body
                    );
                }
                None => text.push_str(&format!("\n{}", exchange.failure.as_deref().unwrap_or_default())),
            }
            let _ = writeln!(
                out,
                "\n### `{}` {}. {}\n\n{}",
                entry.id,
                number + 1,
                escape(exchange.label.get(language)),
                fenced("http", &text)
            );
        }
    }
    out
}

/// Text that no renderer takes for anything else.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // A name behind it would be told.
            '@' => out.push_str("&#64;"),
            '\n' => out.push(' '),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' | '$' | '!' => {
                out.push('\\');
                out.push(char);
            }
            _ => out.push(char),
        }
    }
    out
}

/// A block of code whose fence is longer than any in it.
fn fenced(language: &str, code: &str) -> String {
    let longest = code.split(|char| char != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}", code.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::report::sample;

    #[test]
    fn hostile_text_stays_text() {
        let markdown = render(&sample::report(), Language::En);
        let outside: String = {
            let mut fence: Option<&str> = None;
            let mut kept = Vec::new();
            for line in markdown.lines() {
                let ticks = &line[..line.len() - line.trim_start_matches('`').len()];
                match fence {
                    Some(open) if line == open => fence = None,
                    Some(_) => {}
                    None if ticks.len() >= 3 => fence = Some(ticks),
                    None => kept.push(line),
                }
            }
            assert_eq!(fence, None, "a fence is open: {markdown}");
            kept.join("\n")
        };
        assert!(!outside.contains("<script") && !outside.contains("@all") && !outside.contains("\n# h"), "{outside}");
        assert!(outside.contains("&lt;script&gt;"), "{outside}");
    }

    #[test]
    fn both_languages() {
        assert!(render(&sample::report(), Language::Zh).starts_with("# 自测报告: 未通过"));
        assert!(render(&sample::report(), Language::En).starts_with("# Self-test: Failed"));
    }
}
