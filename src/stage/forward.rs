//! Ninth stop: the call to the backend, and what its failures mean for the order.

use std::pin::pin;

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::backend::outgoing::Outgoing;
use crate::backend::{Backend, CallError, RawReply};
use crate::delivery::Delivery;
use crate::rejection::Rejection;
use crate::telemetry::spans;

/// Calls the backend until `deadline`.
///
/// # Errors
/// The delivery that ended here: *failed* where nothing was sent, else *unconfirmed*.
pub async fn forward(backend: &Backend, mut request: Outgoing, deadline: Instant) -> Result<RawReply, Delivery> {
    let span = spans::backend(&mut request, backend.authority());
    // It is large: whatever is put around it has it by its address.
    let call = pin!(backend.call(request, deadline));
    let result = call.instrument(span.clone()).await;
    spans::called(&span, &result);
    result.map_err(delivery_of)
}

/// Whether the backend accepts a connection until `deadline`, at any of its URLs.
///
/// # Errors
/// The delivery that ended here.
pub async fn probe(backend: &Backend, deadline: Instant) -> Result<(), Delivery> {
    backend.accepts(deadline).await.map_err(delivery_of)
}

fn delivery_of(error: CallError) -> Delivery {
    match error {
        CallError::Unreachable(cause) => Delivery::failed(Rejection::BackendUnreachable { cause: cause.into() }),
        CallError::Broken(cause) => Delivery::unconfirmed(Rejection::BackendBrokenReply { cause: cause.into() }),
        CallError::TimedOut => Delivery::unconfirmed(Rejection::BackendTimeout),
    }
}
