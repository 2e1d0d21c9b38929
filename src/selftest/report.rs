//! What was found: the data of a report, and its forms.
//!
//! The JSON form is these types as they stand, and documented in docs/selftest.md: a change of a name
//! here raises [`FORMAT`].

pub mod html;
pub mod junit;
pub mod markdown;
pub mod table;

use serde::Serialize;

use super::Text;
use super::advice::Finding;
use super::case::{Case, Group};
use super::evidence::Exchange;

/// The version of the JSON form.
pub const FORMAT: u32 = 1;

/// A report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of spigate.
    pub spigate: &'static str,
    /// What it comes to.
    pub verdict: Overall,
    /// Whether the user ended the run.
    pub interrupted: bool,
    /// When it began.
    pub started: String,
    /// When it ended.
    pub finished: String,
    /// What was tested.
    pub target: Tested,
    /// Where.
    pub environment: Environment,
    /// How many cases came to what.
    pub summary: Summary,
    /// Cases that were not chosen.
    pub left_out: Vec<LeftOut>,
    /// The cases, in the order of the run.
    pub cases: Vec<Entry>,
}

/// What was tested.
#[derive(Clone, Debug, Serialize)]
pub struct Tested {
    /// `url` or `config`.
    pub mode: &'static str,
    /// The notify URL.
    pub url: String,
    /// With a configuration: the app.
    pub app: Option<String>,
    /// With a configuration: the form of the backend's requests.
    pub send: Option<&'static str>,
    /// The dialect's name.
    pub dialect: String,
    /// The dialect's name for humans.
    pub dialect_title: String,
    /// What the user should know of how it was tested.
    pub remarks: Vec<Text>,
}

/// Where the test ran.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The operating system, as it calls itself.
    pub system: String,
    /// Its kind and the processor's.
    pub platform: String,
}

/// What a case came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it must.
    Passed,
    /// Otherwise.
    Failed,
    /// It was not run, or not to its end.
    NotRun,
}

/// What a report comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overall {
    /// Every chosen case passed.
    Passed,
    /// A case failed.
    Failed,
    /// None failed, but not all were run.
    Incomplete,
}

/// How many cases came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All of them.
    pub total: usize,
    /// Those that passed.
    pub passed: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were not run.
    pub not_run: usize,
}

/// A case that was not chosen.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub id: String,
    /// Why.
    pub why: Text,
}

/// A case and what it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its name.
    pub id: String,
    /// What it belongs to.
    pub group: Group,
    /// What it shows.
    pub title: Text,
    /// Whether its orders are real ones.
    pub real: bool,
    /// What it came to.
    pub verdict: Verdict,
    /// Why it was not run to its end.
    pub reason: Option<Text>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is remarkable.
    pub notes: Vec<Text>,
    /// What was sent and what came.
    pub exchanges: Vec<Exchange>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Entry {
    /// A case that nothing is known of yet.
    pub fn of(case: &Case) -> Self {
        Self {
            id: case.id.clone(),
            group: case.group,
            title: case.title.clone(),
            real: case.real,
            verdict: Verdict::NotRun,
            reason: None,
            findings: Vec::new(),
            notes: Vec::new(),
            exchanges: Vec::new(),
            seconds: 0.0,
        }
    }

    /// A case that was not run.
    pub fn not_run(case: &Case, why: Text) -> Self {
        Self { reason: Some(why), ..Self::of(case) }
    }
}

impl Verdict {
    /// In words.
    pub fn text(self) -> Text {
        match self {
            Self::Passed => Text::new("passed", "通过"),
            Self::Failed => Text::new("FAILED", "未通过"),
            Self::NotRun => Text::new("not run", "未执行"),
        }
    }

    /// As a word for style sheets.
    pub fn class(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not-run",
        }
    }
}

impl Overall {
    /// In words.
    pub fn text(self) -> Text {
        match self {
            Self::Passed => Text::new("Passed", "通过"),
            Self::Failed => Text::new("Failed", "未通过"),
            Self::Incomplete => Text::new("Incomplete", "未完成"),
        }
    }

    /// As a word for style sheets.
    pub fn class(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Incomplete => "not-run",
        }
    }
}

impl Summary {
    /// Counts.
    pub fn of(entries: &[Entry]) -> Self {
        let count = |verdict| entries.iter().filter(|entry| entry.verdict == verdict).count();
        Self {
            total: entries.len(),
            passed: count(Verdict::Passed),
            failed: count(Verdict::Failed),
            not_run: count(Verdict::NotRun),
        }
    }

    /// What they come to.
    pub fn verdict(self) -> Overall {
        match self {
            Self { failed: 1.., .. } => Overall::Failed,
            Self { not_run: 1.., .. } => Overall::Incomplete,
            // Nothing was tried, so nothing was shown.
            Self { passed: 0, .. } => Overall::Incomplete,
            _ => Overall::Passed,
        }
    }
}

/// A fault with the cases that have it.
pub struct Problem<'a> {
    /// The fault.
    pub finding: &'a Finding,
    /// Names of the cases.
    pub cases: Vec<&'a str>,
}

impl Report {
    /// Each fault once, however many cases have it.
    pub fn problems(&self) -> Vec<Problem<'_>> {
        let mut problems: Vec<Problem<'_>> = Vec::new();
        for entry in &self.cases {
            for finding in &entry.findings {
                let same = problems.iter_mut().find(|problem| {
                    (&problem.finding.rule, &problem.finding.came.en, &problem.finding.fix.en)
                        == (&finding.rule, &finding.came.en, &finding.fix.en)
                });
                match same {
                    Some(problem) => problem.cases.push(&entry.id),
                    None => problems.push(Problem { finding, cases: vec![&entry.id] }),
                }
            }
        }
        problems
    }

    /// Groups in the order of the run, with their cases.
    pub fn groups(&self) -> Vec<(Group, Vec<&Entry>)> {
        let mut groups: Vec<(Group, Vec<&Entry>)> = Vec::new();
        for entry in &self.cases {
            match groups.last_mut() {
                Some((group, entries)) if *group == entry.group => entries.push(entry),
                _ => groups.push((entry.group, vec![entry])),
            }
        }
        groups
    }

    /// As JSON.
    ///
    /// # Errors
    /// None for these types.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

#[cfg(test)]
pub(crate) mod sample {
    //! A report full of what a hostile backend could answer, for the tests of its forms.

    use super::*;
    use crate::selftest::advice::{About, finding};
    use crate::selftest::case::Expect;
    use crate::selftest::evidence::{Parameter, Received};
    use crate::selftest::verdict::Fault;

    /// Markup of every form, and what breaks out of it.
    pub(crate) const HOSTILE: &str = "</pre><script>alert(1)</script>]]> ``` | <!-- \"' @all &lt; \\u{1b}[2J\n# h";

    pub(crate) fn report() -> Report {
        let about = About { gateway: false, action: "Create", expect: Expect::Success };
        let wrong = finding(&Fault::ContentType(Some(HOSTILE.to_owned())), &about);
        let exchange = Exchange {
            label: Text::new("Create", "创建"),
            at: "2026-11-25T09:00:00Z".into(),
            url: format!("http://h/spi?x={HOSTILE}"),
            header: None,
            parameters: vec![Parameter { name: HOSTILE.into(), value: HOSTILE.into() }],
            reply: Some(Received {
                status: 200,
                content_type: Some(HOSTILE.into()),
                body: HOSTILE.into(),
                bytes: 9,
                cut: true,
            }),
            failure: None,
            platform: "retry",
            seconds: 0.012,
            backend: Vec::new(),
        };
        let entry = |id: &str, verdict, findings: Vec<Finding>| Entry {
            id: id.into(),
            group: Group::Lifecycle,
            title: Text::new("A purchase makes an instance", "购买后创建实例"),
            real: false,
            verdict,
            reason: (verdict == Verdict::NotRun).then(|| Text::new("no time", "没有时间")),
            findings,
            notes: vec![Text::new("took 7.0 s", "耗时 7 秒")],
            exchanges: vec![exchange.clone()],
            seconds: 0.5,
        };
        let cases = vec![
            entry("create", Verdict::Failed, vec![wrong.clone()]),
            entry("renew", Verdict::Failed, vec![wrong]),
            entry("upgrade", Verdict::Passed, vec![]),
            entry("delete", Verdict::NotRun, vec![]),
        ];
        let summary = Summary::of(&cases);
        Report {
            format: FORMAT,
            spigate: "0.1.0",
            verdict: summary.verdict(),
            interrupted: false,
            started: "2026-11-25T09:00:00Z".into(),
            finished: "2026-11-25T09:00:09Z".into(),
            target: Tested {
                mode: "url",
                url: "https://shop.example/spi".into(),
                app: None,
                send: None,
                dialect: "d".into(),
                dialect_title: HOSTILE.into(),
                remarks: vec![Text::new("remark", "说明")],
            },
            environment: Environment { system: "Debian".into(), platform: "linux x86_64".into() },
            summary,
            left_out: vec![LeftOut { id: "busy".into(), why: Text::new("slow", "耗时") }],
            cases,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_passes_only_if_something_was_run_and_all_of_it_passed() {
        let summary = |passed, failed, not_run| Summary { total: passed + failed + not_run, passed, failed, not_run };
        assert_eq!(summary(3, 0, 0).verdict(), Overall::Passed);
        assert_eq!(summary(3, 1, 1).verdict(), Overall::Failed);
        assert_eq!(summary(3, 0, 1).verdict(), Overall::Incomplete);
        assert_eq!(summary(0, 0, 0).verdict(), Overall::Incomplete);
    }

    #[test]
    fn the_same_fault_of_two_cases_is_told_once() {
        let report = sample::report();
        let problems = report.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].cases, ["create", "renew"]);
    }

    #[test]
    fn json_has_every_part_under_its_documented_name() {
        let json: serde_json::Value = serde_json::from_str(&sample::report().to_json().unwrap()).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["verdict"], "failed");
        assert_eq!(json["summary"], serde_json::json!({"total": 4, "passed": 1, "failed": 2, "not_run": 1}));
        let case = &json["cases"][0];
        assert_eq!(
            (&case["id"], &case["group"], &case["verdict"]),
            (&"create".into(), &"lifecycle".into(), &"failed".into())
        );
        assert_eq!(case["findings"][0]["rule"], "content_type");
        assert_eq!(case["findings"][0]["snippets"][0]["language"], "PHP");
        assert_eq!(case["exchanges"][0]["reply"]["body"], sample::HOSTILE);
        assert_eq!(json["cases"][3]["reason"]["zh"], "没有时间");
    }
}
