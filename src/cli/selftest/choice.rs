//! Which cases are run: what the user names, and what the user allows.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use comfy_table::{Table, presets};

use crate::cli::{Failure, terminal};
use crate::dialect::Dialect;
use crate::selftest::case::{Case, Group};
use crate::selftest::report::LeftOut;
use crate::selftest::{Language, Text};

/// Which cases are run.
#[derive(Args)]
pub(super) struct Choice {
    /// Only these cases or groups, by their names in --list; separated by commas, or repeated
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Also cases that take long; there is no limit of time then
    #[arg(long)]
    pub(super) slow: bool,
    /// No real orders, only those that are marked as trials
    #[arg(long, conflicts_with = "yes")]
    debug_only: bool,
    /// Do not ask before real orders
    #[arg(long)]
    yes: bool,
}

/// For each case whether it was chosen, or why not.
pub(super) struct Chosen(Vec<Result<(), Text>>);

/// Whether real orders are allowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Real {
    Allowed,
    Refused,
}

impl Choice {
    /// Which of the cases it names.
    ///
    /// # Errors
    /// A name that is none.
    pub(super) fn of(&self, cases: &[Case]) -> Result<Chosen, Failure> {
        for name in &self.only {
            if !cases.iter().any(|case| case.id == *name || case.group.name() == name) {
                let name = terminal::plain(name);
                return Err(Failure::unusable(format!("--only: no case or group is called {name} here; see --list")));
            }
        }
        let named = |case: &Case| self.only.iter().any(|name| case.id == *name || case.group.name() == name);
        let choose = |case: &Case| {
            if !self.only.is_empty() && !named(case) {
                return Err(Text::new("--only", "--only"));
            }
            if case.group == Group::Slow && !self.slow && !named(case) {
                return Err(Text::new("takes long: --slow", "耗时：--slow"));
            }
            if case.real && self.debug_only {
                return Err(Text::new("--debug-only", "--debug-only"));
            }
            Ok(())
        };
        Ok(Chosen(cases.iter().map(choose).collect()))
    }
}

impl Chosen {
    /// Whether cases that take long are among the chosen.
    pub(super) fn has_slow(&self, cases: &[Case]) -> bool {
        cases.iter().zip(&self.0).any(|(case, chosen)| chosen.is_ok() && case.group == Group::Slow)
    }

    /// Asks before real orders.
    ///
    /// # Errors
    /// Nothing is left, or nobody is there to ask.
    pub(super) fn confirm(&self, cases: &[Case], choice: &Choice, language: Language) -> Result<Real, Failure> {
        let chosen = || cases.iter().zip(&self.0).filter(|(_, chosen)| chosen.is_ok()).map(|(case, _)| case);
        let real = chosen().filter(|case| case.real).count();
        if chosen().count() == 0 {
            return Err(Failure::unusable("no case is left: look at --only and --debug-only"));
        }
        if real == 0 || choice.yes {
            return Ok(Real::Allowed);
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Failure::unusable(format!(
                "{real} of the cases are real orders, not marked as a trial, and nobody can be asked: --yes allows \
                 them, --debug-only leaves them out"
            )));
        }
        let question = Text::new(
            format!(
                "{real} of the cases are real orders: a backend takes them for a customer's. They are about instances \
                 that this run makes and removes. Run them too? [y/N] "
            ),
            format!(
                "其中 {real} 个用例为正式订单：后端会视为真实客户。它们只涉及本次创建并会清除的实例。是否一并执行？[y/N] "
            ),
        );
        let _ = write!(anstream::stderr(), "{}", question.get(language));
        let _ = anstream::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        let yes = read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "是");
        if !yes && real == chosen().count() {
            return Err(Failure::unusable("no case is left"));
        }
        Ok(if yes { Real::Allowed } else { Real::Refused })
    }

    /// The cases to run, and the others with the reason.
    pub(super) fn split(self, cases: Vec<Case>, real: Real) -> (Vec<Case>, Vec<LeftOut>) {
        let mut kept = Vec::new();
        let mut left_out = Vec::new();
        for (case, chosen) in cases.into_iter().zip(self.0) {
            match chosen {
                Ok(()) if case.real && real == Real::Refused => {
                    left_out.push(LeftOut { id: case.id, why: Text::new("no real orders", "不执行正式订单") });
                }
                Ok(()) => kept.push(case),
                Err(why) => left_out.push(LeftOut { id: case.id, why }),
            }
        }
        (kept, left_out)
    }
}

/// Sees that the user's fields are the dialect's, and not those that a run makes itself.
///
/// # Errors
/// What they are instead.
pub(super) fn check_fields(dialect: &Dialect, fields: &[(String, String)]) -> Result<(), Failure> {
    for (name, _) in fields {
        let index = dialect.field_index(name);
        let shown = terminal::plain(name);
        let Some(index) = index else {
            let names = dialect.fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Failure::unusable(format!("--field {shown}: {} has {names}", dialect.name)));
        };
        if [dialect.order, dialect.instance, dialect.debug].contains(&Some(index)) {
            return Err(Failure::unusable(format!("--field {shown}: the cases need values of their own for it")));
        }
    }
    Ok(())
}

/// All cases, as a table.
pub(super) fn list(cases: &[Case], language: Language) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for case in cases {
        let real =
            if case.real && case.group != Group::Real { Text::new(" (real)", "（正式）") } else { Text::default() };
        let title = format!("{}{}", case.title.get(language), real.get(language));
        table.add_row([case.group.name(), &case.id, &title]);
    }
    table.to_string().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dialect::builtin;
    use crate::selftest::plan::{Options, plan};

    fn choice(only: &[&str]) -> Choice {
        Choice { only: only.iter().map(ToString::to_string).collect(), slow: false, debug_only: false, yes: true }
    }

    fn run(choice: &Choice, real: Real) -> Result<Vec<String>, String> {
        let dialect = &builtin::load().unwrap()[0];
        let options =
            Options { own: Vec::new(), strict: false, window: (Duration::ZERO, Duration::ZERO), can_hold: false };
        let cases = plan(dialect, &options);
        let chosen = choice.of(&cases).map_err(|failure| failure.message)?;
        Ok(chosen.split(cases, real).0.into_iter().map(|case| case.id).collect())
    }

    #[test]
    fn cases_and_groups_are_chosen_by_name() {
        assert_eq!(run(&choice(&["create", "connection"]), Real::Allowed).unwrap(), ["test", "create"]);
        assert_eq!(run(&choice(&["late-retry"]), Real::Allowed).unwrap(), ["late-retry"]);
        assert!(run(&choice(&["cretae"]), Real::Allowed).unwrap_err().contains("no case or group is called cretae"));
    }

    #[test]
    fn slow_and_real_ones_have_to_be_wanted() {
        let plain = run(&choice(&[]), Real::Allowed).unwrap();
        assert!(plain.iter().any(|id| id == "real-create") && !plain.iter().any(|id| id == "busy"));
        let slow = run(&Choice { slow: true, ..choice(&[]) }, Real::Refused).unwrap();
        assert!(slow.iter().any(|id| id == "busy") && !slow.iter().any(|id| id.starts_with("real")));
        let trials = run(&Choice { debug_only: true, ..choice(&[]) }, Real::Allowed).unwrap();
        assert!(!trials.iter().any(|id| id.starts_with("real")));
    }

    #[test]
    fn fields_that_a_run_makes_itself_are_refused() {
        let dialect = &builtin::load().unwrap()[0];
        let check =
            |name: &str| check_fields(dialect, &[(name.to_owned(), "x".to_owned())]).map_err(|failure| failure.message);
        assert!(check("spec").is_ok());
        assert!(check("order_id").unwrap_err().contains("of their own"));
        assert!(check("spce").unwrap_err().contains(" has user_id"));
    }
}
