//! A step as a request of the platform: signed, or forged. Pure: the time is an argument.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};

use super::case::{Call, Fill, Forgery, Instance, Manner};
use super::data;
use crate::dialect::mac::{KeyError, SigningKey};
use crate::dialect::{Dialect, Presence};
use crate::platform::{Order, Placement, Signed, wire};
use crate::query::Params;

/// What all requests of a run are made of.
pub struct Material<'a> {
    /// The dialect.
    pub dialect: &'a Dialect,
    /// The notify URL.
    pub url: &'a str,
    /// The key.
    pub key: &'a SigningKey,
    /// Values that the user gave instead of samples.
    pub own: &'a [(String, String)],
    /// Whether what the platform's own examples lack is required.
    pub strict: bool,
    /// A word that no other run has.
    pub run: &'a str,
}

/// Where a request stands in its run.
#[derive(Clone, Copy)]
pub struct Standing<'a> {
    /// Number of the case.
    pub case: usize,
    /// Number of the copy, for copies that are different orders.
    pub copy: u32,
    /// The instance that it is about, where it is about one that was made.
    pub instance: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// The whole URL.
    pub url: String,
    /// A header besides.
    pub header: Option<(String, String)>,
    /// The signature that it was given, wherever it stands.
    pub signature: String,
}

/// A parameter that was not signed.
const ADDED: &str = "selftest_unsigned";
/// A time that no format knows.
const NO_TIME: &str = "yesterday noon";

/// Names of fields that are required, have no sample, and were not given by the user.
pub fn without_value<'d>(dialect: &'d Dialect, own: &[(String, String)]) -> Vec<&'d str> {
    let roles = [dialect.order, dialect.instance, dialect.debug];
    let fields = dialect.fields.iter().enumerate().filter(|&(index, field)| {
        let required = dialect.actions.iter().any(|action| action.presence[index] == Presence::Required);
        required
            && field.sample.is_none()
            && !roles.contains(&Some(index))
            && own.iter().all(|(name, _)| *name != field.name)
    });
    fields.map(|(_, field)| field.name.as_str()).collect()
}

/// A key that is not the app's.
///
/// # Errors
/// None for the forms of keys that there are.
pub fn other_key(dialect: &Dialect) -> Result<SigningKey, KeyError> {
    dialect.signing_key(&STANDARD.encode("this is the key of somebody else"))
}

impl Material<'_> {
    /// Makes the request of a call.
    ///
    /// # Errors
    /// What cannot be signed.
    pub fn request(&self, call: &Call, standing: Standing<'_>) -> Result<Request, String> {
        let fields = self.fields(call, standing);
        let time = standing.now + SignedDuration::from_secs(call.seconds);
        let mut timeless;
        let dialect = match call.forgery {
            Some(Forgery::Timeless) => {
                timeless = self.dialect.clone();
                timeless.time = None;
                &timeless
            }
            _ => self.dialect,
        };
        let order = Order { dialect, url: self.url, action: &dialect.actions[call.action], fields: &fields, time };
        let other = match call.forgery {
            Some(Forgery::OtherKey) => Some(other_key(dialect).map_err(|error| error.to_string())?),
            _ => None,
        };
        let signed = order.sign(other.as_ref().unwrap_or(self.key)).map_err(|error| error.to_string())?;
        self.forge(call, signed)
    }

    fn fields(&self, call: &Call, standing: Standing<'_>) -> Vec<(String, String)> {
        let dialect = self.dialect;
        let given = |name: &str| {
            let find = |list: &[(String, String)]| {
                list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            };
            find(&call.fields).or_else(|| find(self.own))
        };
        let mut fields = Vec::new();
        for (index, field) in dialect.fields.iter().enumerate() {
            let presence = dialect.actions[call.action].presence[index];
            let wanted = match presence {
                Presence::Required => true,
                Presence::Expected => call.fill == Fill::All || self.strict,
                Presence::Optional => call.fill == Fill::All,
                Presence::Undocumented => false,
            };
            let documented = presence != Presence::Undocumented;
            let value = if dialect.order == Some(index) {
                let copy = if call.manner == Manner::Crowd { standing.copy } else { 0 };
                call.order.filter(|_| documented).map(|number| data::order(self.run, standing.case, number + copy))
            } else if dialect.instance == Some(index) {
                call.instance.filter(|_| documented).and_then(|instance| match instance {
                    Instance::Shared => standing.instance.map(str::to_owned),
                    Instance::Invented => Some(format!("selftest-{}-nobody", self.run)),
                })
            } else if dialect.debug == Some(index) {
                documented.then(|| data::boolean(field.sample.as_deref(), call.trial))
            } else {
                given(&field.name).or_else(|| field.sample.clone()).filter(|_| wanted)
            };
            fields.extend(value.map(|value| (field.name.clone(), value)));
        }
        let further = call.fields.iter().filter(|(name, _)| dialect.field_index(name).is_none());
        fields.extend(further.cloned());
        if let (Some(rule), Some(Forgery::BadTime)) = (&dialect.time, call.forgery) {
            fields.push((rule.parameter.clone(), NO_TIME.to_owned()));
        }
        fields
    }

    /// Puts the signature where it travels, and spoils what is to be spoilt.
    fn forge(&self, call: &Call, signed: Signed) -> Result<Request, String> {
        let plain = |signed: &Signed| Request {
            url: signed.url(call.placement),
            header: signed.header(call.placement).map(|(name, value)| (name.to_owned(), value.to_owned())),
            signature: signed.signature.clone(),
        };
        let Some(forgery) = call.forgery else { return Ok(plain(&signed)) };
        let (base, query) = {
            let url = signed.url(Placement::Header);
            let (base, query) = url.split_once('?').unwrap_or((&url, ""));
            (base.to_owned(), query.to_owned())
        };
        let signature = signed.signature.clone();
        let sent =
            |query: String| Request { url: format!("{base}?{query}"), header: None, signature: signature.clone() };
        let with_signature =
            |query: &str| format!("{query}&{}={}", wire(&self.dialect.signature.parameter), wire(&signature));
        Ok(match forgery {
            Forgery::Flipped => plain(&signed.with_flipped_signature()),
            Forgery::Empty => plain(&signed.with_signature(String::new())),
            Forgery::Unsigned => sent(query),
            Forgery::OtherMethod => {
                let params = Params::parse(query.as_bytes(), usize::MAX).map_err(|error| error.to_string())?;
                let signature = self.dialect.sign(self.key, "POST", &params).map_err(|error| error.to_string())?;
                plain(&signed.with_signature(signature))
            }
            Forgery::Added => sent(format!("{}&{ADDED}=1", with_signature(&query))),
            Forgery::Changed => sent(with_signature(&self.change(&query)?)),
            Forgery::RepeatedAfter => sent(format!("{}&{}", with_signature(&query), self.other_value())),
            Forgery::RepeatedBefore => sent(format!("{}&{}", self.other_value(), with_signature(&query))),
            Forgery::OtherKey | Forgery::Expired | Forgery::Future | Forgery::Timeless | Forgery::BadTime => {
                plain(&signed)
            }
        })
    }

    /// The query with another order, customer or action in it.
    fn change(&self, query: &str) -> Result<String, String> {
        let params = Params::parse(query.as_bytes(), usize::MAX).map_err(|error| error.to_string())?;
        let names = [self.dialect.order, self.dialect.user]
            .map(|field| field.map(|field| self.dialect.fields[field].name.as_str()));
        let name = names.into_iter().flatten().find(|name| params.received().any(|param| param.name == *name));
        let name = name.unwrap_or(&self.dialect.action_parameter);
        let pairs = params.received().map(|param| {
            let changed = if param.name == name { "x" } else { "" };
            format!("{}={}", wire(param.name), wire(&format!("{}{changed}", param.value)))
        });
        Ok(pairs.collect::<Vec<_>>().join("&"))
    }

    /// A parameter of the protocol with a value that was not signed.
    fn other_value(&self) -> String {
        match self.dialect.order {
            Some(order) => format!("{}=selftest-{}-other", wire(&self.dialect.fields[order].name), self.run),
            None => format!("{}=selftest", wire(&self.dialect.action_parameter)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dialect::request::Strictness;
    use crate::dialect::{ActionKind, builtin};
    use crate::query::Lookup;
    use crate::selftest::case::{Case, Expect};
    use crate::selftest::plan::{Options, plan};

    fn cases(dialect: &Dialect) -> Vec<Case> {
        let window = (Duration::from_secs(300), Duration::from_secs(60));
        plan(dialect, &Options { own: Vec::new(), strict: false, window, can_hold: false })
    }

    fn verifies(dialect: &Dialect, key: &SigningKey, request: &Request) -> Option<Params> {
        let params = Params::parse(request.url.split_once('?').unwrap().1.as_bytes(), 64).unwrap();
        let signature = match params.get(&dialect.signature.parameter) {
            Lookup::Once(text) => text.to_owned(),
            _ => request.header.clone()?.1,
        };
        let tag = dialect.signature.output.decode(&signature)?;
        dialect.verify(key, &tag, "GET", &params).unwrap().then_some(params)
    }

    #[test]
    fn genuine_requests_verify_and_keep_the_contract_and_forged_ones_do_not() {
        for dialect in builtin::load().unwrap() {
            let key = dialect.signing_key("k3y").unwrap();
            let url = "http://h/spi?platform=a%20b";
            let material = Material { dialect: &dialect, url, key: &key, own: &[], strict: false, run: "r" };
            let now = Timestamp::from_second(1_700_000_000).unwrap();
            for case in cases(&dialect) {
                for step in &case.steps {
                    let standing = Standing { case: 1, copy: 0, instance: Some("ins-1"), now };
                    let request = material.request(&step.call, standing).unwrap();
                    let params = verifies(&dialect, &key, &request);
                    let signed_rightly = step.expect != Expect::Refusal
                        || matches!(
                            step.call.forgery,
                            Some(Forgery::Expired | Forgery::Future | Forgery::Timeless | Forgery::BadTime)
                        );
                    assert_eq!(params.is_some(), signed_rightly, "{}: {}", dialect.name, case.id);
                    if step.expect != Expect::Refusal {
                        let checked = dialect.check_request(params.unwrap(), Some(now), Strictness::Lenient);
                        let checked = checked.unwrap_or_else(|error| panic!("{}: {error}", case.id));
                        assert_eq!(checked.is_debug(&dialect), step.call.trial, "{}", case.id);
                    }
                }
            }
        }
    }

    #[test]
    fn every_forgery_spoils_what_it_says() {
        let dialect = &builtin::load().unwrap()[0];
        let key = dialect.signing_key("k3y").unwrap();
        let material = Material { dialect, url: "http://h/spi", key: &key, own: &[], strict: false, run: "r" };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let create = dialect.actions.iter().position(|action| action.kind == ActionKind::Create).unwrap();
        let call = cases(dialect).into_iter().find(|case| case.id == "create").unwrap().steps.remove(0).call;
        assert_eq!(call.action, create);
        let forge = |forgery| {
            let call = Call { forgery: Some(forgery), ..call.clone() };
            material.request(&call, Standing { case: 1, copy: 0, instance: None, now }).unwrap().url
        };
        let count = |url: &str, name: &str| url.split(['?', '&']).filter(|pair| pair.starts_with(name)).count();
        assert_eq!(count(&forge(Forgery::Unsigned), "signature="), 0);
        assert!(forge(Forgery::Empty).ends_with("&signature="));
        assert_eq!(count(&forge(Forgery::Timeless), "time_stamp="), 0);
        assert_eq!(count(&forge(Forgery::BadTime), "time_stamp=yesterday+noon"), 1);
        assert!(forge(Forgery::Added).ends_with("&selftest_unsigned=1"));
        assert!(forge(Forgery::Changed).contains("order_id=selftest-r-011x&"));
        assert!(forge(Forgery::RepeatedAfter).ends_with("&order_id=selftest-r-other"));
        assert!(forge(Forgery::RepeatedBefore).starts_with("http://h/spi?order_id=selftest-r-other&"));
    }

    #[test]
    fn the_users_values_go_before_samples_and_crowds_are_different_orders() {
        let dialect = &builtin::load().unwrap()[1];
        let key = dialect.signing_key("k3y").unwrap();
        let own = [("product_code".to_owned(), "prod-mine".to_owned())];
        let material = Material { dialect, url: "http://h/spi", key: &key, own: &own, strict: false, run: "r" };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let call = cases(dialect).into_iter().find(|case| case.id == "busy").unwrap().steps.remove(0).call;
        let urls =
            [0, 1].map(|copy| material.request(&call, Standing { case: 7, copy, instance: None, now }).unwrap().url);
        assert!(
            urls[0].contains("product_code=prod-mine&") && urls[0].contains("order_id=selftest-r-071&"),
            "{}",
            urls[0]
        );
        assert!(urls[1].contains("order_id=selftest-r-072&"), "{}", urls[1]);
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        let mut dialect = builtin::load().unwrap().remove(0);
        dialect.fields[1].sample = None;
        assert_eq!(without_value(&dialect, &[]), ["app_id"]);
        assert!(without_value(&dialect, &[("app_id".into(), "a".into())]).is_empty());
    }
}
