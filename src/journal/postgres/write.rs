//! The one statement that writes a change: the entry, its history, its instance, its cycle.
//!
//! It compares and swaps: an entry is written only if it still is of the version that the
//! decision was made on. What else has to hold (the cycle that was looked at, the lease of the
//! one who claims) is asked before; whatever hangs on the entry takes its row from the entry's,
//! so that all of it is written or nothing.
//!
//! Only inserts, never an update that looks at another part of the statement: such an update
//! fails where two of them meet.

use sha2::{Digest as _, Sha256};

use super::rows::{self, FIXED, WRITTEN, bind_attempt, bind_entry};
use super::statement::{Statement, text};
use crate::journal::entry::{Entry, Subject};
use crate::journal::key::DeliveryKey;
use crate::journal::machine::{Change, CycleChange};

/// What an entry is written on.
pub(super) struct Base<'b> {
    /// The version of the entry that was looked at; 0 if there was none.
    pub(super) version: i64,
    /// The cycle of its instance that was looked at.
    pub(super) cycle: u32,
    /// The gateway that must hold its lease when this is written.
    pub(super) leased: Option<&'b str>,
}

/// Writes an entry and its change. Returns one row (`awaited`) if it was written, and none if
/// another one was faster.
pub(super) fn write(entry: &Entry, base: &Base<'_>, change: &Change) -> Statement {
    let mut sql = Statement::new("WITH ");
    let Subject { app, instance_id, .. } = &*entry.subject;
    let instance = instance_id.as_deref();
    let touched = match (change.cycle, instance) {
        (CycleChange::Touch, Some(instance)) => {
            // An insert that meets a row locks it, so that no renewal comes in between.
            sql.push("cycle AS (INSERT INTO spigate_cycles AS c (hash, app, instance_id, cycle, touched_at) VALUES (");
            bind_instance(&mut sql, app, instance);
            sql.push(", ").bind(i64::from(base.cycle)).push(", ").bind(entry.changed_at);
            sql.push(
                ") ON CONFLICT (hash) DO UPDATE SET touched_at = excluded.touched_at WHERE c.cycle = excluded.cycle \
                 RETURNING c.cycle), ",
            );
            true
        }
        _ => false,
    };
    put_entry(&mut sql, entry, base, touched, change.unanswered);
    if let Some(attempt) = &change.history {
        let updates: Vec<_> = updates(rows::ATTEMPT.split(", ").skip(1));
        sql.push(&format!(
            ", history AS (INSERT INTO spigate_attempts (delivery, {}) SELECT entry.id, ",
            rows::ATTEMPT
        ));
        bind_attempt(&mut sql, attempt);
        sql.push(&format!(" FROM entry ON CONFLICT (delivery, number) DO UPDATE SET {})", updates.join(", ")));
    }
    if let Some(alias) = &change.alias {
        sql.push(", alias AS (INSERT INTO spigate_aliases (key, delivery) SELECT ").bind(alias.as_bytes().to_vec());
        sql.push(", entry.id FROM entry ON CONFLICT (key) DO NOTHING)");
    }
    if let Some(instance) = &change.instance {
        put_instance(&mut sql, instance, entry);
    }
    if let (CycleChange::Raise, Some(instance)) = (change.cycle, instance) {
        sql.push(", cycle AS (INSERT INTO spigate_cycles AS c (hash, app, instance_id, cycle, touched_at) SELECT ");
        bind_instance(&mut sql, app, instance);
        sql.push(", 1, ").bind(entry.changed_at);
        sql.push(" FROM entry ON CONFLICT (hash) DO UPDATE SET cycle = c.cycle + 1, touched_at = excluded.touched_at)");
    }
    sql.push(" SELECT awaited FROM entry");
    sql
}

fn put_entry(sql: &mut Statement, entry: &Entry, base: &Base<'_>, touched: bool, unanswered: bool) {
    let mut updates = updates(WRITTEN[FIXED..].iter().copied());
    if unanswered {
        updates.extend(["answered_at = NULL", "lookalike = excluded.lookalike"].map(str::to_owned));
    }
    sql.push(&format!("entry AS (INSERT INTO spigate_deliveries AS d ({}) SELECT ", WRITTEN.join(", ")));
    // Versions begin with the time, so that none comes again should the row be removed.
    let version = if base.version == 0 { entry.changed_at.as_microsecond().max(1) } else { base.version + 1 };
    bind_entry(sql, entry, version);
    if touched {
        sql.push(" FROM cycle");
    }
    if let Some(gateway) = base.leased {
        sql.push(" WHERE EXISTS (SELECT 1 FROM spigate_gateways WHERE id = ").bind(text(gateway));
        sql.push(" AND lease_until > clock_timestamp())");
    }
    // No row is of version 0: what was not there when it was looked at must not be there now.
    sql.push(&format!(" ON CONFLICT (key) DO UPDATE SET {} WHERE d.version = ", updates.join(", ")));
    sql.bind(base.version).push(" RETURNING d.id, d.awaited)");
}

/// Makes an instance the order's own. If it is another's by now, the index refuses it, and with
/// it the whole statement.
fn put_instance(sql: &mut Statement, instance: &str, entry: &Entry) {
    let Subject { app, origin, .. } = &*entry.subject;
    sql.push(", instance AS (INSERT INTO spigate_instances (hash, app, instance_id, origin, touched_at) SELECT ");
    bind_instance(sql, app, instance);
    sql.push(", ").bind(origin.as_bytes().to_vec()).push(", ").bind(entry.changed_at);
    sql.push(" FROM entry WHERE NOT EXISTS (SELECT 1 FROM spigate_instances WHERE hash = ");
    sql.bind(instance_hash(app, instance)).push(" AND origin = ").bind(origin.as_bytes().to_vec());
    sql.push("))");
}

/// Makes a key lead to a delivery for good, if it still is unanswered: locked until this is
/// committed, so that a copy to the byte that finds it answered finds the alias too. Returns a row
/// if it did.
pub(super) fn alias(key: &DeliveryKey, delivery: i64) -> Statement {
    let mut sql = Statement::new("INSERT INTO spigate_aliases (key, delivery) SELECT ");
    sql.bind(key.as_bytes().to_vec());
    sql.push(", d.id FROM (SELECT id FROM spigate_deliveries WHERE answered_at IS NULL AND id = ").bind(delivery);
    sql.push(" FOR SHARE) AS d ON CONFLICT (key) DO NOTHING RETURNING delivery");
    sql
}

/// Whether an instance belongs to another order than that of the delivery called `d` or, without
/// one, than that of `subject`: copies without an order number have origins of their own.
pub(super) fn push_taken(sql: &mut Statement, instance: &str, subject: &Subject) {
    let Subject { app, origin, .. } = subject;
    sql.push("EXISTS (SELECT 1 FROM spigate_instances WHERE hash = ").bind(instance_hash(app, instance));
    sql.push(" AND origin <> coalesce(d.origin, ").bind(origin.as_bytes().to_vec()).push("))");
}

/// Raises an instance's cycle if it still is `from`.
pub(super) fn raise(app: &str, instance: &str, from: u32, now: jiff::Timestamp) -> Statement {
    let mut sql =
        Statement::new("INSERT INTO spigate_cycles AS c (hash, app, instance_id, cycle, touched_at) VALUES (");
    bind_instance(&mut sql, app, instance);
    sql.push(", ").bind(i64::from(from) + 1).push(", ").bind(now);
    sql.push(
        ") ON CONFLICT (hash) DO UPDATE SET cycle = excluded.cycle, touched_at = excluded.touched_at \
         WHERE c.cycle = excluded.cycle - 1",
    );
    sql
}

/// What an instance is found by.
pub(super) fn instance_hash(app: &str, instance: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [app, instance] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

fn bind_instance(sql: &mut Statement, app: &str, instance: &str) {
    sql.bind(instance_hash(app, instance)).push(", ").bind(text(app)).push(", ").bind(text(instance));
}

fn updates<'c>(columns: impl Iterator<Item = &'c str>) -> Vec<String> {
    columns.map(|column| format!("{column} = excluded.{column}")).collect()
}
