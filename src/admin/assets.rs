//! Style, script and icon of the pages: ours, and in the binary.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

/// The routes.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |kind: &'static str, text: &'static str| get(move || async move { ([(CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/assets/style.css", file("text/css; charset=utf-8", include_str!("../../templates/admin/style.css")))
        .route("/assets/live.js", file("text/javascript; charset=utf-8", include_str!("../../templates/admin/live.js")))
        .route("/assets/icon.svg", file("image/svg+xml", include_str!("../../templates/admin/icon.svg")))
}
