//! A statement and its parameters.
//!
//! Parameters are sent with their types, so that a statement takes one round trip and no server
//! has to remember it: a pooler may give the next one to another server process.

use std::fmt::Write as _;

use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};

/// See the module.
#[derive(Default)]
pub(super) struct Statement {
    pub(super) sql: String,
    parameters: Vec<(Box<dyn ToSql + Send + Sync>, Type)>,
}

/// A value that is sent as a parameter.
pub(super) trait Parameter: ToSql + Send + Sync + Sized + 'static {
    /// Its type on the server.
    const TYPE: Type;
}

impl Parameter for i64 {
    const TYPE: Type = Type::INT8;
}
impl Parameter for f64 {
    const TYPE: Type = Type::FLOAT8;
}
impl Parameter for bool {
    const TYPE: Type = Type::BOOL;
}
impl Parameter for String {
    const TYPE: Type = Type::TEXT;
}
impl Parameter for Vec<u8> {
    const TYPE: Type = Type::BYTEA;
}
impl Parameter for Timestamp {
    const TYPE: Type = Type::TIMESTAMPTZ;
}
impl Parameter for Vec<i64> {
    const TYPE: Type = Type::INT8_ARRAY;
}
impl Parameter for Vec<Vec<u8>> {
    const TYPE: Type = Type::BYTEA_ARRAY;
}
impl<T: Parameter> Parameter for Option<T> {
    const TYPE: Type = T::TYPE;
}

impl Statement {
    /// A statement that begins with `sql`.
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), parameters: Vec::new() }
    }

    /// Goes on with `sql`.
    pub(super) fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    /// Goes on with a value.
    pub(super) fn bind<T: Parameter>(&mut self, value: T) -> &mut Self {
        self.parameters.push((Box::new(value), T::TYPE));
        // Writing to a string cannot fail.
        let _ = write!(self.sql, "${}", self.parameters.len());
        self
    }

    /// The parameters, as they are sent.
    pub(super) fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.parameters.iter().map(|(value, of)| (&**value as &(dyn ToSql + Sync), of.clone())).collect()
    }
}

/// A text as the server can hold it: it has no way to store a zero, which no genuine value has.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
