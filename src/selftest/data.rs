//! What cases send: texts as customers and marketplaces write them. Pure.

use crate::dialect::field::FieldType;
use crate::dialect::{Action, ActionKind, Dialect, Presence};

/// A name as customers see it: Chinese, spaces, brackets, a character beyond the basic plane.
pub const CHINESE: &str = "企业旗舰版（含税） 8核 / 16G · 三年付 🚀";
/// What URL encoders disagree about.
pub const PUNCTUATION: &str = "A+B ~ C*D/E (50%) 'x' \"y\" a:b;c,d?e#f @!$[]";
/// What is left of it where a dialect cannot sign delimiters.
pub const DELIMITERS: &str = " k=v&w=1";
/// A smaller specification than the samples'.
pub const SMALLER: &str = "入门版 1核/1G";
/// A larger one.
pub const LARGER: &str = "旗舰版 16核/64G";
/// A parameter that no dialect documents.
pub const UNDOCUMENTED: &str = "selftest_note";
/// One period of each unit, and a long one.
pub const PERIODS: [&str; 4] = ["1_day", "12_month", "3_year", "365_day"];
/// Most characters of [`long`].
const LONG: usize = 128;

/// A text as long as one may be.
pub fn long() -> String {
    "云市场企业协同办公套件专业版-Enterprise Suite ".chars().cycle().take(LONG - 1).chain(['尾']).collect()
}

/// Names of the fields that describe what is bought: texts of a purchase which an upgrade also
/// carries, or a renewal where there is no upgrade. Not those that name an order, an instance, a
/// customer or a product: nobody could change them and expect a success.
pub fn descriptions<'d>(dialect: &'d Dialect, create: &Action) -> Vec<&'d str> {
    let later = dialect.action_of(ActionKind::Upgrade).or_else(|| dialect.action_of(ActionKind::Renew));
    let carries = |action: &Action, field: usize| action.presence[field] != Presence::Undocumented;
    let roles = [dialect.order, dialect.instance, dialect.user, dialect.debug];
    let fields = dialect.fields.iter().enumerate().filter(|&(index, field)| {
        matches!(field.kind, FieldType::Text | FieldType::Base64Text)
            && !roles.contains(&Some(index))
            && carries(create, index)
            && later.is_none_or(|later| carries(later, index))
    });
    fields.map(|(_, field)| field.name.as_str()).collect()
}

/// The names of an action's periods.
pub fn periods<'d>(dialect: &'d Dialect, action: &Action) -> Vec<&'d str> {
    let fields = dialect.fields.iter().zip(&action.presence);
    fields
        .filter(|(field, presence)| field.kind == FieldType::Period && **presence != Presence::Undocumented)
        .map(|(field, _)| field.name.as_str())
        .collect()
}

/// How a boolean is written, in the way of the dialect's sample.
pub fn boolean(sample: Option<&str>, value: bool) -> String {
    let spelled = match sample {
        Some("1" | "0") => ["0", "1"],
        Some("True" | "False") => ["False", "True"],
        _ => ["false", "true"],
    };
    spelled[usize::from(value)].to_owned()
}

/// The number of an order that no other run has.
pub fn order(run: &str, case: usize, number: u32) -> String {
    format!("selftest-{run}-{case:02}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::builtin;

    #[test]
    fn describes_what_is_bought_and_never_who_buys() {
        let dialects = builtin::load().unwrap();
        let described = dialects.iter().map(|dialect| {
            let create = dialect.action_of(ActionKind::Create).unwrap();
            (descriptions(dialect, create), periods(dialect, create))
        });
        assert_eq!(
            described.collect::<Vec<_>>(),
            [(vec!["spec", "spec_package"], vec!["period"]), (vec!["spec", "package"], vec!["duration"])]
        );
    }

    #[test]
    fn a_long_text_is_as_long_as_an_id_may_be() {
        assert_eq!(long().chars().count(), 128);
        assert!(long().ends_with('尾'));
    }

    #[test]
    fn booleans_follow_the_sample() {
        assert_eq!(boolean(Some("True"), true), "True");
        assert_eq!(boolean(Some("1"), false), "0");
        assert_eq!(boolean(None, false), "false");
    }
}
