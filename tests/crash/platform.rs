//! The platform: many customers at once, each order signed anew and sent until it is answered
//! with success or given up.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::gateway::support::client::get;
use crate::gateway::support::order::{Order, action, create, now};
use crate::ledger::{Ledger, delivery};
use crate::random;

/// Customers at once.
const CUSTOMERS: usize = 24;
/// Askers that look whether what was answered stays answered.
const CHECKERS: usize = 6;
/// How often an order is sent before some customers give up.
const PATIENCE: u64 = 40;

/// An answer that has to stay.
#[derive(Clone)]
pub(crate) struct Kept {
    action: &'static str,
    order: Order<'static>,
    body: Arc<str>,
}

impl Kept {
    pub(crate) fn action(&self) -> &str {
        self.action
    }

    /// Its order number; what ends an instance has none.
    pub(crate) fn order_id(&self) -> Option<&str> {
        (self.action != EXPIRE).then(|| self.order.value("order_id"))
    }

    fn delivery(&self) -> String {
        name(self.action, &self.order)
    }
}

const EXPIRE: &str = "ExpireAppInstance";

fn name(action: &str, order: &Order<'_>) -> String {
    delivery(action, order.value(if action == EXPIRE { "instance_id" } else { "order_id" }))
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Platform {
    ledger: Ledger,
    address: watch::Sender<Option<SocketAddr>>,
    stopping: watch::Sender<bool>,
    again: Arc<(Mutex<VecDeque<Kept>>, Notify)>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What came back.
enum Answer {
    Success(String),
    /// Status and body.
    Other(u16, String),
    /// Nothing whole: from this address nothing more can be expected.
    Nothing(SocketAddr),
}

impl Platform {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            address: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            again: Arc::default(),
            tasks: Arc::default(),
        }
    }

    /// Where the gateway is, if it is anywhere.
    pub(crate) fn reach(&self, address: Option<SocketAddr>) {
        self.address.send_replace(address);
    }

    /// Begins.
    pub(crate) fn work(&self) {
        let mut tasks = self.tasks.lock().unwrap();
        for _ in 0..CUSTOMERS {
            let platform = self.clone();
            tasks.spawn(async move {
                while !*platform.stopping.borrow() {
                    // Given up, or told to stop.
                    let _ = platform.customer().await;
                }
            });
        }
        for _ in 0..CHECKERS {
            let platform = self.clone();
            tasks.spawn(async move { platform.check().await });
        }
    }

    /// Lets these be asked for again beside everything else.
    pub(crate) fn ask_again(&self, sample: &[Kept]) {
        self.again.0.lock().unwrap().extend(sample.iter().cloned());
        self.again.1.notify_waiters();
    }

    /// Begins nothing more, and waits until nobody asks any more.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        self.again.1.notify_waiters();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.join_all().await;
    }

    /// Asks for all of these again.
    pub(crate) async fn all_again(&self, all: Vec<Kept>) {
        self.again.0.lock().unwrap().extend(all);
        (0..CUSTOMERS)
            .map(|_| {
                let platform = self.clone();
                async move { platform.check().await }
            })
            .collect::<JoinSet<()>>()
            .join_all()
            .await;
    }

    async fn check(&self) {
        loop {
            let more = self.again.1.notified();
            let next = self.again.0.lock().unwrap().pop_front();
            match next {
                Some(kept) => self.again(&kept).await,
                None if *self.stopping.borrow() => return,
                None => more.await,
            }
        }
    }

    /// One customer's instance: bought, renewed, expired, and round again.
    async fn customer(&self) -> Option<()> {
        let bought = create();
        let body = self.buy("CreateAppInstance", &bought, true).await?;
        self.keep("CreateAppInstance", bought, &body);
        let instance = serde_json::from_str::<Value>(&body).unwrap()["instanceId"].as_str().unwrap().to_owned();
        let mut may_be_expired = None;
        for _ in 0..random(3) {
            if let Some(expired) = may_be_expired.take() {
                self.again(&expired).await;
            }
            let renewal = action("RenewAppInstance").with("instance_id", &instance);
            // Who gives up here cannot know in which cycle the instance is.
            let body = self.buy("RenewAppInstance", &renewal, false).await?;
            self.keep("RenewAppInstance", renewal, &body);
            self.ledger.new_cycle(&delivery(EXPIRE, &instance));
            let end = action(EXPIRE).with("instance_id", &instance);
            let body = self.buy(EXPIRE, &end, true).await?;
            may_be_expired = Some(Kept { action: EXPIRE, order: end, body: body.into() });
        }
        if let Some(expired) = may_be_expired {
            self.ledger.keep(expired);
        }
        Some(())
    }

    fn keep(&self, action: &'static str, order: Order<'static>, body: &str) {
        self.ledger.keep(Kept { action, order, body: body.into() });
    }

    /// Sends an order until it is answered with success; `None` if it was given up.
    async fn buy(&self, action: &str, order: &Order<'static>, may_give_up: bool) -> Option<String> {
        let patience = if may_give_up { random(PATIENCE) } else { u64::MAX };
        for _ in 0..=patience {
            if *self.stopping.borrow() {
                return None;
            }
            match self.send(order).await {
                Answer::Success(body) => {
                    self.ledger.answered(&name(action, order), &body);
                    return Some(body);
                }
                // The platform waits a while before it comes again.
                Answer::Other(503, _) => tokio::time::sleep(Duration::from_millis(20)).await,
                Answer::Other(..) => {}
                Answer::Nothing(address) => self.elsewhere(address).await,
            }
        }
        None
    }

    /// What was answered once is answered again.
    async fn again(&self, kept: &Kept) {
        loop {
            match self.send(&kept.order).await {
                Answer::Success(body) if *body == *kept.body => return,
                Answer::Success(body) => {
                    return self.ledger.broken(format!("{}: was {}, is {body}", kept.delivery(), kept.body));
                }
                Answer::Other(503, _) => tokio::task::yield_now().await,
                Answer::Other(status, body) => {
                    return self.ledger.broken(format!("{}: was {}, is {status} {body}", kept.delivery(), kept.body));
                }
                Answer::Nothing(address) => self.elsewhere(address).await,
            }
        }
    }

    /// Waits until the gateway is to be reached at another address, or for a while: the next one may
    /// have been given the same port.
    async fn elsewhere(&self, address: SocketAddr) {
        let is_new = |known: &Option<SocketAddr>| known.is_some_and(|known| known != address);
        let _ = timeout(Duration::from_secs(1), self.address.subscribe().wait_for(is_new)).await;
    }

    async fn send(&self, order: &Order<'static>) -> Answer {
        let address = self.address.subscribe().wait_for(Option::is_some).await.unwrap().unwrap();
        let request = get(&order.clone().signed_at(now()).target(), "Connection: close\r\n");
        exchange(address, &request).await.unwrap_or(Answer::Nothing(address))
    }
}

/// Sends a request on a connection of its own; `None` without a whole answer.
async fn exchange(address: SocketAddr, request: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    // A reset after a whole answer does not take it back.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = head.to_ascii_lowercase();
    let length = head.split_once("content-length: ")?.1.split('\r').next()?;
    if length.parse() != Ok(body.len()) {
        return None;
    }
    let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
    let said: Value = serde_json::from_str(body).ok()?;
    let is_json = head.contains("content-type: application/json\r\n") || head.ends_with("application/json");
    let success = status == 200 && is_json && said["success"] == Value::Bool(true);
    Some(if success { Answer::Success(body.to_owned()) } else { Answer::Other(status, body.to_owned()) })
}
