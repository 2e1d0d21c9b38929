//! A report as JUnit XML, which every CI server reads: a test suite for each group.

use std::fmt::Write as _;

use super::{Entry, Report, Verdict};
use crate::selftest::Language;

/// The report as XML.
pub fn render(report: &Report, language: Language) -> String {
    let summary = report.summary;
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let seconds: f64 = report.cases.iter().map(|entry| entry.seconds).sum();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        out,
        "<testsuites name=\"spigate selftest\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{seconds:.3}\">",
        summary.total, summary.failed, summary.not_run
    );
    for (group, entries) in report.groups() {
        let count = |verdict| entries.iter().filter(|entry| entry.verdict == verdict).count();
        let _ = writeln!(
            out,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" timestamp=\"{}\">",
            group.name(),
            entries.len(),
            count(Verdict::Failed),
            count(Verdict::NotRun),
            escape(report.started.trim_end_matches('Z')),
        );
        for entry in entries {
            case(&mut out, report, entry, language);
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn case(out: &mut String, report: &Report, entry: &Entry, language: Language) {
    let class = format!("spigate.{}.{}", report.target.dialect, entry.group.name());
    let _ = write!(
        out,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escape(&class),
        escape(&entry.id),
        entry.seconds
    );
    match entry.verdict {
        Verdict::Passed => out.push_str("/>\n"),
        Verdict::NotRun => {
            let why = entry.reason.as_ref().map_or("", |reason| reason.get(language));
            let _ = writeln!(out, ">\n      <skipped message=\"{}\"/>\n    </testcase>", escape(why));
        }
        Verdict::Failed => {
            let rules: Vec<_> = entry.findings.iter().map(|finding| finding.rule.as_str()).collect();
            let mut text = format!("{}\n", entry.title.get(language));
            for finding in &entry.findings {
                let parts = [&finding.demanded, &finding.came, &finding.fix].map(|part| part.get(language));
                let _ = writeln!(
                    text,
                    "\n{}\n  demanded: {}\n  came: {}\n  to do: {}",
                    finding.rule, parts[0], parts[1], parts[2]
                );
                for snippet in &finding.snippets {
                    let _ = writeln!(text, "  {}: {}", snippet.language, snippet.code.replace('\n', "\n    "));
                }
            }
            let rules = rules.join(", ");
            let _ = writeln!(
                out,
                ">\n      <failure type=\"{0}\" message=\"{0}\">{1}</failure>\n    </testcase>",
                escape(&rules),
                escape(&text)
            );
        }
    }
}

/// Text for XML 1.0, between tags and in attributes; what XML cannot hold is shown escaped.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            '\u{fffe}' | '\u{ffff}' => out.extend(char.escape_default()),
            _ if char.is_control() => out.extend(char.escape_default()),
            _ => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::report::sample;

    #[test]
    fn hostile_text_stays_text() {
        let xml = render(&sample::report(), Language::En);
        assert!(!xml.contains("<script") && !xml.contains("]]>"), "{xml}");
        assert!(xml.contains("&lt;script&gt;alert(1)"));
        assert!(
            xml.contains("<testsuites name=\"spigate selftest\" tests=\"4\" failures=\"2\" skipped=\"1\""),
            "{xml}"
        );
        assert!(xml.contains("<skipped message=\"no time\"/>"));
        assert_eq!(xml.matches("<testcase").count(), 4);
    }

    #[test]
    fn what_xml_cannot_hold_is_escaped() {
        assert_eq!(escape("a\u{0}\u{1b}\u{fffe}\t<&>\""), "a\\u{0}\\u{1b}\\u{fffe}\\t&lt;&amp;&gt;&quot;");
    }
}
