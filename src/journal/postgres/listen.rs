//! Waiting for the end of an attempt that may run in another gateway.
//!
//! Whoever records an end wakes its own process and, if somebody waits elsewhere, notifies the
//! others (`NOTIFY` takes a lock that all commits of a database share, so it is not done for
//! nobody). Nothing depends on it: behind it, those who wait look again, at first often. That is
//! all there is where a pooler or another server that speaks the protocol keeps notifications to
//! itself.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::AsyncMessage;

use super::target::Target;
use crate::journal::key::DeliveryKey;

/// Where notifications are sent.
pub(super) const CHANNEL: &str = "spigate_ended";
/// Shortest and longest time without a look.
const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// A wait that nobody has gone on with for this long is over.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// Longest pause between two tries to listen.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The deliveries that copies in this process wait for.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<DeliveryKey, Wait>>);

struct Wait {
    since: Instant,
    last: Instant,
    ended: Arc<Notify>,
}

impl Waiting {
    fn waits(&self) -> MutexGuard<'_, HashMap<DeliveryKey, Wait>> {
        // Every change is made by code that does not panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when the attempt may have ended, or when it is time to look again anyway: the
    /// longer somebody waits, the later.
    pub(super) async fn changed(&self, key: DeliveryKey) {
        let now = Instant::now();
        let (since, ended) = {
            let mut waits = self.waits();
            let wait = waits.entry(key).or_insert_with(|| Wait { since: now, last: now, ended: Arc::default() });
            wait.last = now;
            (wait.since, Arc::clone(&wait.ended))
        };
        let until_look = ((now - since) / 2).clamp(LOOKS.0, LOOKS.1);
        // Either way somebody looks.
        let _ = timeout(until_look, ended.notified()).await;
    }

    /// Wakes those who wait for a delivery.
    pub(super) fn wake(&self, key: &DeliveryKey) {
        if let Some(wait) = self.waits().remove(key) {
            wait.ended.notify_waiters();
        }
    }

    /// A notification may have been missed.
    fn wake_all(&self) {
        for (_, wait) in self.waits().drain() {
            wait.ended.notify_waiters();
        }
    }

    fn forget_the_forgotten(&self) {
        self.waits().retain(|_, wait| wait.last.elapsed() < FORGOTTEN);
    }
}

/// What is sent for a delivery.
pub(super) fn payload(key: &DeliveryKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_of(payload: &str) -> Option<DeliveryKey> {
    let digits: Vec<u8> = payload.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    DeliveryKey::from_slice(&bytes)
}

/// Hears notifications, on a connection of its own, until it is aborted.
pub(super) async fn listen(target: Target, waiting: Arc<Waiting>) {
    let mut pause = LOOKS.0;
    loop {
        let heard = async {
            let mut sweep = tokio::time::interval(FORGOTTEN);
            loop {
                sweep.tick().await;
                waiting.forget_the_forgotten();
            }
        };
        let began = Instant::now();
        tokio::select! {
            () = hear(&target, &waiting) => {}
            () = heard => {}
        }
        waiting.wake_all();
        // A connection that lasted is made again at once.
        pause = if began.elapsed() > LONGEST_PAUSE { LOOKS.0 } else { (pause * 2).min(LONGEST_PAUSE) };
        sleep(pause).await;
    }
}

/// Hears notifications until the connection breaks.
async fn hear(target: &Target, waiting: &Waiting) {
    let Ok(Ok((client, mut connection))) = timeout(target.limit, target.config.connect(target.tls.clone())).await
    else {
        return;
    };
    let mut messages = pin!(async {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message
                && let Some(key) = key_of(notification.payload())
            {
                waiting.wake(&key);
            }
        }
    });
    let listening = async {
        if client.batch_execute(&format!("LISTEN {CHANNEL}")).await.is_ok() {
            // Only now it is certain to hear all that follows.
            waiting.wake_all();
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = &mut messages => {}
        () = listening => {}
    }
}
