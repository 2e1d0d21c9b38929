//! What systemd is told of the process (`Type=notify`): that it serves, reloads, stops, and that
//! it is alive. Without `NOTIFY_SOCKET` all of it does nothing.

use sd_notify::NotifyState;

/// It serves. `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    // A manager that cannot be reached ends the unit after its start timeout; this says why.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        tracing::warn!(%error, "systemd cannot be told that the gateway is ready: NOTIFY_SOCKET");
    }
}

/// It looks at its configuration because it was asked to; it serves again when the value is
/// dropped.
#[must_use = "the reload is over when this is dropped"]
pub struct Reloading(());

/// See [`Reloading`].
pub fn reloading() -> Reloading {
    // `Type=notify-reload` compares the time with that of its signal.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
    Reloading(())
}

impl Drop for Reloading {
    fn drop(&mut self) {
        tell(&[NotifyState::Ready]);
    }
}

/// What `systemctl status` shows from now on.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// It is going to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what runs is being finished")]);
}

/// Says that the process is alive, twice in each `WatchdogSec`, for as long as its runtime keeps
/// time and runs new tasks; ends at once where nobody watches.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    loop {
        // Half of it, as systemd advises.
        tokio::time::sleep(limit / 2).await;
        // A new task, as each connection is: a runtime that runs none serves nobody.
        if tokio::spawn(async {}).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// A message that gets lost is followed by others, or by what systemd does without.
fn tell(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
