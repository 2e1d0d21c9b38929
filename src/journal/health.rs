//! Whether the journal can be used. While it cannot, requests are refused at once instead of
//! waiting for a server that does not answer; whoever probes it opens the way again.

use tokio::sync::{Notify, watch};

use super::store::Unavailable;

/// The journal's health.
pub struct Health {
    cause: watch::Sender<Option<Unavailable>>,
    failed: Notify,
}

impl Default for Health {
    fn default() -> Self {
        Self { cause: watch::Sender::new(None), failed: Notify::new() }
    }
}

impl Health {
    /// Whether it can be used.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Unavailable> {
        self.cause.borrow().clone().map_or(Ok(()), Err)
    }

    /// Whether it can be used.
    pub fn is_well(&self) -> bool {
        self.cause.borrow().is_none()
    }

    /// An operation failed that deliveries depend on.
    pub fn failed(&self, unavailable: &Unavailable) {
        let begins = self.cause.send_if_modified(|cause| cause.replace(unavailable.clone()).is_none());
        if begins {
            tracing::error!(cause = %unavailable, "the journal is not available: deliveries are answered 503");
            self.failed.notify_one();
        }
    }

    /// A probe succeeded.
    pub fn is_well_again(&self) {
        if self.cause.send_if_modified(|cause| cause.take().is_some()) {
            tracing::info!("the journal is available");
        }
    }

    /// Comes back when an operation fails after all was well.
    pub async fn failure(&self) {
        self.failed.notified().await;
    }

    /// Comes back when the journal can be used.
    pub async fn wellness(&self) {
        // The sender lives as long as this does.
        let _ = self.cause.subscribe().wait_for(Option::is_none).await;
    }
}
