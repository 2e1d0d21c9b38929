//! The request contract: which action it is, which fields it must carry, and what they hold.
//!
//! Pure: works on decoded parameters. Runs after verification, so its messages may name fields
//! to the caller.

use std::fmt;

use jiff::Timestamp;

use super::field::Decoded;
use super::{Action, Dialect, Presence};
use crate::query::{Found, Params, Place};

/// How strictly documented requirements are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// What the platform's own examples lack is accepted and counted.
    Lenient,
    /// What the documentation calls required is required.
    Strict,
}

/// A request that keeps the contract: its parameters with every documented field decoded.
#[derive(Clone, Debug)]
pub struct SpiRequest {
    params: Params,
    action: usize,
    /// For each field of the dialect, in its order, where it came: its place among the
    /// parameters and what it decoded to.
    fields: Vec<Option<(Place, Decoded)>>,
    time: Option<(Place, Timestamp)>,
    /// Positions of fields that the documentation requires and the request lacks.
    lacking: Vec<usize>,
    /// How many parameters nobody documented.
    undocumented: usize,
}

/// A value as a backend can be given it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// A JSON object, compact.
    Object(&'a str),
    /// A boolean.
    Boolean(bool),
    /// A period, and how it was written.
    Period {
        /// How many.
        value: u32,
        /// Of what.
        unit: super::field::Unit,
        /// `VALUE_UNIT` as received.
        text: &'a str,
    },
    /// A time, and how it was written.
    Time {
        /// When.
        time: Timestamp,
        /// As received.
        text: &'a str,
    },
}

/// Which documented parameter a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documented {
    /// The action.
    Action,
    /// A field, by its position in the dialect.
    Field(usize),
    /// The time.
    Time,
}

/// Why a signed request breaks the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContractError {
    /// The dialect has no such action.
    UnknownAction,
    /// A field is missing.
    Missing {
        /// Its name.
        field: String,
    },
    /// A field holds what it must not.
    Invalid {
        /// Its name.
        field: String,
        /// What is wrong, as half a sentence; never the value.
        why: &'static str,
    },
}

impl fmt::Display for ContractError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAction => f.write_str("the action is not one of this dialect"),
            Self::Missing { field } => write!(f, "{field} is missing"),
            Self::Invalid { field, why } => write!(f, "{field} {why}"),
        }
    }
}

impl std::error::Error for ContractError {}

impl Dialect {
    /// Checks the contract and decodes the documented fields.
    ///
    /// `time` is the request's signed time where the dialect has one. Protocol fields were
    /// found to stand once before the signature was verified.
    ///
    /// # Errors
    /// See [`ContractError`]; the first in the dialect's order of fields.
    pub fn check_request(
        &self,
        params: Params,
        time: Option<Timestamp>,
        strictness: Strictness,
    ) -> Result<SpiRequest, ContractError> {
        let missing = |field: &str| ContractError::Missing { field: field.to_owned() };
        let invalid = |field: &str, why| ContractError::Invalid { field: field.to_owned(), why };

        let found = params.find_all(&self.names);
        let (of_fields, found) = found.split_at(self.fields.len());
        let (of_action, of_signature, of_time) = (found[0], found[1], found.get(2));
        let action = match of_action {
            Found::Absent => return Err(missing(&self.action_parameter)),
            Found::Once(place) => match params.value(place) {
                "" => return Err(invalid(&self.action_parameter, "is empty")),
                name => self.action_index(name).ok_or(ContractError::UnknownAction)?,
            },
            Found::Repeated => return Err(invalid(&self.action_parameter, "stands twice")),
        };
        let Action { presence, dedupe, .. } = &self.actions[action];

        let mut fields = Vec::with_capacity(self.fields.len());
        let mut lacking = Vec::new();
        for (index, (field, found)) in self.fields.iter().zip(of_fields).enumerate() {
            let place = match *found {
                Found::Absent => {
                    match presence[index] {
                        Presence::Required => return Err(missing(&field.name)),
                        Presence::Expected if strictness == Strictness::Strict => return Err(missing(&field.name)),
                        Presence::Expected => lacking.push(index),
                        Presence::Optional | Presence::Undocumented => {}
                    }
                    fields.push(None);
                    continue;
                }
                Found::Once(place) => place,
                Found::Repeated => return Err(invalid(&field.name, "stands twice")),
            };
            let text = params.value(place);
            let must_hold = matches!(presence[index], Presence::Required | Presence::Expected);
            if text.is_empty() && (must_hold || *dedupe == Some(index)) {
                return Err(invalid(&field.name, "is empty"));
            }
            let value = match field.kind.decode(text) {
                Ok(value) => value,
                // Not part of this action: signed like the rest, and passed on as it came.
                Err(_) if presence[index] == Presence::Undocumented => Decoded::AsReceived,
                Err(why) => return Err(invalid(&field.name, why)),
            };
            // Base64 of nothing is the empty text, so an empty value can also come decoded.
            if must_hold && value == Decoded::Text(String::new()) {
                return Err(invalid(&field.name, "is empty"));
            }
            fields.push(Some((place, value)));
        }
        let time = match (of_time, time) {
            (Some(&Found::Once(place)), Some(time)) if self.time.is_some() => Some((place, time)),
            _ => None,
        };
        // Documented parameters stand once each, so what is left over can be counted.
        let signature = usize::from(of_signature != Found::Absent);
        let known = 1 + fields.iter().flatten().count() + usize::from(time.is_some()) + signature;
        let undocumented = params.len().saturating_sub(known);
        Ok(SpiRequest { params, action, fields, time, lacking, undocumented })
    }
}

impl SpiRequest {
    /// Position of the action in the dialect's list.
    pub fn action_index(&self) -> usize {
        self.action
    }

    /// The action.
    pub fn action<'d>(&self, dialect: &'d Dialect) -> &'d Action {
        &dialect.actions[self.action]
    }

    /// The parameters as received, decoded from the query.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Positions of fields that the documentation requires and this request lacks.
    pub fn lacking(&self) -> &[usize] {
        &self.lacking
    }

    /// Whether the platform asks for a trial run; absent means no.
    pub fn is_debug(&self, dialect: &Dialect) -> bool {
        dialect.debug.is_some_and(|index| matches!(self.fields[index], Some((_, Decoded::Boolean(true)))))
    }

    /// The text of the documented field at a position of the dialect, decoded from base64 where
    /// it came so.
    pub fn text(&self, field: usize) -> Option<&str> {
        match self.fields[field].as_ref()? {
            (_, Decoded::Text(text) | Decoded::Object(text)) => Some(text),
            (place, Decoded::AsReceived | Decoded::Boolean(_) | Decoded::Period(..)) => Some(self.params.value(*place)),
        }
    }

    /// Documented parameters with their values: the action, the dialect's fields in their
    /// order, the time. Without the signature.
    pub fn values<'s>(&'s self, dialect: &'s Dialect) -> impl Iterator<Item = (Documented, Value<'s>)> {
        let action = (Documented::Action, Value::Text(dialect.actions[self.action].name.as_str()));
        let fields = self.fields.iter().enumerate().filter_map(|(position, value)| {
            let (place, decoded) = value.as_ref()?;
            Some((Documented::Field(position), self.value(*place, decoded)))
        });
        let time =
            self.time.map(|(place, time)| (Documented::Time, Value::Time { time, text: self.params.value(place) }));
        std::iter::once(action).chain(fields).chain(time)
    }

    /// The same by their names.
    pub fn documented<'s>(&'s self, dialect: &'s Dialect) -> impl Iterator<Item = (&'s str, Value<'s>)> {
        self.values(dialect).map(|(parameter, value)| {
            let name = match parameter {
                Documented::Action => dialect.action_parameter.as_str(),
                Documented::Field(field) => dialect.fields[field].name.as_str(),
                // There is no value without a rule.
                Documented::Time => dialect.time.as_ref().map_or("", |rule| rule.parameter.as_str()),
            };
            (name, value)
        })
    }

    /// Whether there are parameters that nobody documented.
    pub fn has_undocumented(&self) -> bool {
        self.undocumented > 0
    }

    /// Parameters that nobody documented, in received order; a name may repeat.
    pub fn undocumented<'s>(&'s self, dialect: &'s Dialect) -> impl Iterator<Item = crate::query::Param<'s>> {
        let received = (self.undocumented > 0).then(|| self.params.received());
        received.into_iter().flatten().filter(|param| !dialect.is_protocol_parameter(param.name))
    }

    fn value<'s>(&'s self, place: Place, decoded: &'s Decoded) -> Value<'s> {
        match decoded {
            Decoded::AsReceived => Value::Text(self.params.value(place)),
            Decoded::Text(text) => Value::Text(text),
            Decoded::Object(text) => Value::Object(text),
            Decoded::Boolean(value) => Value::Boolean(*value),
            Decoded::Period(value, unit) => {
                Value::Period { value: *value, unit: *unit, text: self.params.value(place) }
            }
        }
    }
}
