//! A changed configuration is taken into use while the gateway serves, or it is not, and says why.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::ports::free_port;
use crate::support::authority::{Authority, Certified};
use crate::support::backend::{Backend, CREATED, Gate, Step, created, json};
use crate::support::client::{Connection, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{KEY, create, now};
use crate::support::tls_client::{TlsClient, certificate_for};
use crate::support::{unique, within_deadline};

const NEW: &str = "another-key-from-the-console-2027";

/// The line with the app's keys, replaced.
fn with_keys(keys: &str) -> impl Fn(&str) -> String {
    let keys = format!("keys = [{keys}]");
    move |text| {
        let line = text.lines().find(|line| line.trim_start().starts_with("keys = ")).unwrap();
        text.replace(line, &keys)
    }
}

/// A backend that makes another instance each time, as the platform demands.
async fn maker() -> Backend {
    Backend::start(|_| json(created(&format!("ins-{}", unique())))).await
}

async fn verifications(gateway: &Gateway, key: &str) -> f64 {
    gateway.metric(&format!("spigate_key_verifications_total{{app=\"crm\",key=\"{key}\"}}")).await
}

#[tokio::test]
async fn a_key_is_rotated_without_a_gap_and_without_losing_a_reply() {
    let backend = maker().await;
    let mut gateway = Gateway::over(&backend).await;
    let order = create();
    let first = gateway.order(&order).await;
    assert_eq!(first.status, 200);
    gateway.order(&create().key(NEW)).await.assert_rejected(401, "signature_invalid");

    gateway.directory().write("keys/old", &format!("{KEY}\n"));
    gateway.directory().write("keys/new", &format!("{NEW}\n"));
    let old = "{ id = \"k-2026\", file = \"keys/old\" }";
    let new = "{ id = \"k-2027\", file = \"keys/new\" }";
    gateway.reconfigure(with_keys(&format!("{old}, {new}"))).await;
    // The data key is wrapped by the new one, too.
    gateway.wait_for_metric("spigate_journal_seconds_count{operation=\"unlock\"}", |unlocks| unlocks >= 3.0).await;
    assert_eq!(gateway.order(&create()).await.status, 200);
    assert_eq!(gateway.order(&create().key(NEW)).await.status, 200);
    assert_eq!((verifications(&gateway, "k-2026").await, verifications(&gateway, "k-2027").await), (2.0, 1.0));

    // The old one verifies nothing any more, and what was sealed with it is still replayed.
    let retired = "{ id = \"k-2026\", file = \"keys/old\", state = \"retired\" }";
    gateway.reconfigure(with_keys(&format!("{new}, {retired}"))).await;
    gateway.order(&create()).await.assert_rejected(401, "signature_invalid");
    gateway.order(&order.key(NEW)).await.assert_is(&first.text());

    // It is taken out. What was sealed can be opened by the new one, which a restart shows.
    gateway.reconfigure(with_keys(new)).await;
    let again = create().key(NEW);
    let confirmed = gateway.order(&again).await;
    gateway.restart().await;
    gateway.order(&again).await.assert_is(&confirmed.text());
    assert_eq!(backend.count(), 4);
}

#[tokio::test]
async fn all_keys_replaced_at_once_still_open_what_was_sealed() {
    let backend = maker().await;
    let mut gateway = Gateway::over(&backend).await;
    let order = create();
    let first = gateway.order(&order).await;
    gateway.reconfigure(with_keys(&format!("{{ id = \"k-2027\", value = \"{NEW}\" }}"))).await;
    gateway.wait_for_metric("spigate_journal_seconds_count{operation=\"unlock\"}", |unlocks| unlocks >= 3.0).await;
    gateway.restart().await;
    gateway.order(&order.key(NEW)).await.assert_is(&first.text());
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_key_file_behind_a_swapped_link_is_read_anew_without_being_asked() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    // As Kubernetes mounts a secret: the file is a link through a link to a directory.
    let directory = gateway.directory();
    directory.write("keys/..1/app_key", KEY);
    symlink("..1", directory.path().join("keys/..data")).unwrap();
    symlink("..data/app_key", directory.path().join("keys/app_key")).unwrap();
    gateway.reconfigure(with_keys("{ id = \"k\", file = \"keys/app_key\" }")).await;
    assert_eq!(gateway.order(&create()).await.status, 200);

    let before = gateway.reloads("success").await;
    directory.write("keys/..2/app_key", NEW);
    symlink("..2", directory.path().join("keys/..tmp")).unwrap();
    std::fs::rename(directory.path().join("keys/..tmp"), directory.path().join("keys/..data")).unwrap();
    std::fs::remove_dir_all(directory.path().join("keys/..1")).unwrap();
    gateway.wait_for_reload("success", before).await;
    assert_eq!(gateway.order(&create().key(NEW)).await.status, 200);
    gateway.order(&create()).await.assert_rejected(401, "signature_invalid");
}

#[tokio::test]
async fn what_is_invalid_changes_nothing_and_is_said_once() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    let good = std::fs::read_to_string(gateway.directory().path().join("spigate.toml")).unwrap();
    let half = good[..good.rfind("[apps.backend]").unwrap()].to_owned();
    let broken = good.replace("[listen]", "[listen");
    let unknown = format!("{good}\nanswer_with = \"3s\"\n");
    let secret = with_keys("{ id = \"k\", value = 12345678 }")(&good);
    for (count, text) in [half, broken, unknown, secret].iter().enumerate() {
        gateway.rewrite(|_| text.clone());
        gateway.wait_for_metric("spigate_config_reloads_total{result=\"failure\"}", |found| found > count as f64).await;
        assert_eq!(gateway.order(&create()).await.status, 200);
        assert_eq!(gateway.readyz().await.status, 200);
    }
    let said = |line: &&str| line.contains("the changed configuration cannot be used");
    let failures = gateway.reloads("failure").await;
    // It has looked at the last one again and again by the time that a good one is taken.
    gateway.rewrite(|_| good.replace("k-2026", "k-2030"));
    gateway.wait_for_reload("success", 0.0).await;
    assert_eq!(gateway.reloads("failure").await, failures);
    // Lines come in their order, after what they tell of.
    gateway.line("the reload", |line| line["message"] == "the configuration was reloaded").await;
    let output = gateway.output();
    let problems =
        output.lines().filter(|line| said(line)).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut problems: Vec<_> = problems.map(|line| line["problem"].to_string()).collect();
    let count = problems.len();
    problems.sort();
    problems.dedup();
    assert!(count >= 4 && problems.len() == count, "{output}");
    assert!(output.contains("answer_with: unknown key"), "{output}");
    assert!(output.contains("not valid TOML"), "{output}");
    assert!(!output.contains("12345678"), "{output}");
    gateway.order(&create()).await;
    assert_eq!(verifications(&gateway, "k-2030").await, 1.0);
}

#[tokio::test]
async fn a_file_that_is_gone_changes_nothing_and_is_said_again_to_who_asks() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    let config = gateway.directory().path().join("spigate.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    gateway.wait_for_reload("failure", 0.0).await;
    assert_eq!(gateway.order(&create()).await.status, 200);
    let before = gateway.reloads("failure").await;
    gateway.signal("HUP");
    gateway.wait_for_reload("failure", before).await;
    assert_eq!(gateway.metric("spigate_config_last_reload_successful").await, 0.0);
    gateway.directory().write("spigate.toml", &good);
    gateway.signal("HUP");
    gateway
        .line("the file is back", |line| line["message"].as_str().unwrap_or("").contains("as it is served again"))
        .await;
    assert_eq!(gateway.reloads("success").await, 0.0);
    assert_eq!(gateway.metric("spigate_config_last_reload_successful").await, 1.0);
    // Nothing has changed, and whoever asks is told so.
    gateway.signal("HUP");
    gateway.line("nothing new", |line| line["message"].as_str().unwrap_or("").contains("has not changed")).await;
}

#[tokio::test]
async fn a_request_keeps_the_configuration_that_it_found() {
    let gate = Gate::closed();
    let held = gate.clone();
    let first = Backend::start(move |_| [vec![Step::Wait(held.clone())], json(CREATED)].concat()).await;
    let second = Backend::start(|_| json(CREATED.replace("ins-1", "ins-2"))).await;
    let gateway = Gateway::over(&first).await;
    let running = gateway.send(&create());
    first.wait_for(1).await;
    let (one, two) = (first.url("/internal/spi"), second.url("/internal/spi"));
    gateway.reconfigure(|text| text.replace(&one, &two)).await;
    gateway.order(&create()).await.assert_is(&CREATED.replace("ins-1", "ins-2"));
    gate.open();
    within_deadline("the first", running).await.unwrap().assert_is(CREATED);
    assert_eq!((first.count(), second.count()), (1, 1));
}

#[tokio::test]
async fn apps_come_and_go() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    let url = backend.url("/erp");
    let erp = format!(
        "[[apps]]\nname = \"erp\"\npath = \"/erp\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"k\", value = \"{NEW}\" }}]\nbackend = {{ url = \"{url}\" }}\n"
    );
    gateway.order(&create().key(NEW).path("/erp")).await.assert_rejected(404, "unknown_app");
    gateway.reconfigure(|text| format!("{text}\n{erp}")).await;
    assert_eq!(gateway.order(&create().key(NEW).path("/erp")).await.status, 200);
    assert_eq!(gateway.order(&create()).await.status, 200);
    gateway.reconfigure(|text| text.replace(&erp, "")).await;
    gateway.order(&create().key(NEW).path("/erp")).await.assert_rejected(404, "unknown_app");
}

#[tokio::test]
async fn what_only_a_restart_can_change_says_so_and_the_rest_is_taken() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    gateway
        .reconfigure(|text| {
            let moved = text.replacen("127.0.0.1:0", "127.0.0.1:1", 1).replace("k-2026", "k-2030");
            format!("[journal]\nurl = \"sqlite:elsewhere.db\"\n{moved}")
        })
        .await;
    for key in ["listen.address", "journal.url"] {
        gateway.line(key, |line| line["key"] == key && line["level"] == "WARN").await;
    }
    assert_eq!(gateway.order(&create()).await.status, 200);
    assert_eq!(verifications(&gateway, "k-2030").await, 1.0);
    assert!(!gateway.directory().path().join("elsewhere.db").exists());
}

#[tokio::test]
async fn limits_and_the_access_log_follow() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    gateway.reconfigure(|text| text.replace("[limits]", "[limits]\nquery_bytes = \"256B\"")).await;
    gateway.order(&create()).await.assert_rejected(414, "uri_too_long");
    gateway.reconfigure(|text| text.replace("query_bytes = \"256B\"", "in_flight = 1")).await;
    assert_eq!(gateway.order(&create()).await.status, 200);
    gateway.reconfigure(|text| format!("[log]\naccess = false\n{text}")).await;
    let unlogged = gateway.order(&create()).await;
    gateway.reconfigure(|text| text.replace("access = false", "access = true")).await;
    let logged = gateway.order(&create()).await;
    gateway.access_line(&logged).await;
    assert!(!gateway.output().contains(unlogged.request_id()));
}

#[tokio::test]
async fn a_key_has_its_time() {
    let backend = maker().await;
    let gateway = Gateway::over(&backend).await;
    let key = |times: &str| format!("{{ id = \"k-2026\", value = \"{KEY}\", {times} }}");
    for (times, verifies) in [
        ("not_before = \"2020-01-01T00:00:00+08:00\"", true),
        ("not_before = \"2099-01-01T00:00:00Z\"", false),
        ("not_after = \"2099-01-01T00:00:00Z\"", true),
        ("not_after = \"2020-01-01T00:00:00Z\"", false),
        ("not_before = \"2020-01-01T00:00:00Z\", not_after = \"2099-01-01T00:00:00Z\"", true),
    ] {
        gateway.reconfigure(with_keys(&key(times))).await;
        let reply = gateway.order(&create()).await;
        assert_eq!(reply.status, if verifies { 200 } else { 401 }, "{times}");
    }
    let checked = |times: &str| {
        let toml =
            with_keys(&key(times))(&std::fs::read_to_string(gateway.directory().path().join("spigate.toml")).unwrap());
        crate::support::gateway::check(&crate::support::Directory::new(), &toml)
    };
    let past = checked("not_after = \"2020-01-01T00:00:00Z\"");
    assert_eq!(past.code, 0);
    assert!(past.text.contains("no active key verifies now"), "{}", past.text);
    let reversed = checked("not_before = \"2099-01-01T00:00:00Z\", not_after = \"2020-01-01T00:00:00Z\"");
    assert!(reversed.code == 1 && reversed.text.contains("must not be before not_before"), "{}", reversed.text);
    let nonsense = checked("not_before = \"tomorrow\"");
    assert!(nonsense.code == 1 && nonsense.text.contains("keys[0].not_before"), "{}", nonsense.text);
}

#[tokio::test]
async fn a_storm_of_reloads_under_load_harms_nobody() {
    let backend = maker().await;
    let gateway = Arc::new(Setup::new(&backend).forwarding_all().start().await);
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..8).map(|_| {
        let (gateway, over, answered) = (Arc::clone(&gateway), Arc::clone(&over), Arc::clone(&answered));
        tokio::spawn(async move {
            let mut connection = Connection::open(gateway.listen).await;
            while !over.load(Ordering::Relaxed) {
                connection.send(get(&create().target(), "")).await;
                let reply = connection.reply().await.expect("an answer");
                assert_eq!(reply.status, 200, "{}", reply.text());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients = clients.collect::<Vec<_>>();
    for number in 0..200 {
        // Some of them are no configuration at all.
        gateway.rewrite(|text| match (number % 10, text.find("# ")) {
            (9, _) => format!("{text}\n# broken\n]"),
            (_, Some(end)) => format!("{}# storm {number}\n", &text[..end]),
            (_, None) => format!("{text}\n# storm {number}\n"),
        });
        gateway.signal("HUP");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    gateway.reconfigure(|text| text[..text.find("# ").unwrap()].replace("k-2026", "k-2030")).await;
    let load = async {
        while answered.load(Ordering::Relaxed) < 200 {
            tokio::task::yield_now().await;
        }
    };
    within_deadline("answers", load).await;
    over.store(true, Ordering::Relaxed);
    for client in clients {
        within_deadline("a client", client).await.unwrap();
    }
    // What was reloaded just now may have been the last of the storm.
    let last = async {
        while verifications(&gateway, "k-2030").await < 1.0 {
            gateway.order(&create()).await;
        }
    };
    within_deadline("the last configuration", last).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_and_open_connections_go_on() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let later = now().as_second() + 90 * 86_400;
    let first = authority.certify(&["localhost"]);
    let renewed = authority.certify_for(&["localhost"], later - 91 * 86_400, later);
    let gateway = Setup::new(&backend).forwarding_all().tls(&first).start().await;
    let client = TlsClient::trusting(&authority);
    let mut open = client.http1(&gateway).await;
    let mut open_http2 = TlsClient::trusting(&authority).offering(&["h2"]).http2(&gateway).await;
    open_http2.get(&create().target()).await.assert_is(CREATED);
    open.send(get(&create().target(), "")).await;
    open.reply().await.unwrap().assert_is(CREATED);

    // Not in one step: in between the key belongs to the other certificate.
    gateway.directory().write("tls.crt", &renewed.certificate);
    gateway.wait_for_reload("failure", 0.0).await;
    let shown = || certificate_for("localhost", gateway.listen);
    let of = |certified: &Certified| CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap();
    assert_eq!(shown().await, of(&first));
    gateway.directory().write("tls.key", &renewed.key);
    gateway.wait_for_reload("success", 0.0).await;
    assert_eq!(shown().await, of(&renewed));
    let series = "spigate_tls_certificate_expiry_timestamp_seconds{certificate=\"tls.crt\",listener=\"listen\"}";
    assert_eq!(gateway.metric(series).await, later as f64);
    open.send(get(&create().target(), "")).await;
    open.reply().await.unwrap().assert_is(CREATED);
    open_http2.get(&create().target()).await.assert_is(CREATED);
}

#[tokio::test]
async fn whose_word_is_believed_follows_for_new_connections() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).forwarding_all().start().await;
    let client = async |connection: &mut Connection| {
        connection.send(get(&create().target(), "X-Forwarded-For: 203.0.113.9\r\n")).await;
        let reply = connection.reply().await.unwrap();
        gateway.access_line(&reply).await["client"].as_str().unwrap().to_owned()
    };
    let mut before = Connection::open(gateway.listen).await;
    assert_eq!(client(&mut before).await, "127.0.0.1");
    gateway.reconfigure(|text| text.replace("[listen]", "[listen]\ntrusted_proxies = [\"127.0.0.0/8\"]")).await;
    assert_eq!(client(&mut before).await, "127.0.0.1");
    assert_eq!(client(&mut Connection::open(gateway.listen).await).await, "203.0.113.9");
}

#[tokio::test]
async fn the_number_of_connections_follows() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).start().await;
    let mut open = Connection::open(gateway.listen).await;
    open.send(get(&create().target(), "")).await;
    assert_eq!(open.reply().await.unwrap().status, 200);
    gateway.reconfigure(|text| text.replace("[limits]", "[limits]\nconnections = 1")).await;
    assert_eq!(gateway.order(&create()).await.status, 503);
    gateway.reconfigure(|text| text.replace("connections = 1", "connections = 2")).await;
    gateway.order(&create().key("wrong")).await.assert_rejected(401, "signature_invalid");
}

#[tokio::test]
async fn a_backend_that_did_not_change_keeps_its_connections() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).forwarding_all().backend("keep_alive = \"60s\"").start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    gateway.reconfigure(|text| text.replace("k-2026", "k-2030")).await;
    gateway.order(&create()).await.assert_is(CREATED);
    assert_eq!((backend.count(), backend.connections()), (2, 1));
    gateway.reconfigure(|text| text.replace("keep_alive = \"60s\"", "keep_alive = \"61s\"")).await;
    gateway.order(&create()).await.assert_is(CREATED);
    assert_eq!((backend.count(), backend.connections()), (3, 2));
}

#[tokio::test]
async fn a_listener_that_is_gone_from_the_file_stays_as_it_was() {
    let (authority, clients, backend) = (Authority::new(), Authority::new(), Backend::confirming().await);
    let (locked, trusting) = (free_port(), free_port());
    // The second entry takes the first one's place, and so its name.
    let first = format!(
        "[[listeners]]\naddress = \"{locked}\"\ntls = {{ certificate = \"tls.crt\", key = \"tls.key\" }}\n\
         client_ca = \"clients.pem\"\n"
    );
    let second = format!(
        "[[listeners]]\naddress = \"{trusting}\"\ntls = {{ certificate = \"tls.crt\", key = \"tls.key\" }}\n\
         trusted_proxies = [\"127.0.0.0/8\"]\n"
    );
    let certified = authority.certify(&["localhost"]);
    let setup = Setup::new(&backend).forwarding_all().more(&format!("{first}{second}"));
    let setup = setup.file("tls.crt", &certified.certificate).file("tls.key", &certified.key);
    let gateway = setup.file("clients.pem", &clients.pem).start().await;
    let is_refused = async || match TlsClient::trusting(&authority).connect(locked).await {
        Err(_) => true,
        Ok(stream) => {
            let mut connection = Connection::over(stream);
            connection.send(get(&create().target(), "")).await;
            connection.reply().await.is_none()
        }
    };
    assert!(is_refused().await);
    gateway.reconfigure(|text| text.replace(&first, "")).await;
    assert!(is_refused().await, "a client without a certificate");
    // The one that is still there, under another name, goes on as well.
    let mut connection = Connection::over(TlsClient::trusting(&authority).connect(trusting).await.unwrap());
    connection.send(get(&create().target(), "X-Forwarded-For: 203.0.113.9\r\n")).await;
    let reply = connection.reply().await.unwrap();
    assert_eq!(gateway.access_line(&reply).await["client"], "203.0.113.9");
}

#[tokio::test]
async fn a_delivery_of_an_app_that_is_gone_is_recorded_all_the_same() {
    let gate = Gate::closed();
    let held = gate.clone();
    let backend = Backend::start(move |_| [vec![Step::Wait(held.clone())], json(CREATED)].concat()).await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let running = gateway.send(&order);
    backend.wait_for(1).await;
    let renamed = "name = \"other\"\npath = \"/other\"";
    gateway.reconfigure(|text| text.replace("name = \"crm\"\npath = \"/spi\"", renamed)).await;
    gateway.order(&create()).await.assert_rejected(404, "unknown_app");
    gate.open();
    within_deadline("the answer", running).await.unwrap().assert_is(CREATED);
    gateway.reconfigure(|text| text.replace(renamed, "name = \"crm\"\npath = \"/spi\"")).await;
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_backend_that_is_gone_is_in_no_metric() {
    let (backend, closed) = (Backend::confirming().await, Backend::closed());
    let more = format!("failover = [\"{}\"]\nhealth = {{ failures = 1 }}", closed.url("/internal/spi"));
    let gateway = Setup::new(&backend).backend(&more).start().await;
    let series = |position: usize| format!("spigate_backend_up{{app=\"crm\",backend=\"{position}\"}}");
    assert!(gateway.metrics().await.contains(&series(1)));
    gateway.reconfigure(|text| text.replace(&more, "")).await;
    let metrics = gateway.metrics().await;
    assert!(metrics.contains(&series(0)) && !metrics.contains(&series(1)), "{metrics}");
}
