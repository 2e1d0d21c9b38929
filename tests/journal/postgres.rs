//! PostgreSQL: the common suite, and what only it has to do: several gateways, and a server that
//! goes away and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spigate::config::scalar::Secret;
use spigate::journal::postgres::PostgresStore;

use crate::bench::{Bench, Gateway};
use crate::postgres_server::Server;

mod faults;
mod gateways;
mod lost_answers;
mod opening;

mod contract {
    crate::contract::contract!(crate::postgres::Postgres::new());
}

#[test]
fn postgres_keeps_the_guarantee() {
    crate::model::a_store_keeps_the_guarantee(12, Postgres::new);
}

/// No test takes so long that a lease ends by itself.
const LEASE: Duration = Duration::from_secs(3600);

/// A name that no other gateway has.
fn name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    format!("gateway-{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A database of its own on a server.
pub(crate) struct Postgres {
    server: Arc<Server>,
    database: String,
}

impl Postgres {
    /// On the server that all tests share.
    #[expect(clippy::unused_async, reason = "as the suite calls it")]
    pub(crate) async fn new() -> Option<Self> {
        Some(Self::on(Server::shared()?))
    }

    fn on(server: Arc<Server>) -> Self {
        Self { database: server.database(), server }
    }

    /// Of which no test waits for a limit.
    fn store(&self, name: &str) -> PostgresStore {
        PostgresStore::patient(&self.url(), name.to_owned(), LEASE).unwrap()
    }

    fn url(&self) -> Secret {
        Secret::new(self.server.url(&self.database))
    }

    /// A gateway with a gateway's patience.
    async fn open_hasty(&self) -> Gateway {
        let name = name();
        self.begin(PostgresStore::new(&self.url(), name.clone(), LEASE).unwrap(), name).await
    }

    async fn begin(&self, store: PostgresStore, name: String) -> Gateway {
        store.open().await.unwrap();
        self.settle(&name);
        Gateway::new(name, Arc::new(store)).await
    }

    /// Runs statements behind the store's back.
    fn sql(&self, statements: &str) -> String {
        self.server.sql(&self.database, statements)
    }

    /// What happens if a gateway has held its lease for long: it can tell who is gone.
    fn settle(&self, gateway: &str) {
        self.sql(&format!("UPDATE spigate_gateways SET since = since - interval '1 day' WHERE id = '{gateway}'"));
    }

    /// What happens if a gateway does not renew its lease.
    fn end_lease(&self, gateway: &str) {
        self.sql(&format!(
            "UPDATE spigate_gateways SET lease_until = clock_timestamp() - interval '1 second' WHERE id = '{gateway}'"
        ));
    }
}

impl Bench for Postgres {
    const SHARED: bool = true;
    const DURABLE: bool = true;
    const OWN_CLOCK: bool = true;

    async fn open(&mut self) -> Gateway {
        let name = name();
        self.begin(self.store(&name), name).await
    }

    async fn crash(&mut self, gateway: Gateway) -> Gateway {
        let name = gateway.name.clone();
        drop(gateway);
        self.end_lease(&name);
        self.open().await
    }
}
