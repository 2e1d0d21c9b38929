//! The first connection: tables are made, and what cannot work is told apart from what may.

use std::sync::Arc;
use std::time::Duration;

use spigate::config::scalar::Secret;
use spigate::journal::postgres::{OpenError, PostgresStore};
use spigate::journal::store::{Archive as _, Deliveries as _, Filter};
use tokio::sync::Barrier;

use super::{LEASE, Postgres, name};
use crate::bench::{Bench as _, Gateway};
use crate::ports::free_port;
use crate::postgres_server::{EVERYBODY, Server, give};

fn store(url: &str) -> PostgresStore {
    PostgresStore::new(&Secret::new(url), name(), LEASE).unwrap()
}

async fn refused(url: &str) -> String {
    match store(url).open().await {
        Err(OpenError::Refused(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_start_at_once_make_the_tables_once() {
    let Some(bench) = Postgres::new().await else { return };
    let start = Arc::new(Barrier::new(8));
    let opened: Vec<_> = (0..8)
        .map(|number| {
            let (store, start) = (bench.store(&name()), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                // One half asks, the other half just begins.
                if number % 2 == 0 {
                    assert_eq!(store.open().await.unwrap(), Vec::<String>::new());
                } else {
                    store.probe().await.unwrap();
                }
            })
        })
        .collect();
    for opened in opened {
        opened.await.unwrap();
    }
    assert_eq!(bench.sql("SELECT count(*), max(version) FROM spigate_schema"), "1|2");
    assert_eq!(bench.sql("SELECT count(*) FROM spigate_gateways"), "8");
}

#[tokio::test]
async fn tables_of_a_newer_version_are_left_alone() {
    let Some(mut bench) = Postgres::new().await else { return };
    drop(bench.open().await);
    bench.sql("UPDATE spigate_schema SET version = 999; DROP TABLE spigate_attempts");
    let url = bench.server.url(&bench.database);
    let cause = refused(&url).await;
    assert!(cause.contains("newer spigate") && cause.contains("schema 999"), "{cause}");
    let cause = store(&url).probe().await.unwrap_err();
    assert!(cause.to_string().contains("newer spigate"), "{cause}");
}

#[tokio::test]
async fn tables_of_the_first_version_keep_what_they_hold() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateway = bench.open().await;
    gateway.forward(gateway.create("o-1")).await;
    drop(gateway);
    // As the first version had them.
    bench.sql(
        "ALTER TABLE spigate_deliveries DROP COLUMN decided_by, DROP COLUMN reason;
         DROP INDEX spigate_deliveries_user, spigate_deliveries_app, spigate_deliveries_eventful;
         UPDATE spigate_schema SET version = 1",
    );
    let visitor = PostgresStore::visit(&Secret::new(bench.server.url(&bench.database))).unwrap();
    let cause = visitor.list(Filter::default(), None, 9).await.unwrap_err();
    assert!(cause.to_string().contains("older schema"), "{cause}");
    let gateway = bench.open().await;
    gateway.forward(gateway.create("o-2")).await;
    for order in ["o-1", "o-2"] {
        let filter = Filter { order_id: Some(order.to_owned()), ..Filter::default() };
        assert_eq!(visitor.browse(filter, None, 9).await.unwrap().records.len(), 1, "{order}");
    }
    assert_eq!(bench.sql("SELECT version FROM spigate_schema"), "2");
    let new = "indexname IN ('spigate_deliveries_user', 'spigate_deliveries_app', 'spigate_deliveries_eventful')";
    assert_eq!(bench.sql(&format!("SELECT count(*) FROM pg_indexes WHERE {new}")), "3");
}

/// Whoever looks at a journal may be of another version than the gateways that serve from it.
#[tokio::test]
async fn a_visitor_makes_and_changes_no_tables() {
    let Some(mut bench) = Postgres::new().await else { return };
    let url = Secret::new(bench.server.url(&bench.database));
    let visit = async || {
        let store = PostgresStore::visit(&url).unwrap();
        store.list(Filter::default(), None, 9).await.map(|records| records.len()).map_err(|error| error.to_string())
    };
    let cause = visit().await.unwrap_err();
    assert!(cause.contains("no such journal"), "{cause}");
    assert_eq!(bench.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'spigate%'"), "0");
    let gateway = bench.open().await;
    gateway.forward(gateway.create("o-1")).await;
    assert_eq!(visit().await, Ok(1));
    for (version, says) in [(0, "older schema"), (999, "newer spigate")] {
        bench.sql(&format!("UPDATE spigate_schema SET version = {version}"));
        let cause = visit().await.unwrap_err();
        assert!(cause.contains(says), "{cause}");
        assert_eq!(bench.sql("SELECT version FROM spigate_schema"), version.to_string());
    }
    // It is no gateway, either.
    assert_eq!(bench.sql("SELECT id FROM spigate_gateways"), gateway.name);
}

#[tokio::test]
async fn what_is_refused_says_what_to_do() {
    let Some(bench) = Postgres::new().await else { return };
    let (database, port) = (&bench.database, bench.server.port());
    let cause = refused(&bench.server.url("nowhere")).await;
    assert!(cause.contains("nowhere") && cause.contains("create the database"), "{cause}");

    bench.sql(&format!("CREATE ROLE {database}_reader LOGIN"));
    let reader = format!("postgres://{database}_reader@127.0.0.1:{port}/{database}?sslmode=disable");
    let cause = refused(&reader).await;
    assert!(cause.contains("GRANT CREATE ON SCHEMA"), "{cause}");

    let read_only = format!("{}&options=-c%20default_transaction_read_only%3Don", bench.server.url(database));
    let cause = refused(&read_only).await;
    assert!(cause.contains("primary"), "{cause}");

    bench.sql(&format!("CREATE DATABASE {database}_latin ENCODING LATIN1 TEMPLATE template0"));
    let cause = refused(&bench.server.url(&format!("{database}_latin"))).await;
    assert!(cause.contains("LATIN1"), "{cause}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let port = free_port().port();
    let store = store(&format!("postgres://postgres:geheim@127.0.0.1:{port}/journal"));
    let error = store.open().await.unwrap_err();
    assert!(matches!(error, OpenError::Unreachable(_)), "{error:?}");
    let unavailable = store.probe().await.unwrap_err();
    for error in [error.to_string(), unavailable.to_string()] {
        assert!(!error.contains("geheim"), "{error}");
    }
}

/// Neither does one that accepts a connection and says nothing hold anybody up for long.
#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let store = store(&format!("postgres://postgres@127.0.0.1:{port}/journal?sslmode=disable"));
    let began = tokio::time::Instant::now();
    assert!(matches!(store.open().await.unwrap_err(), OpenError::Unreachable(_)));
    store.probe().await.unwrap_err();
    // By the paused clock, which the machine's load does not move.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn settings_against_the_promise_are_told() {
    let Some(bench) = Postgres::new().await else { return };
    let careless = format!("{}&options=-c%20synchronous_commit%3Doff", bench.server.url(&bench.database));
    let warnings = store(&careless).open().await.unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("synchronous_commit"), "{warnings:?}");
    let Some(server) = Server::start(&["fsync=off"], EVERYBODY) else { return };
    let warnings = store(&server.url("postgres")).open().await.unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("fsync"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_certificates_are_checked() {
    let files = std::env::temp_dir().join(format!("spigate-pg-tls-{}", std::process::id()));
    if crate::postgres_server::programs().is_none() {
        return;
    }
    std::fs::create_dir(&files).unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, private) = (files.join("certificate.pem"), files.join("key.pem"));
    std::fs::write(&certificate, certified.cert.pem()).unwrap();
    std::fs::write(&private, certified.signing_key.serialize_pem()).unwrap();
    for file in [&files, &certificate, &private] {
        give(file);
    }
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificate.display()),
        format!("ssl_key_file={}", private.display()),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let server = Server::start(&settings, "hostssl all all 127.0.0.1/32 scram-sha-256").unwrap();
    server.sql("postgres", "CREATE ROLE spigate LOGIN PASSWORD 'ge:h@im'");
    server.sql("postgres", "CREATE DATABASE journal OWNER spigate");
    let url = |password: &str, options: &str| {
        format!("postgres://spigate{password}@localhost:{}/journal?hostaddr=127.0.0.1&{options}", server.port())
    };
    let trusted = format!("sslmode=verify-full&sslrootcert={}", certificate.display());
    let right = ":ge%3Ah%40im";

    let store = store(&url(right, &trusted));
    store.open().await.unwrap();
    let gateway = Gateway::new("gateway", Arc::new(store)).await;
    gateway.forward(gateway.create("o-1")).await;

    let cause = refused(&url(":wrong", &trusted)).await;
    assert!(cause.contains("password") && !cause.contains("wrong"), "{cause}");
    let cause = refused(&url("", &trusted)).await;
    assert!(cause.contains("password"), "{cause}");
    for options in ["sslmode=require", ""] {
        let cause = refused(&url(right, options)).await;
        assert!(cause.contains("certificate") && cause.contains("sslrootcert"), "{cause}");
    }
    let cause = refused(&url(right, "sslmode=disable")).await;
    assert!(cause.contains("pg_hba"), "{cause}");
    drop(server);
    std::fs::remove_dir_all(&files).unwrap();
}
