//! The database: a pool of connections, and statements that are run on them.
//!
//! A statement runs in a task of its own. Whoever gives up waiting for it neither breaks it off
//! nor gives a busy connection back to the pool; and however long the server is stuck, it never
//! has more of our statements than the pool has connections. They are not cancelled either: that
//! would end a commit's wait for its replica, and show as recorded what is on one server only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::{Client, Row};

use super::failure::{self, Failure, OpenError};
use super::schema;
use super::statement::Statement;
use super::target::Target;

/// After this time without a result a connection is given up.
const STUCK: Duration = Duration::from_secs(10);
/// Each holds one statement at a time, which takes a millisecond or two.
const CONNECTIONS: usize = 16;
/// One for the lease, and one for when that is stuck.
const RESERVED: usize = 2;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// A connection, from the look-up of the name to the end of its handshakes.
    pub(super) connect: Duration,
    /// A statement, until its result is there.
    pub(super) statement: Duration,
    /// An operation in which one statement had no result, so that another one had to look what became
    /// of it.
    pub(super) settle: Duration,
}

impl Patience {
    /// For tests of other things.
    pub(super) const ENDLESS: Self = {
        let hour = Duration::from_secs(3600);
        Self { connect: hour, statement: hour, settle: hour }
    };
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), statement: Duration::from_secs(2), settle: Duration::from_secs(4) }
    }
}

/// What becomes of tables that are missing or of an older version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// They are made, or brought up to date.
    Made,
    /// They are somebody else's to make.
    Expected,
}

/// See the module.
pub(super) struct Database {
    tables: Tables,
    target: Target,
    patience: Patience,
    pool: Pool,
    /// For the lease alone: it is kept although everything else waits for a lock on the server.
    reserved: Pool,
    /// Whether the tables were there and current when they were last looked at.
    current: Arc<AtomicBool>,
    opening: Mutex<()>,
}

impl Database {
    pub(super) fn new(target: Target, tables: Tables, patience: Patience) -> Result<Self, String> {
        let (pool, reserved) = (pool(&target, CONNECTIONS, patience)?, pool(&target, RESERVED, patience)?);
        Ok(Self { tables, target, patience, pool, reserved, current: Arc::default(), opening: Mutex::default() })
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Until when the result of a statement that is begun now is waited for.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.patience.statement
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// A connection of its own to a database whose tables are current.
    pub(super) async fn open(&self) -> Result<Client, OpenError> {
        let (mut client, _) = self.target.connect().await?;
        match self.tables {
            Tables::Made => schema::migrate(&mut client).await?,
            Tables::Expected => schema::check(&client).await?,
        }
        self.current.store(true, Ordering::Release);
        Ok(client)
    }

    /// Runs a statement that only reads. It can be run again if its connection broke.
    pub(super) async fn read(&self, statement: Statement, deadline: Instant) -> Result<Vec<Row>, Failure> {
        let statement = Arc::new(statement);
        loop {
            match self.run_on(&self.pool, Arc::clone(&statement), deadline).await {
                Err(Failure::Unknown(_)) if Instant::now() < deadline => {}
                result => return result,
            }
        }
    }

    /// Runs a statement, once.
    pub(super) async fn run(&self, statement: Statement, deadline: Instant) -> Result<Vec<Row>, Failure> {
        self.run_on(&self.pool, Arc::new(statement), deadline).await
    }

    /// Runs a statement about the lease, once.
    pub(super) async fn run_reserved(&self, statement: Statement, deadline: Instant) -> Result<Vec<Row>, Failure> {
        self.run_on(&self.reserved, Arc::new(statement), deadline).await
    }

    async fn run_on(&self, pool: &Pool, statement: Arc<Statement>, deadline: Instant) -> Result<Vec<Row>, Failure> {
        let client = match timeout_at(deadline, self.client(pool)).await {
            Ok(client) => client.map_err(Failure::Unwritten)?,
            Err(_) => return Err(Failure::Unwritten("no connection in time".into())),
        };
        let task = tokio::spawn(execute(client, statement, Arc::clone(&self.current)));
        match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result,
            // Only a runtime that shuts down ends it.
            Ok(Err(_)) => Err(Failure::Unknown("broken off".into())),
            Err(_) => Err(Failure::Unknown("no answer in time".into())),
        }
    }

    async fn client(&self, pool: &Pool) -> Result<Object, String> {
        if !self.current.load(Ordering::Acquire) {
            let _one_at_a_time = self.opening.lock().await;
            if !self.current.load(Ordering::Acquire) {
                self.open().await.map_err(|error| error.to_string())?;
            }
        }
        pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => failure::describe(&error),
            PoolError::Timeout(_) => "no connection in time".into(),
            error => error.to_string(),
        })
    }
}

fn pool(target: &Target, size: usize, patience: Patience) -> Result<Pool, String> {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(target.config.clone(), target.tls.clone(), recycling);
    let pool = Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(patience.statement))
        .create_timeout(Some(patience.connect))
        .recycle_timeout(Some(patience.connect))
        .runtime(Runtime::Tokio1);
    pool.build().map_err(|error| error.to_string())
}

async fn execute(client: Object, statement: Arc<Statement>, current: Arc<AtomicBool>) -> Result<Vec<Row>, Failure> {
    let result = timeout(STUCK, client.query_typed(&statement.sql, &statement.parameters())).await;
    let Ok(result) = result else {
        // Taken from the pool, it is closed here.
        drop(Object::take(client));
        return Err(Failure::Unknown("no answer in time".into()));
    };
    result.map_err(|error| {
        if failure::ends_connection(&error) {
            drop(Object::take(client));
        }
        if failure::is_missing_table(&error) {
            current.store(false, Ordering::Release);
        }
        failure::of_statement(&error)
    })
}
