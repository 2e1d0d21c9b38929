//! What operators ask for: listings, and what became of the latest deliveries.

use jiff::{SignedDuration, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};

use super::names::Kind;
use super::rows::{self, Numbered};
use crate::journal::entry::{AttemptOutcome, State};
use crate::journal::store::{Brief, Browsed, Filter, Record, Which};

/// How many entries a bounded search looks at, of those that its index leads to.
const LOOK: i64 = 20_000;
/// How far clocks may have gone back while entries were recorded, for them to be found by time.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// SQL with the values of its question marks.
pub(super) type Sql = (String, Vec<Value>);

/// All that fits, from before `cursor`, latest first.
pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    cursor: Option<i64>,
    limit: usize,
) -> rusqlite::Result<Vec<Record>> {
    fitting(connection, filter, leads(filter, i64::MIN, cursor.unwrap_or(i64::MAX)), limit)
}

/// The same, looking at so many entries only.
pub(super) fn browse(
    connection: &Connection,
    filter: &Filter,
    cursor: Option<i64>,
    limit: usize,
) -> rusqlite::Result<Browsed> {
    let mut before = cursor.unwrap_or(i64::MAX);
    if let Some(until) = filter.until.and_then(|until| until.checked_add(CLOCKS).ok())
        && let Some(id) = first_since(connection, until)?
    {
        before = before.min(id);
    }
    let lowest = match filter.since.and_then(|since| since.checked_sub(CLOCKS).ok()) {
        Some(since) => first_since(connection, since)?.unwrap_or(i64::MAX),
        None => i64::MIN,
    };
    // No entry is read for this, only what leads to them.
    let (leads_to, values) = leads(filter, lowest, before);
    let sql = format!("{leads_to} LIMIT 1 OFFSET {LOOK}");
    let stop: Option<i64> =
        connection.prepare_cached(&sql)?.query_row(params_from_iter(values), |row| row.get(0)).optional()?;
    let leads = leads(filter, stop.unwrap_or(lowest), before);
    let records = fitting(connection, filter, leads, limit.saturating_add(1))?;
    let mut browsed = Browsed::full(records, limit);
    if let (None, Some(stop)) = (browsed.next, stop) {
        browsed.next = Some(stop);
        let time = "SELECT received_at FROM deliveries WHERE id = ?1";
        let time: Option<i64> = connection.prepare_cached(time)?.query_row([stop], |row| row.get(0)).optional()?;
        browsed.stopped_at = time.and_then(|time| Timestamp::from_millisecond(time).ok());
    }
    Ok(browsed)
}

fn fitting(connection: &Connection, filter: &Filter, leads: Sql, limit: usize) -> rusqlite::Result<Vec<Record>> {
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    rows::entries(connection, leads, conditions(filter), |(row, entry): Numbered| {
        // Only an attempt after the first has left others in the history.
        let history = if entry.latest.number > 1 { rows::history(connection, row)? } else { Vec::new() };
        let record = Record { cursor: row, entry, history };
        if filter.fits(&record) {
            found.push(record);
        }
        Ok(found.len() < limit)
    })?;
    Ok(found)
}

/// The number of the first row that was received at this time or later: rows are numbered as they
/// are received.
fn first_since(connection: &Connection, time: Timestamp) -> rusqlite::Result<Option<i64>> {
    // Each in a query of its own: SQLite looks an end up, but goes through all rows for both.
    let ends =
        "SELECT coalesce((SELECT min(id) FROM deliveries), 0), coalesce((SELECT max(id) FROM deliveries), 0) + 1";
    let (mut low, mut high): (i64, i64) =
        connection.prepare_cached(ends)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let last = high;
    let mut next =
        connection.prepare_cached("SELECT id, received_at FROM deliveries WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> = next.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            Some((id, received)) if received < time.as_millisecond() => low = id + 1,
            _ => high = middle,
        }
    }
    Ok((low < last).then_some(low))
}

/// Selects the numbers of rows that may fit, from `lowest` to before `before`, latest first: by the
/// index that leads to the fewest, which has to be used.
fn leads(filter: &Filter, lowest: i64, before: i64) -> Sql {
    const WAITING: &str = "INDEXED BY deliveries_waiting WHERE waiting IS NOT NULL AND";
    // As the index has it: SQLite compares the words.
    const EVENTFUL: &str = "INDEXED BY deliveries_eventful WHERE (number > 1 OR outcome <> 'confirmed') AND";
    const BOUNDS: &str = "id >= ?1 AND id < ?2";
    let mut values = [lowest, before].map(Value::Integer).to_vec();
    let mut of = |kind: Kind, name: &String| {
        values.push(Value::Text(name.clone()));
        kind.deliveries()
    };
    let ids = if let Some((first, last)) = filter.id.as_deref().and_then(keys) {
        values.extend([first, last].map(|key| Value::Blob(key.to_vec())));
        format!("SELECT id FROM deliveries WHERE {BOUNDS} AND {BY_KEY}")
    } else if let Some(order) = &filter.order_id {
        of(Kind::Order, order)
    } else if let Some(instance) = &filter.instance_id {
        let named = of(Kind::Instance, instance);
        let made = "SELECT id FROM deliveries INDEXED BY deliveries_by_made WHERE made_instance = ?3 AND";
        format!("{named} UNION {made} {BOUNDS}")
    } else if let Some(user) = &filter.user_id {
        of(Kind::User, user)
    } else {
        let rows = match filter.which {
            Some(Which::State(State::Unconfirmed | State::Running) | Which::Unanswered) => Some(WAITING),
            // All of them have ended otherwise than by the first attempt's confirmation.
            Some(Which::State(State::Open | State::Closed)) => Some(EVENTFUL),
            Some(Which::Attempt(outcome)) if outcome != AttemptOutcome::Confirmed => Some(EVENTFUL),
            Some(Which::State(State::Done) | Which::Attempt(_)) | None => None,
        };
        match (rows, &filter.app) {
            (Some(rows), _) => format!("SELECT id FROM deliveries {rows} {BOUNDS}"),
            (None, Some(app)) => of(Kind::App, app),
            (None, None) => format!("SELECT id FROM deliveries WHERE {BOUNDS}"),
        }
    };
    (format!("{ids} ORDER BY id DESC"), values)
}

const UNANSWERED: &str = "state = 'done' AND answered_at IS NULL";
const BY_INSTANCE: &str = "(instance_id = ? OR made_instance = ?)";
/// In a query of its own, because rows are wanted in their order and found by their keys; those that
/// are not in the index of keys yet are the last (`keys.rs`).
const BY_KEY: &str = "id IN (SELECT delivery FROM keys WHERE key BETWEEN ?3 AND ?4 UNION ALL
                      SELECT id FROM deliveries WHERE id > (SELECT through FROM indexed) AND key BETWEEN ?3 AND ?4)";

/// What the database can judge of a filter without an entry being read; [`Filter::fits`] judges
/// all of it.
fn conditions(filter: &Filter) -> Sql {
    let (mut conditions, mut values) = (vec!["true"], Vec::new());
    let texts = [
        ("app = ?", &filter.app, 1),
        ("action = ?", &filter.action, 1),
        ("order_id = ?", &filter.order_id, 1),
        (BY_INSTANCE, &filter.instance_id, 2),
        ("user_id = ?", &filter.user_id, 1),
    ];
    for (condition, text, times) in texts {
        if let Some(text) = text {
            conditions.push(condition);
            values.extend(std::iter::repeat_n(Value::Text(text.clone()), times));
        }
    }
    // Times are kept in milliseconds, and a filter may be finer.
    for (condition, time) in [("received_at >= ?", filter.since), ("received_at <= ?", filter.until)] {
        if let Some(time) = time {
            conditions.push(condition);
            values.push(Value::Integer(time.as_millisecond()));
        }
    }
    match filter.which {
        Some(Which::State(state)) => {
            conditions.push("state = ?");
            values.push(Value::Text(state.as_str().to_owned()));
        }
        Some(Which::Unanswered) => conditions.push(UNANSWERED),
        // In the history too.
        Some(Which::Attempt(_)) | None => {}
    }
    (conditions.join(" AND "), values)
}

/// The first and the last key whose `Idempotency-Key` begins so.
fn keys(id: &str) -> Option<([u8; 32], [u8; 32])> {
    let (mut first, mut last) = ([0; 32], [0xff; 32]);
    for (at, digit) in id.chars().enumerate().take(32) {
        let digit = u8::try_from(digit.to_digit(16)?).ok()?;
        let (shift, others) = if at % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        for key in [&mut first, &mut last] {
            key[at / 2] = key[at / 2] & others | digit << shift;
        }
    }
    Some((first, last))
}

/// What became of the latest deliveries since a time, latest first.
pub(super) fn recent(connection: &Connection, since: Timestamp, most: usize) -> rusqlite::Result<Vec<Brief>> {
    let sql = "SELECT app, received_at, state, outcome, began_at, ended_at FROM deliveries ORDER BY id DESC LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([i64::try_from(most).unwrap_or(i64::MAX)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let received: i64 = row.get(1)?;
        if received < since.as_millisecond() {
            break;
        }
        let (state, outcome): (String, Option<String>) = (row.get(2)?, row.get(3)?);
        // What another version has written is left out here, and complained of where it is shown.
        let (Some(state), Ok(received_at)) = (State::named(&state), Timestamp::from_millisecond(received)) else {
            continue;
        };
        let (began, ended): (i64, Option<i64>) = (row.get(4)?, row.get(5)?);
        found.push(Brief {
            app: row.get(0)?,
            received_at,
            state,
            outcome: outcome.as_deref().and_then(AttemptOutcome::named),
            took_ms: ended.map(|ended| ended - began),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::sqlite::names;
    use crate::journal::sqlite::tables::tests::{at, filled};

    /// However many of the deliveries the table of names has.
    #[test]
    fn a_listing_is_what_fits() {
        let connection = filled();
        for through in [0, 20, 48] {
            names::index(&connection, 1, through).unwrap();
            listings_are_what_fits(&connection);
        }
        assert!(!names::index(&connection, 1, 1).unwrap());
    }

    fn listings_are_what_fits(connection: &Connection) {
        let all = list(connection, &Filter::default(), None, usize::MAX).unwrap();
        assert_eq!(all.len(), 48);
        assert!(all.is_sorted_by(|one, next| one.cursor > next.cursor));
        let text = |text: &str| Some(text.to_owned());
        let mut filters = vec![
            Filter { app: text("crm"), ..Filter::default() },
            Filter { action: text("Renew"), ..Filter::default() },
            Filter { order_id: text("o-1"), ..Filter::default() },
            Filter { instance_id: text("i-1"), ..Filter::default() },
            Filter { instance_id: text("i-3"), app: text("erp"), ..Filter::default() },
            Filter { user_id: text("u-2"), order_id: text("o-2"), ..Filter::default() },
            Filter { since: Some(at(10)), until: Some(at(20)), ..Filter::default() },
            Filter { since: Some(Timestamp::from_microsecond(10_001).unwrap()), ..Filter::default() },
            Filter { until: Some(Timestamp::from_microsecond(10_001).unwrap()), ..Filter::default() },
            Filter { which: Some(Which::Unanswered), ..Filter::default() },
        ];
        filters.extend(State::ALL.map(|state| Filter { which: Some(Which::State(state)), ..Filter::default() }));
        let attempts = AttemptOutcome::ALL.map(Which::Attempt);
        filters.extend(attempts.map(|which| Filter { which: Some(which), ..Filter::default() }));
        for record in &all {
            let id = record.entry.key.idempotency_key();
            filters.extend([1, 2, 3, 32].map(|digits| Filter { id: text(&id[..digits]), ..Filter::default() }));
        }
        for filter in filters {
            let fitting: Vec<_> = all.iter().filter(|record| filter.fits(record)).map(|record| record.cursor).collect();
            let listed = |cursor, limit| {
                let records = list(connection, &filter, cursor, limit).unwrap();
                records.into_iter().map(|record| record.cursor).collect::<Vec<_>>()
            };
            assert_eq!(listed(None, usize::MAX), fitting, "{filter:?}");
            let browsed = browse(connection, &filter, None, usize::MAX).unwrap();
            let found = browsed.records.iter().map(|record| record.cursor).collect::<Vec<_>>();
            assert_eq!((found, browsed.next), (fitting.clone(), None), "{filter:?}");
            if let [first, rest @ ..] = &fitting[..] {
                assert_eq!(listed(Some(*first), usize::MAX), rest, "{filter:?}");
                assert_eq!(listed(None, 1), [*first], "{filter:?}");
            }
        }
        let nothing = Filter { id: text("%"), ..Filter::default() };
        assert!(list(connection, &nothing, None, usize::MAX).unwrap().is_empty());
    }

    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = vec![rusqlite::types::Null; statement.parameter_count()];
        let plan = statement.query_map(params_from_iter(rows), |row| row.get::<_, String>(3)).unwrap();
        plan.map(|line| line.unwrap()).collect::<Vec<_>>().join("\n")
    }

    /// Every filter has an index that leads to what it asks for, in its order, and reads no more of the
    /// rows than those after the mark of names.
    #[test]
    fn what_is_asked_for_is_found_without_reading_all() {
        let connection = filled();
        let filter = Filter::default;
        let which = |which| Some(which);
        let text = |text: &str| Some(text.to_owned());
        let named = "names USING PRIMARY KEY (kind=? AND name=? AND delivery>? AND delivery<?)";
        for (filter, index) in [
            (filter(), "USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (Filter { id: text("0a1b2c"), ..filter() }, "key>? AND key<?"),
            (Filter { order_id: text("o-1"), app: text("crm"), ..filter() }, named),
            (Filter { instance_id: text("i-1"), ..filter() }, "deliveries_by_made (made_instance=? AND rowid>?"),
            (Filter { instance_id: text("i-1"), ..filter() }, named),
            (Filter { user_id: text("u-1"), ..filter() }, named),
            (Filter { app: text("crm"), action: text("Renew"), ..filter() }, named),
            (Filter { which: which(Which::Unanswered), app: text("crm"), ..filter() }, "deliveries_waiting"),
            (Filter { which: which(Which::State(State::Unconfirmed)), ..filter() }, "deliveries_waiting"),
            (Filter { which: which(Which::State(State::Running)), ..filter() }, "deliveries_waiting"),
            (Filter { which: which(Which::State(State::Open)), ..filter() }, "deliveries_eventful"),
            (Filter { which: which(Which::Attempt(AttemptOutcome::Duplicate)), ..filter() }, "deliveries_eventful"),
        ] {
            let plan = plan(&connection, &leads(&filter, 0, 9).0);
            assert!(plan.contains(index), "{filter:?}: {plan}");
            let mut lines = plan.lines().filter(|line| *line != "SCAN named");
            let reads_all = lines.any(|line| line.contains("SCAN") || line.contains("TEMP B-TREE"));
            assert!(filter.id.is_some() || !reads_all, "{filter:?}: {plan}");
        }
    }

    #[test]
    fn a_bounded_search_goes_on_where_it_stopped_and_leaves_nothing_out() {
        let connection = filled();
        // Many more of one kind than one search looks at, and in the middle of them another.
        let copy = "INSERT INTO deliveries (key, origin, fingerprint, extras, app, action, debug, cycle, received_at,
                        changed_at, state, doubt, number, gateway, claim, request_id, began_at)
                    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
                    SELECT randomblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'many',
                        CASE i WHEN 25000 THEN 'Rare' ELSE 'Create' END, 0, 0, 1000 + 1000 * i, 0, 'running', 0, 1, 'g', 1, 'r', 0
                    FROM n";
        connection.execute(copy, []).unwrap();
        let filter = Filter { app: Some("many".into()), action: Some("Rare".into()), ..Filter::default() };
        let (mut cursor, mut found, mut searches) = (None, Vec::new(), 0);
        loop {
            let browsed = browse(&connection, &filter, cursor, 10).unwrap();
            found.extend(browsed.records.iter().map(|record| record.entry.received_at));
            searches += 1;
            let Some(next) = browsed.next else { break };
            assert!(browsed.stopped_at.is_some());
            cursor = Some(next);
        }
        assert_eq!((found, searches), (vec![at(25_001_000)], 3));
        // By its time it is found at once.
        let filter = Filter { since: Some(at(25_000_000)), until: Some(at(25_002_000)), ..filter };
        let browsed = browse(&connection, &filter, None, 10).unwrap();
        assert_eq!(browsed.records.len(), 1);
        // Rows beyond what clocks may be off are not even looked at.
        assert_eq!(first_since(&connection, at(25_001_000)).unwrap(), Some(48 + 25_000));
        assert_eq!(first_since(&connection, at(60_000_000)).unwrap(), None);
        let latest = recent(&connection, at(40_000_000), 3).unwrap();
        assert_eq!(
            latest.iter().map(|brief| brief.received_at).collect::<Vec<_>>(),
            [50_001_000, 50_000_000, 49_999_000].map(at)
        );
        assert_eq!(recent(&connection, at(50_000_000), 5).unwrap().len(), 2);
    }
}
