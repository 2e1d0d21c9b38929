//! Second stop: the query becomes decoded parameters, or the request is refused.

use crate::config::Limits;
use crate::query::Params;
use crate::rejection::Rejection;
use crate::stage::receive::Received;

/// A request whose query was read strictly.
pub struct Parsed {
    params: Params,
}

impl Parsed {
    pub(super) fn into_params(self) -> Params {
        self.params
    }
}

/// Reads the query.
///
/// # Errors
/// `malformed_request`.
pub fn parse(received: &Received<'_>, limits: &Limits) -> Result<Parsed, Rejection> {
    let params = Params::parse(received.query().as_bytes(), limits.parameters)?;
    Ok(Parsed { params })
}
