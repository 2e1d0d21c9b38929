//! What a store answers: there already, from another thread, or by work of its own.
//!
//! A trait's operation has to name the future that it returns. A box does that for every future, and
//! an order would ask for three of them; only those that need one have one.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::store::Unavailable;

/// The result of an operation, once it is durable.
#[must_use = "futures do nothing unless polled"]
pub struct Answer<'s, T>(Source<'s, T>);

enum Source<'s, T> {
    /// Until it was taken.
    Known(Option<Result<T, Unavailable>>),
    Thread(oneshot::Receiver<Result<T, Unavailable>>),
    Work(Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 's>>),
}

impl<'s, T> Answer<'s, T> {
    /// Known by now.
    pub fn known(result: Result<T, Unavailable>) -> Self {
        Self(Source::Known(Some(result)))
    }

    /// Whatever this work comes to.
    pub fn work(work: impl Future<Output = Result<T, Unavailable>> + Send + 's) -> Self {
        Self(Source::Work(Box::pin(work)))
    }

    /// Whatever a thread says. One that ends without an answer is a failure.
    pub(super) fn thread(answer: oneshot::Receiver<Result<T, Unavailable>>) -> Self {
        Self(Source::Thread(answer))
    }
}

/// Nothing that is pinned is within; work is in its box.
impl<T> Unpin for Answer<'_, T> {}

impl<T> Future for Answer<'_, T> {
    type Output = Result<T, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Asked again after its end, which nobody does, it stays silent.
            Source::Known(result) => result.take().map_or(Poll::Pending, Poll::Ready),
            Source::Thread(answer) => {
                let told = ready!(Pin::new(answer).poll(context));
                Poll::Ready(told.unwrap_or_else(|_| Err(Unavailable::new("the journal's thread has ended"))))
            }
            Source::Work(work) => work.as_mut().poll(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn wherever_it_comes_from_it_is_told_once() {
        let (tell, told) = oneshot::channel();
        let mut from_thread = Answer::thread(told);
        assert_eq!((&mut from_thread).now_or_never(), None);
        tell.send(Ok(2)).unwrap();
        for (number, mut answer) in [(1, Answer::known(Ok(1))), (2, from_thread), (3, Answer::work(async { Ok(3) }))] {
            assert_eq!((&mut answer).now_or_never(), Some(Ok(number)));
        }
        let mut known = Answer::known(Ok(4));
        assert_eq!(((&mut known).now_or_never(), known.now_or_never()), (Some(Ok(4)), None));
    }

    #[test]
    fn a_thread_that_has_ended_is_a_failure_of_all() {
        let (tell, told) = oneshot::channel::<Result<(), Unavailable>>();
        drop(tell);
        let failure = Answer::thread(told).now_or_never().unwrap().unwrap_err();
        assert!(!failure.is_local && failure.cause.contains("has ended"), "{failure}");
    }
}
