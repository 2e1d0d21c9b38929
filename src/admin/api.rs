//! What programs are answered: JSON, and refusals with a code that stays.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::journal::resolve::Refused;
use crate::journal::select::NotFound;
use crate::journal::store::Unavailable;
use crate::json;
use crate::plain::plain_lines;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The description of all of this, for programs that write programs.
const OPENAPI: &str = include_str!("../../templates/admin/openapi.json");

/// An answer.
pub(super) fn answer(value: &impl Serialize) -> Response {
    ([(CONTENT_TYPE, JSON)], format!("{}\n", json::to_text(value))).into_response()
}

/// `/api/v1/openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, JSON)], OPENAPI).into_response()
}

/// Anything below `/api/` that is not there.
pub(super) async fn nothing_here() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here; /api/v1/openapi.json says what there is")
}

/// A refusal.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn read_only() -> Self {
        let message = "admin.read_only is set: nothing can be changed here";
        Self::new(StatusCode::FORBIDDEN, "read_only", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "code": self.code, "message": plain_lines(&self.message) });
        (self.status, answer(&body)).into_response()
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        let message = format!("the journal is not available: {unavailable}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "journal_unavailable", message)
    }
}

impl From<NotFound> for Refusal {
    fn from(error: NotFound) -> Self {
        match error {
            NotFound::Unavailable(unavailable) => unavailable.into(),
            NotFound::None { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string()),
            NotFound::Several { .. } => Self::new(StatusCode::CONFLICT, "ambiguous", error.to_string()),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unavailable(unavailable) => unavailable.into(),
            Refused::NotFound(error) => error.into(),
            Refused::Removed { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", refused.to_string()),
            Refused::Unresolvable { .. } => Self::new(StatusCode::CONFLICT, "not_possible_now", refused.to_string()),
            Refused::SaysNo
            | Refused::Broken { .. }
            | Refused::OtherInstance { .. }
            | Refused::UnknownApp { .. }
            | Refused::UnknownAction { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unusable_reply", refused.to_string())
            }
        }
    }
}
