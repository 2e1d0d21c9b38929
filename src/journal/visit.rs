//! Opens a journal from outside, beside the process that serves from it.

use std::sync::Arc;

use super::sqlite::SqliteStore;
use super::store::Store;
use crate::config::journal::{JournalConfig, Location};

/// Opens the journal of a configuration beside its gateway.
///
/// # Errors
/// Why it cannot be opened, and what to do about it.
pub fn open_for_visit(config: &JournalConfig) -> Result<Arc<dyn Store>, String> {
    match &config.location {
        Location::Memory => Err("journal.url is memory: such a journal is known to its gateway alone and cannot be \
                                 looked at from outside; use sqlite: or postgres://"
            .to_owned()),
        Location::Sqlite(path) => Ok(Arc::new(SqliteStore::visit(path)?)),
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => {
            let store = super::postgres::PostgresStore::visit(url);
            Ok(Arc::new(store.map_err(|error| format!("journal.url: {error}"))?))
        }
        #[cfg(not(feature = "postgres"))]
        Location::Postgres(_) => Err("this spigate was built without the feature postgres".to_owned()),
    }
}
