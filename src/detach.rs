//! Work that goes on when whoever waits for it goes away.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Runs a future within the task that polls this and, when this is dropped before the future has
/// ended, in a task of its own. One of its own from the start would cost every delivery a second
/// task, and memory that two tasks touch in turn.
///
/// The tracker waits for it either way. A panic goes to whoever polls, and ends it.
pub struct DetachOnDrop<F: Future<Output = ()> + Send + Unpin + 'static> {
    /// Nothing once it has ended, and while it is polled: what has panicked is not polled again.
    future: Option<F>,
    tasks: TaskTracker,
    _counted: TaskTrackerToken,
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> DetachOnDrop<F> {
    /// Nothing is done before it is polled, or dropped.
    pub fn new(future: F, tasks: &TaskTracker) -> Self {
        Self { future: Some(future), tasks: tasks.clone(), _counted: tasks.token() }
    }
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> Future for DetachOnDrop<F> {
    type Output = ();

    /// May be polled on after it has ended.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(mut future) = self.future.take() else { return Poll::Ready(()) };
        let polled = Pin::new(&mut future).poll(context);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<F: Future<Output = ()> + Send + Unpin + 'static> Drop for DetachOnDrop<F> {
    fn drop(&mut self) {
        // Without a runtime the process ends.
        if let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) {
            self.tasks.spawn_on(future, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    /// Work of three steps, each of which waits to be let go.
    fn steps(gate: &Arc<Notify>, done: &Arc<AtomicUsize>) -> impl Future<Output = ()> + Send + Unpin + use<> {
        let (gate, done) = (Arc::clone(gate), Arc::clone(done));
        Box::pin(async move {
            for _ in 0..3 {
                gate.notified().await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    #[tokio::test]
    async fn it_goes_on_wherever_it_was_when_it_was_dropped_and_is_waited_for() {
        for polled in 0..=3 {
            let (tasks, gate, done) = (TaskTracker::new(), Arc::new(Notify::new()), Arc::default());
            let mut work = DetachOnDrop::new(steps(&gate, &done), &tasks);
            assert_eq!(tasks.len(), 1);
            for step in 1..=polled {
                gate.notify_one();
                assert_eq!((&mut work).now_or_never().is_some(), step == 3);
                assert_eq!(done.load(Ordering::SeqCst), step);
            }
            drop(work);
            tasks.close();
            for step in polled..3 {
                assert_eq!(tasks.len(), 1, "after {step} steps");
                gate.notify_one();
                while done.load(Ordering::SeqCst) == step {
                    yield_now().await;
                }
            }
            tasks.wait().await;
            assert_eq!(done.load(Ordering::SeqCst), 3);
        }
    }

    #[tokio::test]
    async fn it_ends_with_a_panic() {
        let tasks = TaskTracker::new();
        let mut work = DetachOnDrop::new(Box::pin(async { panic!("a bug") }), &tasks);
        assert!(catch_unwind(AssertUnwindSafe(|| (&mut work).now_or_never())).is_err());
        assert_eq!((&mut work).now_or_never(), Some(()));
        drop(work);
        tasks.close();
        tasks.wait().await;
    }

    #[test]
    fn without_a_runtime_it_is_dropped() {
        let (gate, done) = (Arc::new(Notify::new()), Arc::default());
        drop(DetachOnDrop::new(steps(&gate, &done), &TaskTracker::new()));
        assert_eq!(Arc::strong_count(&done), 1);
    }
}
