//! A report as one HTML page without script or anything from elsewhere, in both languages, made to be
//! printed on A4 and handed in. The page is `templates/selftest/report.html`; askama escapes every
//! text in it.

use askama::Template;

use super::{Entry, Problem, Report};
use crate::selftest::Text;
use crate::selftest::evidence::Received;

#[derive(Template)]
#[template(path = "selftest/report.html")]
struct Page<'a> {
    report: &'a Report,
    problems: Vec<Problem<'a>>,
}

/// The report as HTML.
///
/// # Errors
/// None for a page that is written to a text.
pub fn render(report: &Report) -> Result<String, askama::Error> {
    Page { report, problems: report.problems() }.render()
}

impl Page<'_> {
    /// What the platform makes of a reply, in words.
    fn platform(&self, word: &str) -> Text {
        match word {
            "success" => Text::new("success", "成功"),
            "refused" => Text::new("refused for good", "最终拒绝"),
            _ => Text::new("no answer: comes again", "无效应答，将重试"),
        }
    }

    /// Whether an exchange sent the bytes of the one before.
    fn repeats(&self, entry: &Entry, index: &usize) -> bool {
        let exchange = |index: usize| entry.exchanges.get(index).map(|exchange| &exchange.url);
        index.checked_sub(1).is_some_and(|before| exchange(before) == exchange(*index))
    }

    /// A time in seconds.
    fn time(&self, seconds: &f64) -> String {
        format!("{seconds:.3} s")
    }

    fn size(&self, reply: &Received) -> String {
        match reply.bytes {
            bytes @ 0..10_000 => format!("{bytes} B"),
            bytes => format!("{} KiB", bytes / 1_024),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::report::sample;

    #[test]
    fn hostile_text_stays_text_and_nothing_is_fetched() {
        let html = render(&sample::report()).unwrap();
        for markup in ["<script", "<!--", "javascript:", "src=", "href=\"http", "url(", "@import"] {
            assert!(!html.contains(markup), "{markup}");
        }
        assert!(html.contains("alert(1)"));
        assert!(html.starts_with("<!DOCTYPE html>"));
    }

    #[test]
    fn both_languages_stand_in_one_document() {
        let html = render(&sample::report()).unwrap();
        for text in ["购买后创建实例", "A purchase makes an instance", "未通过", "没有时间", "took 7.0 s"]
        {
            assert!(html.contains(text), "{text}");
        }
    }
}
