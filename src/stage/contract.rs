//! Sixth stop: is it an action that this marketplace has, with the fields that it needs?

use crate::app::App;
use crate::backend::outgoing::Line;
use crate::config::{PathPart, Send};
use crate::dialect::mac::Tag;
use crate::dialect::request::SpiRequest;
use crate::metrics::Metrics;
use crate::rejection::Rejection;
use crate::stage::freshness::Fresh;
use crate::stage::receive::Received;

/// A request that may be delivered, and what a delivery needs besides its parameters.
pub struct Checked {
    request: SpiRequest,
    signature: Tag,
    key: usize,
    query: String,
    passed_on: Vec<Line>,
}

impl Checked {
    /// The decoded request.
    pub fn request(&self) -> &SpiRequest {
        &self.request
    }

    /// Its signature.
    pub fn signature(&self) -> &Tag {
        &self.signature
    }

    /// Position of the app's key that verified it.
    pub fn key(&self) -> usize {
        self.key
    }

    /// The query as received where it is sent so, else nothing.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// The incoming headers that are passed on.
    pub fn passed_on(&self) -> &[Line] {
        &self.passed_on
    }
}

/// Checks the request contract.
///
/// # Errors
/// `unknown_action`, `field_missing`, `field_invalid`.
pub fn check(
    app: &App,
    fresh: Fresh,
    received: &Received<'_>,
    passed_on: Vec<Line>,
    metrics: &Metrics,
) -> Result<Checked, Rejection> {
    let dialect = &*app.config.dialect;
    let (verified, time) = fresh.into_parts();
    let (params, signature, key) = verified.into_parts();
    let request = dialect.check_request(params, time, app.config.strictness)?;
    refuse_dot_segments(app, &request)?;
    for &field in request.lacking() {
        app.metrics.answers.lacked(metrics, request.action_index(), field, &dialect.fields[field].name);
    }
    let as_it_came = app.config.backend.as_ref().is_some_and(|backend| backend.send == Send::Raw);
    let query = if as_it_came { received.query().to_owned() } else { String::new() };
    Ok(Checked { request, signature, key, query, passed_on })
}

/// A field that becomes a path segment must not be `.` or `..`: percent-encoding leaves them as
/// they are, and the backend would take them as directions.
fn refuse_dot_segments(app: &App, request: &SpiRequest) -> Result<(), Rejection> {
    let (dialect, action) = (&*app.config.dialect, request.action_index());
    for part in app.config.backend.iter().flat_map(|backend| &backend.routes[action].path) {
        if let PathPart::Field(field) = *part
            && matches!(request.text(field), Some("." | ".."))
        {
            let field = dialect.fields[field].name.clone();
            return Err(Rejection::FieldInvalid { field, why: "cannot stand in a path" });
        }
    }
    Ok(())
}
