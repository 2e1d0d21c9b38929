//! The layer that makes a bug cost one request.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::CatchUnwind;
use http::HeaderMap;
use pin_project_lite::pin_project;
use prometheus::IntCounter;
use tower::{Layer, Service};

use crate::exchange::{Exchange, Verdict};
use crate::rejection::Rejection;

/// Turns a panic into the verdict `internal`, and counts it. What the panic says is told by the hook
/// that telemetry sets, and to nobody else.
#[derive(Clone)]
pub struct CatchPanicLayer {
    panics: IntCounter,
}

impl CatchPanicLayer {
    /// Counts in `panics`.
    pub fn new(panics: &IntCounter) -> Self {
        Self { panics: panics.clone() }
    }
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;
    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner, panics: self.panics.clone() }
    }
}

/// See [`CatchPanicLayer`].
#[derive(Clone)]
pub struct CatchPanic<S> {
    inner: S,
    panics: IntCounter,
}

impl<S, R> Service<R> for CatchPanic<S>
where
    S: Service<R, Response = Verdict, Error = Infallible>,
{
    type Response = Verdict;
    type Error = Infallible;
    type Future = Caught<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // Nothing of what a panic may have left half done is looked at again.
        let answer = catch_unwind(AssertUnwindSafe(|| self.inner.call(request))).ok();
        let answer = answer.map(|answer| AssertUnwindSafe(answer).catch_unwind());
        Caught { answer, panics: self.panics.clone() }
    }
}

pin_project! {
    /// The future of [`CatchPanic`].
    pub struct Caught<F> {
        // Nothing if there was a panic before there was a future.
        #[pin]
        answer: Option<CatchUnwind<AssertUnwindSafe<F>>>,
        panics: IntCounter,
    }
}

impl<F: Future<Output = Result<Verdict, Infallible>>> Future for Caught<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let answer = match this.answer.as_pin_mut() {
            Some(answer) => ready!(answer.poll(context)).ok(),
            None => None,
        };
        Poll::Ready(answer.unwrap_or_else(|| {
            this.panics.inc();
            let (exchange, headers) = (Exchange::default(), HeaderMap::new());
            Ok(Verdict { exchange, result: Err(Rejection::Internal), headers })
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use tower::{ServiceBuilder, ServiceExt as _, service_fn};

    use super::*;
    use crate::delivery::Outcome;

    #[tokio::test]
    async fn a_panic_is_counted_wherever_it_is_and_nothing_else_is() {
        let panics = IntCounter::new("panics", "Panics.").unwrap();
        let layer = CatchPanicLayer::new(&panics);
        let fine = || Verdict {
            exchange: Exchange { outcome: Some(Outcome::Delivered), ..Exchange::default() },
            result: Err(Rejection::UnknownApp),
            headers: HeaderMap::new(),
        };
        let inner = service_fn(|()| async { Ok::<_, Infallible>(fine()) });
        let verdict = ServiceBuilder::new().layer(layer.clone()).service(inner).oneshot(()).await;
        let Ok(Verdict { exchange, result, .. }) = verdict;
        assert!(matches!((exchange.outcome, result), (Some(Outcome::Delivered), Err(Rejection::UnknownApp))));
        assert_eq!(panics.get(), 0);

        let inner = service_fn(|()| -> Ready<Result<Verdict, Infallible>> { panic!("before its future") });
        let Ok(verdict) = ServiceBuilder::new().layer(layer.clone()).service(inner).oneshot(()).await;
        assert!(matches!(verdict.result, Err(Rejection::Internal)));
        let inner = service_fn(|()| ready(()).map(|()| -> Result<Verdict, Infallible> { panic!("in its future") }));
        let Ok(verdict) = ServiceBuilder::new().layer(layer).service(inner).oneshot(()).await;
        assert!(matches!(verdict.result, Err(Rejection::Internal)));
        assert_eq!(panics.get(), 2);
    }
}
