//! What is known of a request once it has been answered: filled in stop by stop, read by the
//! metrics and the access log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};

use crate::app::App;
use crate::backend::RawReply;
use crate::companion::Contract;
use crate::delivery::{Delivery, Outcome};
use crate::dialect::Dialect;
use crate::journal::Receipt;
use crate::journal::key::DeliveryKey;
use crate::rejection::Rejection;
use crate::stage::contract::Checked;
use crate::stage::validate;

/// A request's story.
#[derive(Clone, Default)]
pub struct Exchange {
    /// The app, once it was found.
    pub app: Option<Arc<App>>,
    /// Position of the key that verified it.
    pub key: Option<usize>,
    /// Position of the action, once it was verified and found.
    pub action: Option<usize>,
    /// Whether it is a trial run.
    pub debug: Option<bool>,
    /// The order's number.
    pub order_id: Option<Arc<str>>,
    /// The instance that it is about, or that it made.
    pub instance_id: Option<String>,
    /// How its delivery ended; none if it was refused before.
    pub outcome: Option<Outcome>,
    /// How long the backend took.
    pub backend_time: Option<Duration>,
    /// Which delivery it is in the journal, and the attempt.
    pub recorded: Option<(DeliveryKey, u32)>,
    /// Whom to tell once the platform was answered.
    pub receipt: Option<Receipt>,
    /// How the companion was asked, if it was.
    pub companion: Option<Contract>,
    /// The request that it was asked about, once that is known.
    pub original: Option<Box<(Method, Uri)>>,
    /// Why it would have been refused, had its app not been observed only.
    pub would_refuse: Option<Rejection>,
}

impl Exchange {
    /// Learns what a verified and checked request says of itself. Not before: what an
    /// unauthenticated caller claims does not belong into logs and labels.
    pub fn learn(&mut self, app: &App, checked: &Checked) {
        let dialect = &*app.config.dialect;
        let text = |field: Option<usize>| field.and_then(|field| checked.request().text(field));
        self.action = Some(checked.request().action_index());
        self.debug = Some(checked.request().is_debug(dialect));
        self.order_id = text(dialect.order).map(Arc::from);
        self.instance_id = text(dialect.instance).map(str::to_owned);
    }

    /// Learns how a request of an app ended that is observed only: whether it would have been
    /// refused, or else its reply.
    pub fn observed(&mut self, dialect: &Dialect, checked: Result<&Checked, &Rejection>, reply: &RawReply) {
        match checked {
            Ok(checked) => {
                let action = &dialect.actions[checked.request().action_index()];
                let judged = validate::validate(&action.reply, reply.clone());
                self.outcome = Some(judged.outcome);
                self.instance_id = judged.instance_id.or(self.instance_id.take());
                self.would_refuse = judged.answer.err();
            }
            Err(refusal) => {
                let outcome = if reply.status.is_success() { Outcome::Delivered } else { Outcome::Failed };
                self.outcome = Some(outcome);
                self.would_refuse = Some(refusal.clone());
            }
        }
    }

    /// Learns how the delivery ended, and hands on what it is answered with.
    ///
    /// # Errors
    /// Why there is no answer of the backend.
    pub fn conclude(&mut self, delivery: Delivery) -> Result<Bytes, Rejection> {
        let Delivery { outcome, answer, instance_id, backend_time, recorded, receipt } = delivery;
        self.outcome = Some(outcome);
        self.backend_time = backend_time;
        self.recorded = recorded;
        self.receipt = receipt;
        self.instance_id = instance_id.or(self.instance_id.take());
        answer
    }
}

/// What the inner service hands to the layer that answers.
#[derive(Clone)]
pub struct Verdict {
    /// The story.
    pub exchange: Exchange,
    /// The backend's words, or why there are none.
    pub result: Result<Answer, Rejection>,
    /// The request's headers, which nobody needs any more: their room is there for the answer's.
    pub headers: HeaderMap,
}

/// The backend's words, or what the companion has to say.
#[derive(Clone)]
pub enum Answer {
    /// A body that keeps the contract.
    Judged(Bytes),
    /// A reply that is passed on whatever it says.
    AsItCame(RawReply),
    /// The headers that an ingress copies: the request may pass.
    Allowed(HeaderMap),
}
