//! The journal page and its twin for programs: what they show, what can be decided there, and what
//! they never show.

use std::process::Command;

use serde_json::{Value, json};

use crate::admin_access::{ask, post};
use crate::support::backend::{Backend, CREATED, Seen, Step, created, json as reply_of};
use crate::support::client::{self, Connection, Reply};
use crate::support::gateway::{Gateway, Setup, without_settings};
use crate::support::order::{KEY, Order, create, encode};
use crate::support::{Directory, within_deadline};

const PASSWORD: &str = "hunter2-of-the-customer";

/// A JSON answer that was asked for.
async fn api(gateway: &Gateway, path: &str) -> Value {
    let reply = ask(gateway, path, "").await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    reply.json()
}

async fn page(gateway: &Gateway, path: &str) -> String {
    let reply = ask(gateway, path, "").await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let text = reply.text();
    // The policy would not let it run; it is not there either.
    for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!text.contains(inline), "{path}: {inline} in {text}");
    }
    assert!(!text.replace("<script src=\"/assets/live.js\" defer></script>", "").contains("<script"), "{path}: {text}");
    text
}

async fn id_of(gateway: &Gateway, order: &Order<'_>) -> String {
    let path = format!("/api/v1/deliveries?order_id={}", encode(order.value("order_id")));
    let listed = api(gateway, &path).await;
    let deliveries = listed["deliveries"].as_array().unwrap();
    assert_eq!(deliveries.len(), 1, "{listed}");
    deliveries[0]["id"].as_str().unwrap().to_owned()
}

fn ids(listed: &Value) -> Vec<String> {
    listed["deliveries"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// A backend whose first reply breaks off, and which makes an instance for each order after that.
async fn breaking_once() -> Backend {
    let turns = [vec![Step::Close], reply_of(created("ins-2")), reply_of(created("ins-3"))];
    Backend::in_turn(turns).await
}

#[tokio::test]
async fn what_the_platform_words_freely_is_shown_as_text() {
    let evil = "<script>alert(1)</script>\"'&\u{1b}[31m\u{202e}\u{85}<img src=x onerror=alert(1)>";
    let shown = "&#60;script&#62;alert(1)&#60;/script&#62;&#34;&#39;&#38;\\u{1b}[31m\\u{202e}\\u{85}&#60;img src=x onerror=alert(1)&#62;";
    let (number, user) = (format!("o-{evil}"), format!("u-{evil}"));
    let reply = json!({ "success": true, "instanceId": "ins-<b>1</b>", "message": evil, "appInfo": { "frontEnd": { "url": "https://a/", "username": evil, "password": PASSWORD } } });
    let backend = Backend::in_turn([reply_of(reply.to_string())]).await;
    let gateway = Gateway::over(&backend).await;
    let order = create().with("order_id", &number).with("user_id", &user);
    assert_eq!(gateway.order(&order).await.status, 200);
    let id = id_of(&gateway, &order).await;
    for path in [
        "/".to_owned(),
        "/deliveries".into(),
        format!("/deliveries?order_id={}", encode(&number)),
        format!("/deliveries?app={0}&action={0}&since={0}&q=", encode(evil)),
        format!("/deliveries?q={}", encode(evil)),
        format!("/deliveries/{id}"),
        format!("/deliveries/{}", encode(evil)),
        format!("/login?next={}", encode(evil)),
    ] {
        let text = ask(&gateway, &path, "").await.text();
        for raw in ["<script>alert", "<img", "ins-<b>", PASSWORD] {
            assert!(!text.contains(raw), "{path}: {raw:?} in {text}");
        }
        // A field of the filter holds what was typed, to be sent again.
        let typed = path.contains('=') && !path.starts_with("/login");
        assert!(typed || !text.contains(['\u{1b}', '\u{202e}', '\u{85}']), "{path}: {text}");
    }
    let text = page(&gateway, &format!("/deliveries/{id}")).await;
    assert!(text.contains(&format!("o-{shown}")) && text.contains(&format!("u-{shown}")), "{text}");
    assert!(text.contains("(redacted)") && text.contains("ins-&#60;b&#62;1"), "{text}");
    // Programs get what was sent, in a form that moves no cursor.
    let answer = ask(&gateway, &format!("/api/v1/deliveries/{id}"), "").await;
    assert_eq!(answer.json()["order_id"], number);
    assert!(!answer.text().contains(['\u{1b}', '\u{202e}']) && !answer.text().contains(PASSWORD), "{answer:?}");
    let workbench = post(&gateway, "/workbench", &format!("url={}", encode(&order.target())), "").await.text();
    assert!(workbench.contains(shown) && !workbench.contains("<script>alert"), "{workbench}");
}

#[tokio::test]
async fn the_same_is_shown_to_people_to_programs_and_on_the_command_line() {
    let backend = Backend::in_turn([reply_of(CREATED), reply_of(r#"{"success":false,"message":"no"}"#)]).await;
    let gateway = Gateway::over(&backend).await;
    let (done, refused) = (create(), create());
    gateway.order(&done).await;
    gateway.order(&refused).await;
    let id = id_of(&gateway, &done).await;
    // Until it does not change any more.
    let answered = async {
        while api(&gateway, &format!("/api/v1/deliveries/{id}")).await["answered_at"].is_null() {
            tokio::task::yield_now().await;
        }
    };
    within_deadline("the answer is noted", answered).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
    command.args(["journal", "show", &id, "--format", "json", "--config"]);
    command.arg(gateway.directory().path().join("spigate.toml"));
    let output = without_settings(&mut command).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(api(&gateway, &format!("/api/v1/deliveries/{id}")).await, shown[0]);
    // By any beginning of the id.
    assert_eq!(api(&gateway, &format!("/api/v1/deliveries/{}", &id[..8])).await, shown[0]);
    let text = page(&gateway, &format!("/deliveries/{id}")).await;
    let attempt = &shown[0]["attempts"][0];
    for part in
        [done.value("order_id"), done.value("user_id"), "ins-1", "开通成功", attempt["request_id"].as_str().unwrap()]
    {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let text = page(&gateway, &format!("/deliveries?order_id={}", refused.value("order_id"))).await;
    assert!(text.contains("refused by the backend") && !text.contains(done.value("order_id")), "{text}");
    let text = client::one_reply(gateway.admin, client::get("/deliveries", "Accept-Language: zh-CN,en;q=0.5\r\n"))
        .await
        .text();
    assert!(text.contains("<html lang=\"zh-Hans\"") && text.contains("后端已拒绝"), "{text}");
}

#[tokio::test]
async fn what_is_looked_for_is_found_by_order_instance_customer_or_id() {
    let backend = Backend::start(|seen: &Seen| {
        let order = seen.json();
        reply_of(created(&format!("ins-{}", order["order_id"].as_str().unwrap())))
    })
    .await;
    let gateway = Gateway::over(&backend).await;
    let orders =
        [create().with("user_id", "usr-one"), create().with("user_id", "usr-one"), create().with("user_id", "usr-two")];
    for order in &orders {
        gateway.order(order).await;
    }
    let first = id_of(&gateway, &orders[0]).await;
    let number = orders[0].value("order_id");
    for named in [number, &format!("ins-{number}"), &first, &first[..10], &format!("%20{number}%20")] {
        let reply = ask(&gateway, &format!("/deliveries?q={named}"), "").await;
        assert_eq!(reply.header("location"), Some(&*format!("/deliveries/{first}")), "{named}: {reply:?}");
    }
    let reply = ask(&gateway, "/deliveries?q=usr-one", "").await;
    assert_eq!(reply.header("location"), Some("/deliveries?user_id=usr-one"));
    assert!(page(&gateway, "/deliveries?q=nobody").await.contains("No delivery has this"), "not said");
    for (query, count) in [
        ("user_id=usr-one", 2),
        ("user_id=usr-two", 1),
        ("app=crm", 3),
        ("app=erp", 0),
        ("action=CreateAppInstance", 3),
        ("action=DeleteAppInstance", 0),
        ("outcome=done", 3),
        ("outcome=confirmed&app=crm", 3),
        ("outcome=refused", 0),
        ("since=1h", 3),
        ("until=1h", 0),
        (&format!("instance_id=ins-{number}"), 1),
        (&format!("instance_id=ins-{number}&user_id=usr-two"), 0),
        (&format!("id={}", &first[..6]), 1),
    ] {
        let listed = api(&gateway, &format!("/api/v1/deliveries?{query}")).await;
        assert_eq!(ids(&listed).len(), count, "{query}: {listed}");
    }
    for (query, says) in [
        ("outcome=lost", "outcome must be one of"),
        ("since=yesterday", "since is neither"),
        ("limit=0", "limit must be from 1 to 500"),
        ("limit=501", "limit must be"),
        ("cursor=x", "cursor is none of ours"),
        ("id=zz", "id must be an Idempotency-Key"),
        ("order=1", "there is no parameter order"),
    ] {
        let refused = ask(&gateway, &format!("/api/v1/deliveries?{query}"), "").await;
        assert_eq!((refused.status, &refused.json()["code"]), (400, &"bad_request".into()), "{query}");
        assert!(refused.text().contains(says), "{query}: {refused:?}");
    }
    // A page says it too, and keeps what was typed.
    let wrong = ask(&gateway, "/deliveries?since=yesterday&user_id=usr-one", "").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("since is neither") && wrong.text().contains("value=\"yesterday\""), "{wrong:?}");
}

#[tokio::test]
async fn paging_leaves_none_out_and_shows_none_twice_while_more_arrive() {
    let backend = Backend::start(|seen: &Seen| {
        let order = seen.json();
        reply_of(created(&format!("ins-{}", order["order_id"].as_str().unwrap())))
    })
    .await;
    let gateway = Gateway::over(&backend).await;
    for _ in 0..11 {
        gateway.order(&create()).await;
    }
    let all = ids(&api(&gateway, "/api/v1/deliveries?app=crm").await);
    assert_eq!(all.len(), 11);
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let listed = api(&gateway, &format!("/api/v1/deliveries?app=crm&limit=4{cursor}")).await;
        found.extend(ids(&listed));
        // Between two parts others come, and the old ones change.
        gateway.order(&create()).await;
        let Some(next) = listed["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, all);
    // The page's own links lead the same way.
    let (mut seen, mut path) = (Vec::new(), "/deliveries?app=crm&limit=4".to_owned());
    loop {
        let text = page(&gateway, &path).await;
        seen.extend(
            text.match_indices("<a href=\"/deliveries/").map(|(at, link)| text[at + link.len()..][..32].to_owned()),
        );
        let Some((_, next)) = text.split_once("rel=\"next\" href=\"") else { break };
        path = next.split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&");
        gateway.order(&create()).await;
    }
    let newer = seen.len() - all.len();
    assert_eq!(seen[newer..], all);
    assert_eq!(newer, 3, "what came before the first page");
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len());
}

fn is_decision(line: &Value, decision: &str) -> bool {
    line["message"] == "an operator decided about a delivery" && line["decision"] == decision
}

#[tokio::test]
async fn a_held_delivery_is_decided_on_the_page_with_a_name_and_a_reason() {
    let backend = breaking_once().await;
    let gateway = Setup::new(&backend).app("on_unconfirmed = \"hold\"").start().await;
    let order = create();
    assert_eq!(gateway.order(&order).await.status, 502);
    gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
    let overview = page(&gateway, "/").await;
    assert!(
        overview.contains("held: may have been executed") && overview.contains(order.value("order_id")),
        "{overview}"
    );
    let id = id_of(&gateway, &order).await;
    let text = page(&gateway, &format!("/deliveries/{id}")).await;
    for action in ["retry", "done", "failed"] {
        assert!(text.contains(&format!("href=\"/deliveries/{id}/{action}\"")), "{text}");
    }
    let form = page(&gateway, &format!("/deliveries/{id}/retry")).await;
    assert!(form.contains("name=\"by\"") && form.contains("name=\"why\""), "{form}");
    // Nothing happens without both.
    for incomplete in ["", "by=me", "why=because", "by=+&why=because"] {
        let asked = post(&gateway, &format!("/deliveries/{id}/retry"), incomplete, "").await;
        assert_eq!(asked.status, 422, "{asked:?}");
        assert!(asked.text().contains("Your name and the reason are needed"), "{asked:?}");
    }
    gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
    let form = format!("by={}&why={}", encode("王 <b>"), encode("the backend has no such order"));
    let decided = post(&gateway, &format!("/deliveries/{id}/retry"), &form, "").await;
    assert_eq!((decided.status, decided.header("location")), (303, Some(&*format!("/deliveries/{id}?decided=1"))));
    let text = page(&gateway, &format!("/deliveries/{id}?decided=1")).await;
    for part in ["Your decision is recorded", "王 &#60;b&#62;", "the backend has no such order", "open again"] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let line = gateway.line("the decision", |line| is_decision(line, "retry")).await;
    assert_eq!((&line["by"], &line["why"]), (&"王 <b>".into(), &"the backend has no such order".into()));
    assert_eq!(
        (&line["client"], &line["via"], &line["delivery"]),
        (&"127.0.0.1".into(), &"loopback".into(), &id.clone().into())
    );
    let decision = &api(&gateway, &format!("/api/v1/deliveries/{id}")).await["decision"];
    assert_eq!((&decision["what"], &decision["by"]), (&"retry".into(), &"王 <b>".into()));
    gateway.order(&order).await.assert_is(&created("ins-2"));
    // What is done stays so.
    let late = post(&gateway, &format!("/deliveries/{id}/failed"), &form, "").await;
    assert_eq!(late.status, 409);
    assert!(late.text().contains("It is done"), "{late:?}");
}

#[tokio::test]
async fn whoever_hangs_up_on_a_decision_leaves_a_trace_of_it() {
    let backend = breaking_once().await;
    let gateway = Setup::new(&backend).app("on_unconfirmed = \"hold\"").start().await;
    let order = create();
    assert_eq!(gateway.order(&order).await.status, 502);
    let path = format!("/api/v1/deliveries/{}", id_of(&gateway, &order).await);
    // Lets nothing be recorded for now.
    let holder = rusqlite::Connection::open(gateway.directory().path().join("spigate.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let body = json!({ "decision": "retry", "by": "nobody", "why": "unseen" }).to_string();
    let mut connection = Connection::open(gateway.admin).await;
    connection
        .send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .await;
    // One thread serves these connections in turn: once it has answered another, the decision is on its way.
    ask(&gateway, "/livez", "").await;
    drop(connection);
    ask(&gateway, "/livez", "").await;
    holder.execute_batch("COMMIT").unwrap();
    let line = gateway.line("the decision", |line| is_decision(line, "retry")).await;
    assert_eq!((&line["by"], &line["why"]), (&"nobody".into(), &"unseen".into()));
    assert_eq!(api(&gateway, &path).await["decision"]["by"], "nobody");
}

#[tokio::test]
async fn a_delivery_is_marked_done_or_failed_by_people_and_programs() {
    let backend = Backend::in_turn([vec![Step::Close], vec![Step::Close], vec![Step::Close]]).await;
    let gateway = Setup::new(&backend).app("on_unconfirmed = \"hold\"").start().await;
    let (done, failed, by_program) = (create(), create(), create());
    for order in [&done, &failed, &by_program] {
        assert_eq!(gateway.order(order).await.status, 502);
    }
    let path = format!("/deliveries/{}/done", id_of(&gateway, &done).await);
    let form = |reply: &str| format!("by=me&why=because&reply={}", encode(reply));
    for (reply, says) in [
        (r#"{"success":true}"#, "breaks the contract"),
        (r#"{"success":false,"message":"no"}"#, "success = false"),
        ("no json", "breaks the contract"),
    ] {
        let refused = post(&gateway, &path, &form(reply), "").await;
        assert_eq!(refused.status, 422, "{refused:?}");
        // What was typed is there for another try.
        assert!(refused.text().contains(says) && refused.text().contains("value=\"because\""), "{refused:?}");
    }
    let reply = created("ins-9").replace("开通成功", PASSWORD);
    assert_eq!(post(&gateway, &path, &form(&reply), "").await.status, 303);
    gateway.order(&done).await.assert_is(&reply);
    let path = format!("/deliveries/{}/failed", id_of(&gateway, &failed).await);
    assert_eq!(post(&gateway, &path, "by=me&why=because&message=sold+out", "").await.status, 303);
    let refused = gateway.order(&failed).await;
    assert_eq!((refused.status, &refused.json()["message"]), (200, &"sold out".into()), "{refused:?}");

    let path = format!("/api/v1/deliveries/{}", id_of(&gateway, &by_program).await);
    let send = async |body: Value| -> Reply { post(&gateway, &path, &body.to_string(), "").await };
    let wrong = [
        (json!({}), 400),
        (json!({ "decision": "retry" }), 400),
        (json!({ "decision": "retry", "by": "", "why": "x" }), 400),
        (json!({ "decision": "retry", "by": "x".repeat(101), "why": "x" }), 400),
        (json!({ "decision": "forget", "by": "me", "why": "x" }), 400),
        (json!({ "decision": "done", "by": "me", "why": "x" }), 400),
        (json!({ "decision": "done", "by": "me", "why": "x", "reply": { "success": true } }), 422),
        (json!({ "decision": "settled", "by": "me", "why": "x" }), 409),
        (json!({ "decision": "retry", "by": "me", "why": "x", "password": PASSWORD }), 400),
    ];
    for (body, status) in wrong {
        let refused = send(body.clone()).await;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
        assert!(!refused.text().contains(PASSWORD), "{refused:?}");
    }
    let body =
        json!({ "decision": "done", "by": "me", "why": "x", "reply": { "success": true, "instanceId": "ins-1.0" } });
    let decided = send(body).await;
    assert_eq!((decided.status, &decided.json()["state"]), (200, &"done".into()), "{decided:?}");
    let settled = send(json!({ "decision": "settled", "by": "me", "why": "called them" })).await;
    assert_eq!(settled.status, 200, "{settled:?}");
    assert!(api(&gateway, &path).await["answered_at"].is_string());
    let output = gateway.stop().await;
    assert_eq!(output.matches("an operator decided about a delivery").count(), 4, "{output}");
    assert!(!output.contains(PASSWORD), "{output}");
}

#[tokio::test]
async fn the_workbench_says_what_is_wrong_and_never_what_would_be_right() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).environment("SPIGATE_LOG__LEVEL", "trace").start().await;
    let order = create();
    let right = order.signature();
    let flipped = order.target_with(&order.signature_of("POST"));
    let explain = async |url: &str| {
        let body = json!({ "url": format!("https://gw.example{url}") }).to_string();
        post(&gateway, "/api/v1/workbench", &body, "").await
    };
    let accepted = explain(&order.target()).await.json();
    assert_eq!((&accepted["accepted"], &accepted["problem"]), (&true.into(), &Value::Null), "{accepted}");
    let refused = explain(&flipped).await;
    let said = refused.json();
    assert_eq!(said["accepted"], false);
    assert_eq!(said["problem"]["mistakes"], json!(["signed for POST instead of GET"]));
    let page = post(&gateway, "/workbench", &format!("url={}&app=crm", encode(&flipped)), "").await;
    assert!(page.text().contains("signed for POST instead of GET"), "{page:?}");
    for text in [refused.text(), page.text()] {
        for secret in [KEY, &right, &encode(&right), &right.replace('+', "&#43;").replace('/', "&#47;")] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    for (body, status) in [("{}", 400), ("{\"url\":\"hello\"}", 400), ("{\"url\":\"a=1\",\"app\":\"nobody\"}", 400)] {
        assert_eq!(post(&gateway, "/api/v1/workbench", body, "").await.status, status, "{body}");
    }
    // It is no page that a URL could be given to in a query.
    let output = gateway.stop().await;
    for secret in [KEY, &right, &encode(&right), "time_stamp=", order.value("user_id")] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

#[tokio::test]
async fn the_workbench_judges_by_the_contract_of_the_app() {
    let backend = Backend::confirming().await;
    let order = create().without("order_id");
    let body = json!({ "url": order.target() }).to_string();
    let lenient = Gateway::over(&backend).await;
    let strict = Setup::new(&backend).app("contract = \"strict\"").start().await;
    assert_eq!(lenient.order(&order).await.status, 200);
    strict.order(&order).await.assert_rejected(400, "field_missing");
    assert_eq!(post(&lenient, "/api/v1/workbench", &body, "").await.json()["accepted"], true);
    let said = post(&strict, "/api/v1/workbench", &body, "").await.json();
    assert_eq!(said["accepted"], false, "{said}");
    assert!(said["problem"]["message"].as_str().unwrap().contains("order_id"), "{said}");
}

#[tokio::test]
async fn programs_get_what_the_document_promises() {
    let backend = breaking_once().await;
    let gateway = Gateway::over(&backend).await;
    let document = api(&gateway, "/api/v1/openapi.json").await;
    let holds = |schema: &str, answer: &Value| {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}"), "components": document["components"] });
        let errors = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> =
            errors.iter_errors(answer).map(|error| format!("{error} at {}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:?} in {answer}");
    };
    holds("Overview", &api(&gateway, "/api/v1/overview").await);
    let (first, second) = (create(), create());
    for order in [&first, &second, &first] {
        gateway.order(order).await;
    }
    let overview = api(&gateway, "/api/v1/overview").await;
    holds("Overview", &overview);
    holds("Deliveries", &api(&gateway, "/api/v1/deliveries?limit=1").await);
    let listed = api(&gateway, "/api/v1/deliveries").await;
    holds("Deliveries", &listed);
    let id = id_of(&gateway, &first).await;
    let whole = api(&gateway, &format!("/api/v1/deliveries/{id}")).await;
    assert_eq!(whole["attempts"].as_array().unwrap().len(), 2);
    holds("WholeDelivery", &whole);
    let question = json!({ "url": first.target() });
    holds("Question", &question);
    holds("Explanation", &post(&gateway, "/api/v1/workbench", &question.to_string(), "").await.json());
    let decision = json!({ "decision": "retry", "by": "me", "why": "x" });
    holds("Decision", &decision);
    holds("Problem", &post(&gateway, &format!("/api/v1/deliveries/{id}"), &decision.to_string(), "").await.json());
    holds("Problem", &ask(&gateway, "/api/v1/deliveries/000000", "").await.json());
    holds("Problem", &ask(&gateway, "/api/v2/anything", "").await.json());
    // Every path of the document is there, and says what it is for.
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters") {
            assert!(operation["summary"].is_string(), "{method} {path}");
            let path = path.replace("{id}", &id);
            let reply =
                if method == "get" { ask(&gateway, &path, "").await } else { post(&gateway, &path, "{}", "").await };
            assert!(reply.status != 404 && reply.status != 405, "{method} {path}: {reply:?}");
        }
    }
    // It is no schema that accepts everything.
    let schema = json!({ "$ref": "#/components/schemas/Overview", "components": document["components"] });
    assert!(!jsonschema::is_valid(&schema, &json!({})));
}

#[tokio::test]
async fn while_the_journal_is_away_pages_say_so_and_nothing_else_suffers() {
    let backend = Backend::confirming().await;
    let directory = Directory::new();
    let gateway = Setup::new(&backend).journal_in(&directory).start().await;
    let order = create();
    gateway.order(&order).await;
    let id = id_of(&gateway, &order).await;
    let (file, away) = (directory.path().join("spigate.db"), directory.path().join("away"));
    std::fs::rename(&file, &away).unwrap();
    gateway.order(&create()).await.assert_rejected(503, "journal_unavailable");
    let overview = page(&gateway, "/").await;
    assert!(
        overview.contains("The journal is not available") && overview.contains("was removed or replaced"),
        "{overview}"
    );
    let state = api(&gateway, "/api/v1/overview").await;
    assert_eq!((&state["journal"]["available"], &state["traffic"]), (&false.into(), &Value::Null));
    for path in ["/api/v1/deliveries", "/api/v1/deliveries/012345"] {
        let refused = ask(&gateway, path, "").await;
        assert_eq!((refused.status, &refused.json()["code"]), (503, &"journal_unavailable".into()), "{path}");
    }
    for path in ["/deliveries", &format!("/deliveries/{id}"), "/deliveries?q=x"] {
        let refused = ask(&gateway, path, "").await;
        assert_eq!(refused.status, 503, "{path}");
        assert!(refused.text().contains("answers the platform 503"), "{refused:?}");
    }
    let refused = post(&gateway, &format!("/deliveries/{id}/settled"), "by=me&why=x", "").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    for path in ["/livez", "/metrics", "/workbench", "/assets/style.css"] {
        assert_eq!(ask(&gateway, path, "").await.status, 200, "{path}");
    }
    std::fs::rename(&away, &file).unwrap();
    gateway.wait_for_readyz(200).await;
    assert!(page(&gateway, &format!("/deliveries/{id}")).await.contains(order.value("order_id")));
    assert_eq!(api(&gateway, "/api/v1/overview").await["journal"]["available"], true);
}

#[tokio::test]
async fn language_and_theme_are_chosen_and_kept() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let text = page(&gateway, "/deliveries?app=crm").await;
    assert!(text.contains("<html lang=\"en\" data-theme=\"auto\">"), "{text}");
    assert!(text.contains("/look?lang=zh&amp;back=%2Fdeliveries%3Fapp%3Dcrm"), "{text}");
    for (query, cookie) in [("lang=zh", "spigate_lang=zh-Hans"), ("theme=dark", "spigate_theme=dark")] {
        let chosen = ask(&gateway, &format!("/look?{query}&back=%2Fdeliveries%3Fapp%3Dcrm"), "").await;
        assert_eq!((chosen.status, chosen.header("location")), (303, Some("/deliveries?app=crm")));
        assert!(chosen.header("set-cookie").unwrap().starts_with(cookie), "{chosen:?}");
    }
    let both = ask(&gateway, "/", "Cookie: spigate_lang=zh-Hans; spigate_theme=dark\r\n").await.text();
    assert!(both.contains("<html lang=\"zh-Hans\" data-theme=\"dark\">"), "{both}");
    let neither = ask(&gateway, "/", "Cookie: spigate_lang=\"><script>; spigate_theme=x\r\n").await.text();
    assert!(neither.contains("<html lang=\"en\" data-theme=\"auto\">"), "{neither}");
    let away = ask(&gateway, "/look?theme=dark&back=https://evil.example", "").await;
    assert_eq!(away.header("location"), Some("/"));
}
