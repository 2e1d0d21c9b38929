//! The data keys that seal replies.

use super::Shared;
use super::failure::Failure;
use super::rows::get;
use super::statement::{Statement, text};
use crate::journal::store::{DataKey, Unavailable, Wrap};

/// All data keys, oldest first.
pub(super) async fn data_keys(shared: &Shared) -> Result<Vec<DataKey>, Unavailable> {
    let sql = "SELECT k.id, k.app, w.wrapper, w.bytes FROM spigate_data_keys AS k
               LEFT JOIN spigate_wraps AS w ON w.data_key = k.id ORDER BY k.id, w.touched_at, w.wrapper";
    let rows = shared.database.read(Statement::new(sql), shared.database.deadline()).await?;
    let mut keys = Vec::<DataKey>::new();
    for row in &rows {
        let id = get(row, "id")?;
        if keys.last().is_none_or(|key| key.id != id) {
            keys.push(DataKey { id, app: get(row, "app")?, wraps: Vec::new() });
        }
        if let (Some(key), Some(wrapper), Some(bytes)) = (keys.last_mut(), get(row, "wrapper")?, get(row, "bytes")?) {
            key.wraps.push(Wrap { wrapper, bytes });
        }
    }
    Ok(keys)
}

/// Adds a data key; its number.
pub(super) async fn add(shared: &Shared, app: &str, wraps: Vec<Wrap>) -> Result<i64, Unavailable> {
    let mut sql = Statement::new("WITH added AS (INSERT INTO spigate_data_keys (app) VALUES (");
    sql.bind(text(app)).push(") RETURNING id), ");
    push_wraps(&mut sql, "added", wraps);
    sql.push(" SELECT id FROM added");
    let rows = shared.database.run(sql, shared.database.deadline()).await?;
    let row = rows.first().ok_or_else(|| Unavailable::new("the server answered without a row"))?;
    Ok(get(row, "id")?)
}

/// Adds wraps, or says that these are still in use.
pub(super) async fn put(shared: &Shared, data_key: i64, wraps: Vec<Wrap>) -> Result<(), Unavailable> {
    let mut sql = Statement::new("WITH known AS (SELECT id FROM spigate_data_keys WHERE id = ");
    sql.bind(data_key).push("), ");
    push_wraps(&mut sql, "known", wraps);
    sql.push(" SELECT id FROM known");
    match shared.database.run(sql, shared.database.deadline()).await {
        // Several gateways put the same at their start.
        Ok(_) | Err(Failure::Race(_)) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

fn push_wraps(sql: &mut Statement, key: &str, wraps: Vec<Wrap>) {
    // A row cannot be written twice by one statement.
    let mut once = Vec::<Wrap>::with_capacity(wraps.len());
    for wrap in wraps {
        once.retain(|known| known.wrapper != wrap.wrapper);
        once.push(wrap);
    }
    let (wrappers, bytes): (Vec<_>, Vec<_>) = once.into_iter().map(|wrap| (wrap.wrapper, wrap.bytes)).unzip();
    sql.push(&format!(
        "put AS (INSERT INTO spigate_wraps (data_key, wrapper, bytes, touched_at) SELECT {key}.id, w.wrapper, w.bytes, "
    ));
    sql.push(&format!("clock_timestamp() FROM {key}, unnest(")).bind(wrappers).push(", ").bind(bytes);
    sql.push(
        ") AS w (wrapper, bytes) ON CONFLICT (data_key, wrapper) DO UPDATE SET bytes = excluded.bytes, \
         touched_at = excluded.touched_at)",
    );
}
