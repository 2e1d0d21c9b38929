//! Traces as a collector receives them, from the real binary. A test program of its own, and only
//! with `--features otel`, so that nothing else has to be built twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "all of this is tests")]

#[path = "traces/otlp.rs"]
mod otlp;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use otlp::Span;
use support::backend::{Backend, Step, created, json, reply};
use support::gateway::{Gateway, Setup};
use support::order::{KEY, create};
use support::{unique, within_deadline};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that takes everything.
async fn collector() -> Backend {
    Backend::start(|_| reply("200 OK", "Content-Type: application/x-protobuf\r\n", "")).await
}

/// A gateway that traces for this collector, and ends at once.
fn tracing_for(backend: &Backend, collector: &Backend) -> Setup {
    let endpoint = collector.url("/otlp/");
    Setup::new(backend)
        .top("[shutdown]\ndelay = \"0s\"\n")
        .environment("SPIGATE_TELEMETRY__OTLP_ENDPOINT", &endpoint)
        // The library's own variable, in milliseconds.
        .environment("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn received(collector: &Backend) -> Vec<Span> {
    collector.requests().iter().flat_map(|request| otlp::spans(&request.body)).collect()
}

/// What the collector has once the gateway has ended, which sends the rest.
async fn in_the_end(gateway: Gateway, collector: &Backend) -> Vec<Span> {
    gateway.stop().await;
    received(collector)
}

fn the<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found = spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}

fn attribute<'s>(span: &'s Span, name: &str) -> &'s str {
    span.attributes.get(name).unwrap_or_else(|| panic!("{name} is not in {span:#?}"))
}

#[tokio::test]
async fn a_delivery_is_one_trace_from_the_platform_to_the_backend() {
    let (backend, collector) = (Backend::confirming().await, collector().await);
    let gateway = tracing_for(&backend, &collector).start().await;
    let order = create().with("user_id", "usr-personal");
    let delivered = gateway.order(&order).await;
    let request_id = delivered.request_id().to_owned();
    let spans = in_the_end(gateway, &collector).await;

    let request = the(&spans, "GET /spi");
    assert_eq!((request.kind, request.parent.as_str(), request.status), (2, "", 0), "{request:#?}");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/spi"),
        ("url.path", "/spi"),
        ("http.response.status_code", "200"),
        ("client.address", "127.0.0.1"),
        ("request_id", &request_id),
        ("spigate.app", "crm"),
        ("spigate.action", "CreateAppInstance"),
        ("spigate.outcome", "delivered"),
    ] {
        assert_eq!(attribute(request, name), value, "{name}");
    }
    let verify = the(&spans, "verify");
    assert_eq!((&verify.parent, attribute(verify, "spigate.key")), (&request.id, "k-2026"));
    let delivery = the(&spans, "delivery");
    assert_eq!(delivery.parent, request.id);
    let claim = the(&spans, "claim");
    assert_eq!((&claim.parent, attribute(claim, "spigate.decision")), (&delivery.id, "Forward"));
    let call = the(&spans, "POST");
    assert_eq!((call.kind, &call.parent), (3, &delivery.id), "{call:#?}");
    let (host, port) =
        backend.authority().split_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("server.address", &host),
        ("server.port", &port),
    ] {
        assert_eq!(attribute(call, name), value, "{name}");
    }
    assert_eq!(spans.len(), 5, "{spans:#?}");
    for span in &spans {
        assert_eq!((&span.trace, span.events), (&request.trace, 0));
        assert_eq!(span.resource["service.name"], "spigate");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
    }
    let expected = format!("00-{}-{}-01", call.trace, call.id);
    assert_eq!(backend.only_request().header("traceparent"), Some(expected.as_str()));
    assert_eq!(backend.only_request().header("tracestate"), None);

    for export in collector.requests() {
        assert_eq!((export.method.as_str(), export.target.as_str()), ("POST", "/otlp/v1/traces"));
        assert_eq!(export.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(export.header("host"), Some(collector.authority().as_str()));
        let text = export.text();
        for secret in [KEY, "usr-personal", "signature", "time_stamp", &order.signature(), "ins-1"] {
            assert!(!text.contains(secret), "{secret} in {text:?}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_why_and_is_no_error_of_the_server() {
    let backend = Backend::start(|_| reply("500 Oops", "", "")).await;
    let collector = collector().await;
    let setup = tracing_for(&backend, &collector).environment("OTEL_SERVICE_NAME", "shop-gateway");
    let gateway = setup.start().await;
    gateway.order(&create().key("wrong")).await.assert_rejected(401, "signature_invalid");
    assert_eq!(gateway.order(&create()).await.status, 502);
    gateway.order(&create().path("/nowhere")).await.assert_rejected(404, "unknown_app");
    let spans = in_the_end(gateway, &collector).await;
    let with_status = |status: &str| {
        let fits = |span: &&Span| span.kind == 2 && attribute(span, "http.response.status_code") == status;
        spans.iter().find(fits).unwrap_or_else(|| panic!("{status} in {spans:#?}"))
    };
    let refused = with_status("401");
    assert_eq!((attribute(refused, "error.type"), refused.status), ("signature_invalid", 0));
    assert!(!refused.attributes.contains_key("spigate.action"), "nothing is known of what nobody verified");
    assert_eq!(with_status("502").status, 2);
    assert_eq!(
        (with_status("404").name.as_str(), attribute(with_status("404"), "error.type")),
        ("request", "unknown_app")
    );
    let call = the(&spans, "POST");
    assert_eq!((attribute(call, "error.type"), call.status), ("status", 2));
    assert!(spans.iter().all(|span| span.resource["service.name"] == "shop-gateway"));
}

#[tokio::test]
async fn only_a_trusted_proxy_decides_on_the_trace() {
    for trusted in [true, false] {
        let (backend, collector) = (Backend::confirming().await, collector().await);
        let mut setup = tracing_for(&backend, &collector).forwarding_all();
        if trusted {
            setup = setup.environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1");
        }
        let gateway = setup.start().await;
        for flags in ["01", "00"] {
            let headers = format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: shop=1\r\n");
            let answer = gateway.get_with(&create().target(), &headers).await;
            assert_eq!(answer.status, 200);
        }
        let spans = in_the_end(gateway, &collector).await;
        let seen = backend.requests();
        let handed_on = |index: usize| {
            let parent = seen[index].header("traceparent").unwrap().to_owned();
            (parent, seen[index].header("tracestate").map(str::to_owned))
        };
        let requests = spans.iter().filter(|span| span.kind == 2).collect::<Vec<_>>();
        if trusted {
            // The second one is not wanted by whoever began it.
            assert_eq!(requests.len(), 1, "{spans:#?}");
            assert_eq!((requests[0].trace.as_str(), requests[0].parent.as_str()), (TRACE, PARENT));
            assert_eq!(requests[0].links, []);
            let call = the(&spans, "POST");
            assert_eq!(handed_on(0), (format!("00-{TRACE}-{}-01", call.id), Some("shop=1".into())));
            let (parent, state) = handed_on(1);
            assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
            assert_eq!(state.as_deref(), Some("shop=1"));
        } else {
            assert_eq!(requests.len(), 2, "{spans:#?}");
            for (index, request) in requests.iter().enumerate() {
                assert_ne!(request.trace, TRACE);
                assert_eq!(request.links, [(TRACE.to_owned(), PARENT.to_owned())]);
                let (parent, state) = handed_on(index);
                assert!(spans.iter().any(|span| parent == format!("00-{}-{}-01", span.trace, span.id)), "{parent}");
                assert_eq!(state, None);
            }
        }
    }
}

#[tokio::test]
async fn a_share_of_requests_can_be_traced() {
    let (backend, collector) = (Backend::confirming().await, collector().await);
    let none = tracing_for(&backend, &collector).environment("SPIGATE_TELEMETRY__SAMPLE_PERCENT", "0");
    let gateway = none.start().await;
    assert_eq!(gateway.order(&create()).await.status, 200);
    assert!(in_the_end(gateway, &collector).await.is_empty());
    // The backend is told so, and need not decide anew.
    assert!(backend.only_request().header("traceparent").unwrap().ends_with("-00"));
}

#[tokio::test]
async fn a_collector_that_fails_hurts_nobody_and_is_told_once() {
    let backend = Backend::start(|_| json(created(&format!("ins-{}", unique())))).await;
    let turns = [reply("503 Busy", "", ""), vec![Step::Close], reply("400 No", "", "")];
    let collector = Backend::in_turn(turns.into_iter().chain((0..50).map(|_| reply("200 OK", "", "")))).await;
    let gateway = tracing_for(&backend, &collector).start().await;
    let told = "traces cannot be delivered: they are dropped until they can";
    for count in 1..=4 {
        assert_eq!(gateway.order(&create().with("order_id", &format!("o-{count}"))).await.status, 200);
        within_deadline("an export", collector.wait_for(count)).await;
    }
    let line = gateway.line("the failure", |line| line["message"] == told).await;
    assert_eq!((&line["level"], &line["cause"]), (&"WARN".into(), &"the collector answered 503".into()));
    gateway.line("the recovery", |line| line["message"] == "traces are delivered again").await;
    let output = gateway.stop().await;
    assert_eq!(output.matches(told).count(), 1, "{output}");

    // One that is not there at all does not keep the end waiting either.
    let nobody = Backend::closed();
    let gateway = Setup::new(&backend)
        .top("[shutdown]\ndelay = \"0s\"\n")
        .environment("SPIGATE_TELEMETRY__OTLP_ENDPOINT", &nobody.url("/"))
        .start()
        .await;
    assert_eq!(gateway.order(&create().with("order_id", "o-5")).await.status, 200);
    assert!(gateway.stop().await.contains("\"stopped\""));
}

#[tokio::test]
async fn without_an_endpoint_there_are_no_traces_and_the_platform_s_is_passed_on() {
    let backend = Backend::start(|_| json(support::backend::CREATED)).await;
    let gateway = Gateway::over(&backend).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    gateway.get_with(&create().target(), &format!("traceparent: {parent}\r\n")).await;
    assert_eq!(backend.only_request().header("traceparent"), Some(parent.as_str()));
}
