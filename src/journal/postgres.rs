//! The journal in PostgreSQL: for several gateways that deliver the same apps' orders.
//!
//! Every decision is read, taken by `machine.rs`, and written by one statement that compares and
//! swaps; a statement is a transaction, and none is left open between two. Whether a process
//! still lives is told by a lease, one row for each; leases and everything else that gateways
//! must agree on go by the server's clock. After an outage of the server all leases have ended,
//! although all processes live: so a gateway takes another one for gone only when it has held its
//! own lease for as long as one lasts, without a gap.
//!
//! - `target.rs`: the server that the URL names; `failure.rs`: what its errors mean
//! - `schema.rs`: the tables; `rows.rs`: entries as rows; `statement.rs`: how one is put together
//! - `database.rs`: runs statements
//! - `claim.rs`, `finish.rs`, `archive.rs`, `browse.rs`, `keys.rs`: what a store does; `write.rs`: how it writes
//! - `listen.rs`: waiting for an attempt that runs elsewhere

mod archive;
mod browse;
mod claim;
mod database;
mod failure;
mod finish;
mod keys;
mod listen;
mod rows;
mod schema;
mod statement;
mod target;
mod write;

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::failure::OpenError;

use self::database::{Database, Patience, Tables};
use self::failure::Failure;
use self::listen::Waiting;
use self::rows::Stored;
use self::statement::{Statement, text};
use self::target::Target;
use super::entry::{Ask, End, Entry, State};
use super::key::DeliveryKey;
use super::machine::{Claimed, Finished, Ruling};
use super::store::{
    Answer, Archive, Brief, Browsed, Counts, DataKey, Deliveries, Filter, Keys, Pruned, Record, Resolved, Retention,
    Store, Wrap,
};
use crate::config::scalar::Secret;

/// The part of a lease that has to be left when it is renewed, for it to be held without a gap. It
/// is renewed when two thirds are left: an outage that lets another gateway's lease end, whenever
/// that one was renewed last, leaves this one's with less than this.
const STILL_IN_TIME: f64 = 0.5;

/// See the module.
pub struct PostgresStore {
    shared: Arc<Shared>,
    /// Hears notifications, once somebody waits for one.
    listener: OnceLock<AbortHandle>,
}

/// What also those have who follow something up in the background.
struct Shared {
    database: Database,
    gateway: Arc<str>,
    lease: Duration,
    waiting: Arc<Waiting>,
    /// Claims that are followed up: asked again, they must not be taken for alive.
    given_up: Mutex<HashSet<i64>>,
}

impl PostgresStore {
    /// Prepares a store; connects to nothing yet. `gateway` names this process like no other.
    ///
    /// # Errors
    /// What is wrong with the URL; never a part of it.
    pub fn new(url: &Secret, gateway: impl Into<Arc<str>>, lease: Duration) -> Result<Self, String> {
        Self::over(url, Tables::Made, gateway.into(), lease, Patience::default())
    }

    /// The same for tests: whatever the machine does meanwhile, nothing is given up for that.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[doc(hidden)]
    pub fn patient(url: &Secret, gateway: impl Into<Arc<str>>, lease: Duration) -> Result<Self, String> {
        Self::over(url, Tables::Made, gateway.into(), lease, Patience::ENDLESS)
    }

    /// Prepares a store for somebody who looks at it beside its gateways, and changes no tables.
    ///
    /// # Errors
    /// What is wrong with the URL; never a part of it.
    pub fn visit(url: &Secret) -> Result<Self, String> {
        // Not a name that a gateway gives itself, and no lease: a visitor claims nothing.
        Self::over(url, Tables::Expected, "visitor".into(), Duration::ZERO, Patience::default())
    }

    fn over(
        url: &Secret,
        tables: Tables,
        gateway: Arc<str>,
        lease: Duration,
        patience: Patience,
    ) -> Result<Self, String> {
        let database = Database::new(Target::parse(url, patience.connect)?, tables, patience)?;
        let shared = Shared { database, gateway, lease, waiting: Arc::default(), given_up: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), listener: OnceLock::new() })
    }

    /// Connects, makes the tables or brings them up to date, and takes the lease: what a gateway
    /// wants to know at its start. Returns what of the server's settings somebody should change.
    ///
    /// Every operation does this too where it has not been done, so that a server that is not
    /// there at the start is no reason not to start.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self) -> Result<Vec<String>, OpenError> {
        let client = self.shared.database.open().await?;
        let warnings = schema::judge_settings(&client).await?;
        let lease = self.shared.lease_statement();
        client.query_typed(&lease.sql, &lease.parameters()).await?;
        Ok(warnings)
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

impl Shared {
    /// Takes or keeps the lease of this process. Whoever keeps it in good time has held it since it
    /// was taken; whoever does so late was itself cut off for longer than another one's lease may
    /// have lasted, and begins anew.
    async fn keep_lease(&self, deadline: Instant) -> Result<(), Failure> {
        loop {
            match self.database.run_reserved(self.lease_statement(), deadline).await {
                // Whoever else does it does the same.
                Ok(_) | Err(Failure::Race(_)) => return Ok(()),
                // Its connection may have been dead for long, and to do it twice does no harm.
                Err(Failure::Unknown(_)) if Instant::now() < deadline => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    fn lease_statement(&self) -> Statement {
        let lease = self.lease.as_secs_f64();
        let mut sql = Statement::new("INSERT INTO spigate_gateways AS g (id, since, lease_until) VALUES (");
        sql.bind(text(&self.gateway)).push(", clock_timestamp(), clock_timestamp() + interval '1 second' * ");
        sql.bind(lease).push(
            ") ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, since = CASE WHEN g.lease_until > \
             clock_timestamp() + interval '1 second' * ",
        );
        sql.bind(lease * STILL_IN_TIME).push(" THEN g.since ELSE excluded.since END");
        sql
    }

    fn given_up(&self) -> MutexGuard<'_, HashSet<i64>> {
        // Every change is made by code that does not panic half-way.
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry at a key, as it is recorded.
    async fn stored_at(&self, key: &DeliveryKey, deadline: Instant) -> Result<Option<Stored>, Failure> {
        let mut sql = Statement::new(format!("SELECT {} FROM spigate_deliveries AS d WHERE d.key = ", rows::ENTRY));
        sql.bind(key.as_bytes().to_vec());
        let rows = self.database.read(sql, deadline).await?;
        rows.first().map_or(Ok(None), rows::stored)
    }

    /// Tells those who wait in other gateways. Nothing depends on it, so nobody waits for it; and
    /// it stands alone, because not everything that speaks the protocol knows it.
    fn notify(self: &Arc<Self>, key: DeliveryKey) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let mut sql = Statement::new("SELECT pg_notify(");
            sql.bind(listen::CHANNEL.to_owned()).push(", ").bind(listen::payload(&key)).push(")");
            // Those who are not told look for themselves.
            let _ = shared.database.run(sql, shared.database.deadline()).await;
        });
    }
}

impl Deliveries for PostgresStore {
    fn claim(&self, ask: Arc<Ask>) -> Answer<'_, Claimed> {
        Answer::work(async move { claim::claim(&self.shared, &ask).await })
    }

    fn finish(&self, end: End) -> Answer<'_, (Finished, Arc<Entry>)> {
        Answer::work(async move { finish::finish(&self.shared, &end).await })
    }

    fn answered(&self, key: DeliveryKey, told: State, _: Timestamp) -> Answer<'static, ()> {
        let shared = Arc::clone(&self.shared);
        let mut sql = Statement::new(
            "UPDATE spigate_deliveries SET answered_at = clock_timestamp() WHERE answered_at IS NULL AND key = ",
        );
        sql.bind(key.as_bytes().to_vec()).push(" AND state = ").bind(told.as_str().to_owned());
        Answer::work(async move {
            shared.database.run(sql, shared.database.deadline()).await?;
            Ok(())
        })
    }

    fn look(&self, key: DeliveryKey) -> Answer<'_, Option<Entry>> {
        Answer::work(async move { archive::look(&self.shared, &key).await })
    }

    fn changed(&self, key: DeliveryKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let waiting = &self.shared.waiting;
            self.listener.get_or_init(|| {
                let target = self.shared.database.target().clone();
                tokio::spawn(listen::listen(target, Arc::clone(waiting))).abort_handle()
            });
            waiting.changed(key).await;
        })
    }

    fn probe(&self) -> Answer<'_, ()> {
        Answer::work(async move { Ok(self.shared.keep_lease(self.shared.database.deadline()).await?) })
    }

    fn close(&self) -> Answer<'_, ()> {
        let mut sql = Statement::new("DELETE FROM spigate_gateways WHERE id = ");
        sql.bind(text(&self.shared.gateway));
        Answer::work(async move {
            self.shared.database.run_reserved(sql, self.shared.database.deadline()).await?;
            Ok(())
        })
    }
}

impl Archive for PostgresStore {
    fn list(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Vec<Record>> {
        Answer::work(async move { archive::list(&self.shared, &filter, cursor, limit).await })
    }

    fn browse(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Browsed> {
        Answer::work(async move { browse::browse(&self.shared, &filter, cursor, limit).await })
    }

    fn recent(&self, since: Timestamp, most: usize) -> Answer<'_, Vec<Brief>> {
        Answer::work(async move { browse::recent(&self.shared, since, most).await })
    }

    fn resolve(&self, key: DeliveryKey, ruling: Ruling, _: Timestamp) -> Answer<'_, Option<Resolved>> {
        Answer::work(async move { finish::resolve(&self.shared, &key, &ruling).await })
    }

    fn counts(&self) -> Answer<'_, Vec<Counts>> {
        Answer::work(archive::counts(&self.shared))
    }

    fn prune(&self, retention: Retention) -> Answer<'_, Pruned> {
        Answer::work(async move { archive::prune(&self.shared, &retention).await })
    }
}

impl Keys for PostgresStore {
    fn data_keys(&self) -> Answer<'_, Vec<DataKey>> {
        Answer::work(keys::data_keys(&self.shared))
    }

    fn add_data_key(&self, app: String, wraps: Vec<Wrap>, _: Timestamp) -> Answer<'_, i64> {
        Answer::work(async move { keys::add(&self.shared, &app, wraps).await })
    }

    fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, _: Timestamp) -> Answer<'_, ()> {
        Answer::work(keys::put(&self.shared, data_key, wraps))
    }
}

impl Store for PostgresStore {
    fn lease(&self) -> Option<Duration> {
        Some(self.shared.lease)
    }
}
