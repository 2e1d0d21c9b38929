//! Who may see what of the admin listener, by which name, and what no page of another site can do.

use crate::support::backend::{Backend, Step};
use crate::support::client::{self, Connection, Reply, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

const TOKEN: &str = "hush-0123456789abcdef0123456789abcdef";
const PUBLIC: [&str; 3] = ["/livez", "/readyz", "/metrics"];
/// All else, and a page that is not there.
const OTHERS: [&str; 11] = [
    "/",
    "/deliveries",
    "/deliveries/0123456789abcdef0123456789abcdef",
    "/deliveries/0123456789abcdef0123456789abcdef/retry",
    "/workbench",
    "/api/v1/overview",
    "/api/v1/deliveries",
    "/api/v1/deliveries/0123456789abcdef0123456789abcdef",
    "/api/v1/openapi.json",
    "/log/level",
    "/nothing",
];

pub(crate) async fn ask(gateway: &Gateway, path: &str, headers: &str) -> Reply {
    client::one_reply(gateway.admin, get(path, headers)).await
}

/// Posts a form as a browser does that has the page of `host` open.
pub(crate) async fn post(gateway: &Gateway, path: &str, form: &str, headers: &str) -> Reply {
    let host = gateway.admin;
    let own = if headers.contains("Origin:") { String::new() } else { format!("Origin: http://{host}\r\n") };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n{own}{headers}",
        form.len()
    );
    client::one_reply(gateway.admin, format!("{head}\r\n{form}")).await
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

async fn with_token() -> (Backend, Gateway) {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).admin_off_loopback().admin(&format!("token = {{ value = \"{TOKEN}\" }}"));
    let gateway = setup.start().await;
    (backend, gateway)
}

/// Where a redirection leads.
fn location(reply: &Reply) -> &str {
    assert_eq!(reply.status, 303, "{reply:?}");
    reply.header("location").unwrap()
}

/// Signs in, and gives the cookie as it is sent back.
async fn sign_in(gateway: &Gateway) -> String {
    let reply = post(gateway, "/login", &format!("token={TOKEN}&next=%2Fdeliveries"), "").await;
    assert_eq!(location(&reply), "/deliveries");
    let cookie = reply.header("set-cookie").unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict; Max-Age=43200"), "{cookie}");
    format!("Cookie: {}\r\n", cookie.split(';').next().unwrap())
}

#[tokio::test]
async fn on_loopback_everything_is_shown_and_every_answer_says_what_a_browser_must_not_do() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for path in OTHERS.iter().chain(&PUBLIC).chain(&["/assets/style.css", "/assets/live.js"]) {
        let reply = ask(&gateway, path, "Accept: text/html\r\n").await;
        let is_missing = path.contains("0123") || *path == "/nothing";
        assert_eq!(reply.status, if is_missing { 404 } else { 200 }, "{path}: {reply:?}");
        let policy = reply.header("content-security-policy").unwrap();
        for part in ["default-src 'none'", "frame-ancestors 'none'", "script-src 'self'", "form-action 'self'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
    }
    // There is nothing to sign in to.
    assert_eq!(location(&ask(&gateway, "/login?next=/workbench", "").await), "/workbench");
    // And nothing of it is the public port's.
    for path in OTHERS {
        gateway.get(path).await.assert_rejected(404, "unknown_app");
    }
}

#[tokio::test]
async fn off_loopback_and_without_a_token_only_probes_and_metrics_are_shown() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).admin_off_loopback().start().await;
    for path in PUBLIC {
        // As the kubelet and Prometheus come, by whatever name.
        assert_eq!(
            client::one_reply(gateway.admin, format!("GET {path} HTTP/1.1\r\nHost: any.name\r\n\r\n")).await.status,
            200
        );
    }
    for path in OTHERS.iter().chain(&["/login", "/assets/style.css", "/look?theme=dark"]) {
        for headers in ["Accept: text/html\r\n", &bearer(TOKEN), "Cookie: spigate=\r\n"] {
            let reply = ask(&gateway, path, headers).await;
            assert_eq!(reply.status, 403, "{path}: {reply:?}");
            assert_eq!(reply.json()["code"], "no_token_configured");
            assert!(reply.text().contains("admin.token"), "{reply:?}");
        }
    }
    for (path, form) in [("/log/level", "debug"), ("/login", "token="), ("/api/v1/workbench", "{}")] {
        assert_eq!(post(&gateway, path, form, "").await.status, 403, "{path}");
    }
    gateway.order(&create()).await;
    assert!(gateway.metrics().await.contains("spigate_requests_total"));
}

#[tokio::test]
async fn with_a_token_only_those_who_show_it_see_more() {
    let (_backend, gateway) = with_token().await;
    for path in PUBLIC {
        assert_eq!(ask(&gateway, path, "").await.status, 200, "{path}");
    }
    for path in OTHERS {
        let refused = ask(&gateway, path, "").await;
        assert_eq!((refused.status, &refused.json()["code"]), (401, &"unauthenticated".into()), "{path}");
        assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
        let admitted = ask(&gateway, path, &bearer(TOKEN)).await;
        assert!([200, 404].contains(&admitted.status), "{path}: {admitted:?}");
    }
    assert_eq!(post(&gateway, "/log/level", "debug", "").await.status, 401);
    assert_eq!(post(&gateway, "/log/level", "debug", &bearer(TOKEN)).await.status, 200);
    // A browser is led to the page where it can be shown, and back.
    let led = ask(&gateway, "/deliveries?app=crm", "Accept: text/html\r\n").await;
    assert_eq!(location(&led), "/login?next=%2Fdeliveries%3Fapp%3Dcrm");
    let page = ask(&gateway, location(&led), "").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("value=\"/deliveries?app=crm\""), "{page:?}");
    assert!(!page.text().contains("href=\"/deliveries\""), "{page:?}");
    for elsewhere in ["https://evil.example/", "//evil.example/", "/%5Cevil.example"] {
        let page = ask(&gateway, &format!("/login?next={elsewhere}"), "").await;
        assert!(page.text().contains("name=\"next\" value=\"/\""), "{page:?}");
    }
    let output = gateway.stop().await;
    assert!(!output.contains(TOKEN), "{output}");
}

#[tokio::test]
async fn wrong_tokens_are_bounded_and_lock_nobody_out() {
    let (_backend, gateway) = with_token().await;
    let mut told = Vec::new();
    for number in 0..14 {
        let wrong = bearer(&format!("{TOKEN}{number}"));
        let reply = if number % 2 == 0 {
            ask(&gateway, "/api/v1/overview", &wrong).await
        } else {
            post(&gateway, "/login", &format!("token={TOKEN}{number}"), "").await
        };
        if reply.status == 429 {
            assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
        }
        told.push(reply.status);
    }
    assert_eq!(told, [vec![401; 10], vec![429; 4]].concat());
    assert_eq!(ask(&gateway, "/api/v1/overview", &bearer(TOKEN)).await.status, 200);
    sign_in(&gateway).await;
    let wrong = ["Authorization: Basic aHVzaDpodXNo\r\n".to_owned(), format!("Authorization: {TOKEN}\r\n")];
    for wrong in wrong {
        assert_eq!(ask(&gateway, "/api/v1/overview", &wrong).await.status, 429, "{wrong}");
    }
    let output = gateway.stop().await;
    assert_eq!(output.matches("a wrong token was shown").count(), 10, "{output}");
    assert!(!output.contains("hush-"), "{output}");
}

#[tokio::test]
async fn a_session_lasts_until_it_is_ended_or_the_token_is_another_one() {
    let (_backend, gateway) = with_token().await;
    let cookie = sign_in(&gateway).await;
    let page = ask(&gateway, "/deliveries", &format!("Accept: text/html\r\n{cookie}")).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("action=\"/logout\""), "{page:?}");
    for wrong in ["Cookie: spigate=\r\n", "Cookie: spigate=0\r\n", "Cookie: other=1; spigate=00\r\n"] {
        assert_eq!(ask(&gateway, "/deliveries", wrong).await.status, 401, "{wrong}");
    }
    let ended = post(&gateway, "/logout", "", &cookie).await;
    assert_eq!(location(&ended), "/login");
    assert!(ended.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(ask(&gateway, "/deliveries", &cookie).await.status, 401);
    let cookie = sign_in(&gateway).await;
    gateway.reconfigure(|text| text.replace("hush-", "other")).await;
    assert_eq!(ask(&gateway, "/deliveries", &cookie).await.status, 401);
    assert_eq!(ask(&gateway, "/deliveries", &bearer(TOKEN)).await.status, 401);
    assert_eq!(ask(&gateway, "/deliveries", &bearer(&TOKEN.replace("hush-", "other"))).await.status, 200);
    // Over https, as the browser says, the cookie is this host's alone.
    let origin = format!("Origin: https://{}\r\n", gateway.admin);
    let reply = post(&gateway, "/login", &format!("token={}", TOKEN.replace("hush-", "other")), &origin).await;
    let cookie = reply.header("set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-spigate=") && cookie.ends_with("; Secure"), "{cookie}");
}

#[tokio::test]
async fn a_name_that_was_made_to_point_here_shows_nothing() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).admin("hosts = [\"ops.example\"]").start().await;
    let by = async |host: &str, path: &str| {
        client::one_reply(gateway.admin, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    };
    for path in OTHERS.iter().filter(|path| **path != "/log/level").chain(&["/assets/style.css", "/login"]) {
        for host in ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example"] {
            let reply = by(host, path).await;
            assert_eq!((reply.status, &reply.json()["code"]), (403, &"unknown_host".into()), "{host}{path}");
        }
        for host in ["localhost", "127.0.0.1:9090", "[::1]", "10.1.2.3", "ops.example", "OPS.example:9090"] {
            assert_ne!(by(host, path).await.status, 403, "{host}{path}");
        }
    }
    let two = "GET /deliveries HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
    assert!([400, 403].contains(&client::one_reply(gateway.admin, two).await.status));
}

#[tokio::test]
async fn no_page_of_another_site_can_post_anything() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let here = gateway.admin;
    let form = "by=a&why=b&url=x";
    for path in [
        "/deliveries/0123456789abcdef/retry",
        "/workbench",
        "/login",
        "/logout",
        "/api/v1/deliveries/012345",
        "/api/v1/workbench",
    ] {
        for headers in [
            "Origin: https://evil.example\r\n".to_owned(),
            "Origin: null\r\n".into(),
            format!("Origin: http://{here}\r\nSec-Fetch-Site: cross-site\r\n"),
            format!("Origin: http://{here}\r\nSec-Fetch-Site: same-site\r\n"),
            "Origin: http://127.0.0.1:1\r\n".into(),
        ] {
            let refused = post(&gateway, path, form, &headers).await;
            assert_eq!(refused.status, 403, "{path} {headers}{refused:?}");
        }
        let own = format!("Origin: http://{here}\r\nSec-Fetch-Site: same-origin\r\n");
        assert_ne!(post(&gateway, path, form, &own).await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_read_only_listener_offers_and_takes_no_decision() {
    let backend = Backend::in_turn([vec![Step::Close]]).await;
    let gateway = Setup::new(&backend).admin("read_only = true").start().await;
    assert_eq!(gateway.order(&create()).await.status, 502);
    let listed = ask(&gateway, "/api/v1/deliveries", "").await.json();
    let id = listed["deliveries"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["deliveries"][0]["state"], "unconfirmed");
    let page = ask(&gateway, &format!("/deliveries/{id}"), "").await;
    assert_eq!(page.status, 200);
    assert!(!page.text().contains("/retry\"") && page.text().contains("Read-only"), "{page:?}");
    for path in ["retry", "done", "failed"] {
        let path = format!("/deliveries/{id}/{path}");
        assert_eq!(ask(&gateway, &path, "").await.status, 403, "{path}");
        assert_eq!(post(&gateway, &path, "by=me&why=because&reply={}", "").await.status, 403, "{path}");
    }
    let body = r#"{"decision":"retry","by":"me","why":"because"}"#;
    let refused = post(&gateway, &format!("/api/v1/deliveries/{id}"), body, "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (403, &"read_only".into()));
    assert_eq!(post(&gateway, "/log/level", "debug", "").await.status, 403);
    assert_eq!(ask(&gateway, "/api/v1/deliveries", "").await.json()["deliveries"][0]["state"], "unconfirmed");
}

#[tokio::test]
async fn whoever_says_little_on_the_admin_listener_is_let_go() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    for part in ["", "GET /livez HTTP/1.1\r\nHost: h\r\n"] {
        let mut connection = Connection::open(gateway.admin).await;
        connection.send(part).await;
        assert!(connection.until_closed().await.is_empty(), "{part:?}");
    }
    let mut connection = Connection::open(gateway.admin).await;
    connection.send(get("/livez", "")).await;
    let replies = connection.until_closed().await;
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200]);
}

#[tokio::test]
async fn one_client_cannot_take_all_connections_of_the_admin_listener() {
    let backend = Backend::confirming().await;
    let limits = "[limits]\nheader_timeout = \"120s\"\nidle_timeout = \"120s\"\n";
    let gateway = Setup::new(&backend).top(limits).start().await;
    let mut held = Vec::new();
    for _ in 0..128 {
        held.push(Connection::open(gateway.admin).await);
    }
    let mut beyond = Connection::open(gateway.admin).await;
    beyond.send(get("/livez", "")).await;
    assert!(beyond.until_closed().await.is_empty());
    // Another client still has its own.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = Connection::over(socket.connect(gateway.admin).await.unwrap());
    other.send(get("/livez", "")).await;
    assert_eq!(other.reply().await.unwrap().status, 200);
    gateway
        .line("the complaint", |line| line["message"] == "a connection was closed: the admin listener has too many")
        .await;
    for connection in &mut held {
        assert!(!connection.has_ended().await);
    }
}
