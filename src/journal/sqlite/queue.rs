//! What waits for a thread: jobs in their order, and apart from them those that nobody waits for.
//!
//! A channel would wake the thread for each of them. Here what is lazy wakes nobody but to set the
//! time until which it may be put off; else each order would cost two changes between threads for
//! nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most jobs that are taken at once: bounds how long the first of them waits.
const LARGEST_BATCH: usize = 512;

/// How long what nobody waits for may be put off.
const LAZINESS: Duration = Duration::from_millis(100);

/// Jobs that are many: so many lazy ones are put off no longer, and among so many others they do not
/// count.
const MANY: usize = 64;

/// When a job has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// After all that came before it.
    InOrder,
    /// Nobody waits for it, so it may be overtaken for a while.
    Lazy,
    /// Soon, and it does not matter to it whether what is lazy was done.
    Ahead,
}

/// The end where jobs come in. The queue ends with it, once all that came in was taken.
pub(super) struct Sender<J>(Arc<Queue<J>>);

/// The end of the thread. Jobs that it has not taken when it is dropped are dropped with it.
pub(super) struct Receiver<J>(Arc<Queue<J>>);

struct Queue<J> {
    waiting: Mutex<Waiting<J>>,
    came: Condvar,
}

struct Waiting<J> {
    jobs: VecDeque<(Turn, J)>,
    lazy: Vec<J>,
    /// Until when the first lazy one may be put off.
    until: Option<Instant>,
    /// Whether the thread sleeps, and nobody has woken it yet.
    sleeps: bool,
    /// One of the ends is gone.
    ended: bool,
}

/// A queue.
pub(super) fn queue<J>() -> (Sender<J>, Receiver<J>) {
    let waiting = Waiting { jobs: VecDeque::new(), lazy: Vec::new(), until: None, sleeps: false, ended: false };
    let queue = Arc::new(Queue { waiting: Mutex::new(waiting), came: Condvar::new() });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<J> Queue<J> {
    fn lock(&self) -> MutexGuard<'_, Waiting<J>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until somebody comes, or what is lazy is due.
    fn sleep<'q>(&'q self, mut waiting: MutexGuard<'q, Waiting<J>>) -> MutexGuard<'q, Waiting<J>> {
        waiting.sleeps = true;
        let mut woken = match waiting.until {
            None => self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.came.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        woken.sleeps = false;
        woken
    }
}

impl<J> Sender<J> {
    /// Puts a job into the queue; gives it back if nobody takes jobs any more.
    pub(super) fn send(&self, turn: Turn, job: J) -> Result<(), J> {
        let mut waiting = self.0.lock();
        if waiting.ended {
            return Err(job);
        }
        let mut is_to_know = true;
        if turn == Turn::Lazy {
            is_to_know = waiting.until.is_none();
            waiting.until.get_or_insert_with(|| Instant::now() + LAZINESS);
            waiting.lazy.push(job);
        } else {
            waiting.jobs.push_back((turn, job));
        }
        // Told once: until the thread is up, others would call the kernel for nothing.
        let wakes = is_to_know && std::mem::take(&mut waiting.sleeps);
        drop(waiting);
        if wakes {
            self.0.came.notify_one();
        }
        Ok(())
    }
}

impl<J> Drop for Sender<J> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.came.notify_one();
    }
}

impl<J> Drop for Receiver<J> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.ended = true;
        let left = (std::mem::take(&mut waiting.jobs), std::mem::take(&mut waiting.lazy));
        drop(waiting);
        drop(left);
    }
}

impl<J> Receiver<J> {
    /// Waits for a job; `None` when there will be no more.
    pub(super) fn next(&self) -> Option<J> {
        let mut one = Vec::with_capacity(1);
        self.take(1, &mut one).then(|| one.pop()).flatten()
    }

    /// Waits for jobs, and takes all that are there into `batch`, which is empty; `false` when there will
    /// be no more.
    pub(super) fn gather(&self, batch: &mut Vec<J>) -> bool {
        self.take(LARGEST_BATCH, batch)
    }

    /// Whether there is nothing to do, not even soon, but to wait for more.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.0.lock();
        waiting.jobs.is_empty() && !waiting.is_due() && !waiting.ended
    }

    fn take(&self, most: usize, batch: &mut Vec<J>) -> bool {
        let mut waiting = self.0.lock();
        while waiting.jobs.is_empty() && !waiting.is_due() && !waiting.ended {
            waiting = self.0.sleep(waiting);
        }
        if !waiting.jobs.is_empty() && most > 1 {
            // Whoever has a job at hand and waits for this core may hand it in. If nobody does, this
            // costs nothing.
            drop(waiting);
            thread::yield_now();
            waiting = self.0.lock();
        }
        let count = waiting.jobs.len().min(most);
        let is_in_order = waiting.jobs.range(..count).any(|(turn, _)| *turn == Turn::InOrder);
        // A flush that many wait for takes along what is lazy. It goes before them: each may be about
        // what came to be before it was told.
        if is_in_order || count == 0 || count >= MANY || waiting.lazy.len() >= MANY || waiting.is_due() {
            waiting.until = None;
            batch.append(&mut waiting.lazy);
        }
        batch.extend(waiting.jobs.drain(..count).map(|(_, job)| job));
        !batch.is_empty()
    }
}

impl<J> Waiting<J> {
    /// Whether what is lazy can no longer be put off.
    fn is_due(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(queue: &Receiver<u32>) -> Vec<u32> {
        let mut batch = Vec::new();
        assert_eq!(queue.gather(&mut batch), !batch.is_empty());
        batch
    }

    #[test]
    fn what_is_lazy_comes_before_what_wants_its_turn_and_lets_others_go_ahead() {
        let (sender, receiver) = queue();
        let send = |turn, jobs: std::ops::Range<u32>| jobs.for_each(|job| sender.send(turn, job).unwrap());
        // However slow this machine is.
        sender.0.lock().until = Some(Instant::now() + Duration::from_secs(3600));
        send(Turn::Lazy, 1..3);
        send(Turn::Ahead, 3..5);
        assert_eq!(gathered(&receiver), [3, 4]);
        send(Turn::Ahead, 5..6);
        send(Turn::Lazy, 6..7);
        send(Turn::InOrder, 7..8);
        assert_eq!(gathered(&receiver), [1, 2, 6, 5, 7]);
        // Among many it does not count.
        send(Turn::Lazy, 8..9);
        send(Turn::Ahead, 9..9 + 64);
        assert_eq!(gathered(&receiver)[..3], [8, 9, 10]);
        // And many count themselves.
        send(Turn::Ahead, 0..1);
        send(Turn::Lazy, 1..1 + 64);
        assert_eq!(gathered(&receiver).len(), 65);
    }

    #[test]
    fn it_is_idle_while_there_is_nothing_to_do() {
        let (sender, receiver) = queue();
        assert!(receiver.is_idle());
        sender.send(Turn::Ahead, 1).unwrap();
        assert!(!receiver.is_idle());
        assert_eq!(gathered(&receiver), [1]);
        // What is put off leaves time, until it cannot be put off any more.
        sender.0.lock().until = Some(Instant::now() + Duration::from_secs(3600));
        sender.send(Turn::Lazy, 2).unwrap();
        assert!(receiver.is_idle());
        sender.0.lock().until = Some(Instant::now());
        assert!(!receiver.is_idle());
        assert_eq!(gathered(&receiver), [2]);
        drop(sender);
        assert!(!receiver.is_idle());
    }

    #[test]
    fn a_batch_has_a_bound_and_the_rest_is_the_next() {
        let (sender, receiver) = queue();
        (0..700).for_each(|job| sender.send(Turn::Ahead, job).unwrap());
        assert_eq!(gathered(&receiver), (0..512).collect::<Vec<_>>());
        assert_eq!(receiver.next(), Some(512));
        assert_eq!(gathered(&receiver), (513..700).collect::<Vec<_>>());
    }

    /// Neither at once nor each by itself, but also if nothing else ever comes.
    #[test]
    fn what_is_lazy_is_put_off_and_then_taken_together() {
        let (sender, receiver) = queue();
        let begun = Instant::now();
        let all =
            move || std::iter::repeat_with(|| gathered(&receiver)).take_while(|batch| !batch.is_empty()).collect();
        let thread = thread::spawn(all);
        let sleeps = || sender.0.lock().sleeps;
        // The first wakes the thread, which goes to sleep again, and those after it do not.
        for job in 0..8 {
            while !sleeps() {
                thread::yield_now();
            }
            sender.send(Turn::Lazy, job).unwrap();
            assert!(job == 0 || sleeps() || sender.0.lock().is_due() || sender.0.lock().lazy.is_empty());
        }
        let has_stalled = begun.elapsed() >= LAZINESS;
        while !sender.0.lock().lazy.is_empty() {
            thread::yield_now();
        }
        assert!(begun.elapsed() >= LAZINESS, "{:?}", begun.elapsed());
        sender.send(Turn::Ahead, 8).unwrap();
        while !sender.0.lock().jobs.is_empty() {
            thread::yield_now();
        }
        drop(sender);
        let batches: Vec<Vec<u32>> = thread.join().unwrap();
        assert_eq!(batches.concat(), (0..9).collect::<Vec<_>>());
        // This thread, that is.
        assert!(has_stalled || batches == [(0..8).collect(), vec![8]], "{batches:?}");
    }

    #[test]
    fn each_job_comes_out_once_and_each_sender_s_in_their_order() {
        let (sender, receiver) = queue();
        let all = thread::scope(|scope| {
            let (sender, turns) = (Arc::new(sender), [Turn::Ahead, Turn::InOrder, Turn::Lazy, Turn::Ahead]);
            for (who, turn) in (0_u32..).zip(turns) {
                let sender = Arc::clone(&sender);
                scope.spawn(move || (0..5000).for_each(|job| sender.send(turn, who * 10_000 + job).unwrap()));
            }
            drop(sender);
            let (mut all, mut batch) = (Vec::new(), Vec::new());
            while receiver.gather(&mut batch) {
                all.append(&mut batch);
            }
            all
        });
        for who in 0..4 {
            let of_one = all.iter().filter(|job| **job / 10_000 == who).map(|job| job % 10_000);
            assert!(of_one.eq(0..5000), "sender {who}");
        }
    }

    #[test]
    fn the_end_of_either_side_is_the_end_of_the_other() {
        let (sender, receiver) = queue();
        // However slow this machine is.
        sender.0.lock().until = Some(Instant::now() + Duration::from_secs(3600));
        sender.send(Turn::Ahead, 1).unwrap();
        sender.send(Turn::Lazy, 2).unwrap();
        drop(sender);
        assert_eq!((gathered(&receiver), gathered(&receiver), gathered(&receiver)), (vec![1], vec![2], vec![]));
        assert_eq!(receiver.next(), None);

        let (sender, receiver) = queue();
        let (left, lazy) = (Arc::new(()), Arc::new(()));
        sender.send(Turn::Ahead, Arc::clone(&left)).unwrap();
        sender.send(Turn::Lazy, Arc::clone(&lazy)).unwrap();
        drop(receiver);
        assert_eq!((Arc::strong_count(&left), Arc::strong_count(&lazy)), (1, 1));
        assert!(sender.send(Turn::Ahead, left).is_err());
    }
}
