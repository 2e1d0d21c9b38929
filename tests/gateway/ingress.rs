//! The files of `deploy/` for nginx, Envoy and HAProxy, run by the real programs between a client and
//! a backend: only addresses and names of files are put in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::net::TcpSocket;

use crate::ports::free_port;
use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED, Seen, Step, created, json};
use crate::support::client::{Connection, Reply, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, create, dialect, encode, market};
use crate::support::process::Process;
use crate::support::tls_client::TlsClient;
use crate::support::{Directory, has_program, within_deadline};

/// An ingress with everything around it.
struct World {
    backend: Backend,
    gateway: Gateway,
    client: TlsClient,
    address: SocketAddr,
    process: Process,
    directory: Directory,
}

/// Where clients come from.
const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)), 0);

/// Where the files of `deploy/` say that something is, and where it is in this test.
type Places<'p> = &'p [(&'p str, String)];

/// A file of `deploy/`, with its places in.
fn configuration(file: &str, places: Places<'_>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (there, here) in places {
        assert!(text.contains(there), "{there} is not in {file}");
        text = text.replace(there, here);
    }
    text
}

/// Envoy of the tools that `scripts/check-deploy` installs, or of the system.
fn envoy() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/lib");
    let versions = std::fs::read_dir(tools).into_iter().flatten().filter_map(Result::ok);
    let mut found = versions.map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    let installed = found.find(|path| path.is_file());
    installed.or_else(|| has_program("envoy").then(|| "envoy".into()))
}

/// The authority whose certificate an ingress shows, and where the certificate lies.
fn certified(directory: &Directory) -> (TlsClient, [String; 3]) {
    let authority = Authority::new();
    let certified = authority.certify(&["localhost"]);
    let both = format!("{}{}", certified.certificate, certified.key);
    let files = [("tls/spi.crt", &certified.certificate), ("tls/spi.key", &certified.key), ("tls/spi.pem", &both)];
    let paths = files.map(|(name, text)| directory.write(name, text).display().to_string());
    (TlsClient::trusting(&authority), paths)
}

impl World {
    /// nginx with this file, in front of a gateway that listens as that file has it.
    async fn nginx(file: &str, backend: Backend, setup: impl FnOnce(&Backend) -> Setup) -> Option<Self> {
        if !has_program("nginx") {
            return None;
        }
        let directory = Directory::new();
        let gateway = setup(&backend).start().await;
        let (client, [certificate, key, _]) = certified(&directory);
        let address = free_port();
        let common = [
            ("listen 443 ssl", format!("listen {address} ssl")),
            ("/etc/nginx/tls/spi.crt", certificate),
            ("/etc/nginx/tls/spi.key", key),
            ("/var/log/nginx/", format!("{}/", directory.path().display())),
        ];
        let upstreams = if file.contains("companion") {
            vec![("127.0.0.1:8081", gateway.companion().to_string()), ("127.0.0.1:9000", backend.authority())]
        } else {
            vec![("127.0.0.1:8080", gateway.listen.to_string())]
        };
        // The places in comments are not looked at by anybody.
        let text = configuration(file, &[&common[..], &upstreams].concat());
        let here = directory.path().display();
        let main = format!(
            "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log {here}/main.log info;\nevents {{}}\nhttp {{\n\
             client_body_temp_path {here}/body;\nproxy_temp_path {here}/proxy;\nfastcgi_temp_path {here}/fastcgi;\n\
             uwsgi_temp_path {here}/uwsgi;\nscgi_temp_path {here}/scgi;\n{text}\n}}\n"
        );
        let config = directory.write("nginx.conf", &main);
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).arg("-c").arg(config);
        let process = Process::start(&mut command, address, directory.path().join("output.log")).await;
        Some(Self { backend, gateway, client, address, process, directory })
    }

    /// nginx that asks a companion.
    async fn asking_nginx(setup: Setup) -> Option<Self> {
        Self::nginx("nginx/spigate-companion.conf", Backend::confirming().await, |_| setup).await
    }

    /// Envoy that asks a companion.
    async fn asking_envoy(setup: Setup) -> Option<Self> {
        let program = envoy()?;
        let (backend, directory) = (Backend::confirming().await, Directory::new());
        let gateway = setup.start().await;
        let (client, [certificate, key, _]) = certified(&directory);
        let (address, admin) = (free_port(), free_port());
        let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
        let text = configuration(
            "envoy/envoy.yaml",
            &[
                ("0.0.0.0, port_value: 443", format!("127.0.0.1, port_value: {}", address.port())),
                ("port_value: 9901", format!("port_value: {}", admin.port())),
                ("port_value: 8081", format!("port_value: {}", gateway.companion().port())),
                ("port_value: 9000", format!("port_value: {}", port(&backend.authority()))),
                ("/etc/envoy/tls/spi.crt", certificate),
                ("/etc/envoy/tls/spi.key", key),
            ],
        );
        let config = directory.write("envoy.yaml", &text);
        let mut command = Command::new(program);
        // It would share memory with another one of the same number.
        command.args(["--disable-hot-restart", "--concurrency", "1", "-c"]).arg(config);
        let process = Process::start(&mut command, address, directory.path().join("output.log")).await;
        Some(Self { backend, gateway, client, address, process, directory })
    }

    /// Both that ask.
    async fn asking(setup: impl Fn() -> Setup) -> Vec<Self> {
        [Self::asking_nginx(setup()).await, Self::asking_envoy(setup()).await].into_iter().flatten().collect()
    }

    /// A connection from another address than the ingress's own.
    async fn connection(&self) -> Connection {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(CLIENT).unwrap();
        let stream = within_deadline("connecting", socket.connect(self.address)).await.unwrap();
        Connection::over(self.client.handshake(stream).await.unwrap())
    }

    /// Sends bytes on a connection of its own.
    async fn send(&self, bytes: impl AsRef<[u8]>) -> Reply {
        let mut connection = self.connection().await;
        connection.send(bytes).await;
        connection.reply().await.unwrap_or_else(|| panic!("no answer: {}", self.logs()))
    }

    async fn get(&self, target: &str, headers: &str) -> Reply {
        self.send(get(target, headers)).await
    }

    /// Everything that the ingress has written.
    fn logs(&self) -> String {
        let files = std::fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let texts = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts.collect::<String>() + &self.process.output()
    }

    /// Waits until the ingress has logged requests to this path; none of its lines has a query.
    async fn assert_logs(&self, path: &str, secrets: &[String]) {
        let logged = async {
            while !self.logs().contains(path) {
                tokio::task::yield_now().await;
            }
        };
        within_deadline("the ingress's access log", logged).await;
        let logs = self.logs();
        for secret in secrets.iter().map(String::as_str).chain(["signature=", "user_id="]) {
            assert!(!logs.contains(secret), "{secret} in {logs}");
        }
    }
}

/// A backend that makes a new instance for each order.
fn creating(seen: &Seen) -> Vec<Step> {
    json(created(seen.header("idempotency-key").unwrap_or("ins-1")))
}

/// An app without a backend, and a companion for loopback.
fn companion() -> Setup {
    Setup::to("").without_backend().companion()
}

/// What a client may try to pose with, in more spellings than a list could have.
const POSING: &str = "X-Spi-App: evil\r\nx_spi_app: evil\r\nx-spi_app: evil\r\nX.Spi.App: evil\r\nX-SPI-ACTION: evil\r\n\
    x_spi_action: evil\r\nX-Spi-Param-User-Id: evil\r\nx_spi_param_user_id: evil\r\nX-Spi-Param-Instance-Id: evil\r\n\
    x_spi_param_instance_id: evil\r\nX-Spi-Param-Made-Up: evil\r\nx_spi_made_up: evil\r\nIdempotency-Key: evil\r\n\
    idempotency_key: evil\r\nIdempotency_Key: evil\r\nx_request_id: evil\r\nX-Spi-Denial: evil\r\n\
    X-Envoy-Auth-Headers-To-Remove: x-spi-app\r\n";

#[track_caller]
fn assert_nobody_poses(seen: &Seen) {
    assert!(!seen.text().contains("evil"), "{}", seen.text());
}

/// The headers that are spigate's.
fn ours(headers: &[(String, String)]) -> Vec<(String, String)> {
    let lower = headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let mut ours: Vec<_> = lower.filter(|(name, _)| name.starts_with("x-spi-") || name == "idempotency-key").collect();
    ours.sort();
    ours
}

#[tokio::test]
async fn an_ingress_that_asks_passes_on_what_was_verified_with_our_headers() {
    for world in World::asking(companion).await {
        let text = "空间 & 100% \"größer\"; 企业版".repeat(60);
        let order = create().with("spec", &base64(&text)).with("debug", "true").and("未知", "a b");
        let reply = world.get(&order.target(), &format!("{POSING}app-signature: evil\r\n")).await;
        reply.assert_is(CREATED);
        let seen = world.backend.only_request();
        assert_nobody_poses(&seen);
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", order.target().as_str()));
        // The very headers that spigate answered with.
        let id = seen.header("x-request-id").unwrap().to_owned();
        let line = world.gateway.line("the access line", |line| line["request_id"] == id.as_str()).await;
        assert_eq!((&line["outcome"], &line["path"]), (&"allowed".into(), &"/spi".into()), "{line}");
        let bytes = format!("GET /companion/ext-authz{} HTTP/1.1\r\nHost: a\r\n\r\n", order.target());
        let said = crate::support::client::one_reply(world.gateway.companion(), bytes).await;
        assert_eq!(ours(&seen.headers), ours(&said.headers));
        assert_eq!(seen.header("x-spi-param-spec").map(decoded), Some(text));
        world.assert_logs("/spi", &[order.signature(), encode(&order.signature())]).await;
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn decoded(value: &str) -> String {
    percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned()
}

#[tokio::test]
async fn a_denial_reaches_the_platform_in_spigates_words_and_nothing_the_backend() {
    for world in World::asking(companion).await {
        let good = create();
        let mut secrets = Vec::new();
        for (status, code, order) in [
            (401, "signature_invalid", create().key("wrong")),
            (401, "timestamp_expired", create().seconds_from_now(-400)),
            (400, "unknown_action", create().with("action", "Sell")),
            (400, "field_missing", create().without("user_id")),
            (400, "malformed_request", create().and("action", "x")),
        ] {
            let reply = world.get(&order.target(), POSING).await;
            reply.assert_rejected(status, code);
            secrets.push(order.signature());
            let line = world.gateway.access_line(&reply).await;
            assert_eq!((&line["code"], &line["status"]), (&code.into(), &status.into()), "{line}");
        }
        world.get("/spi", "").await.assert_rejected(400, "original_missing");
        world.get("/spi?a=%zz", "").await.assert_rejected(400, "malformed_request");
        world.send(get(&good.target(), "").replacen("GET", "POST", 1)).await.assert_rejected(405, "method_not_allowed");
        // What other places are, only the ingress knows.
        for path in
            ["/", "//spi", "/spi/", "/other", "/companion/ext-authz/spi", "/spigate-auth", "/spigate-denial/401"]
        {
            let reply = world.get(&good.clone().path(path).target(), "").await;
            assert!([404, 401, 400].contains(&reply.status), "{path}: {reply:?}");
        }
        let reply = world.get(&good.clone().path("/%73pi").target(), "").await;
        assert_eq!(reply.status, 404, "{reply:?}");
        assert_eq!(world.backend.count(), 0);
        world.get(&good.target(), "").await.assert_is(CREATED);
        world.assert_logs("/spi", &secrets).await;
    }
}

#[tokio::test]
async fn what_a_client_says_of_the_original_does_not_win() {
    for world in World::asking(companion).await {
        let (good, evil) = (create().target(), create().key("wrong").target());
        for (name, value) in [
            ("X-Original-URI", good.clone()),
            ("x_original_uri", good.clone()),
            ("X-Original-URL", format!("http://localhost{good}")),
            ("X-Original-Method", "GET".into()),
            ("X-Forwarded-Uri", good.clone()),
            ("X-Forwarded-Host", "other.example".into()),
            ("X-Forwarded-Method", "POST".into()),
            ("X-Envoy-Original-Path", good.clone()),
            ("X-Rewrite-URL", good.clone()),
        ] {
            let header = format!("{name}: {value}\r\n");
            world.get(&evil, &header).await.assert_rejected(401, "signature_invalid");
            assert_eq!(world.backend.count(), 0, "{name}");
            // Nor does it harm whoever is in the right.
            world.get(&good, &header.replace(&good, &evil)).await.assert_is(CREATED);
            world.backend.forget();
        }
        let reply = world.send(get(&good, "X-Original-Method: GET\r\n").replacen("GET", "DELETE", 1)).await;
        reply.assert_rejected(405, "method_not_allowed");
        // An absolute target names another host than the header.
        let absolute = format!("GET http://other.example{good} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let reply = world.send(absolute).await;
        assert!(reply.status == 200 || reply.status == 400, "{reply:?}");
    }
}

#[tokio::test]
async fn the_host_that_an_ingress_routes_by_is_the_one_that_is_verified() {
    let for_a_host = || companion().app("host = \"shop.example\"");
    for world in World::asking(for_a_host).await {
        let at = |line: &str, host: &str| format!("GET {line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let target = create().target();
        world.send(at(&target, "shop.example")).await.assert_is(CREATED);
        world.send(at(&target, "other.example")).await.assert_rejected(404, "unknown_app");
        world.send(at(&format!("http://shop.example{target}"), "other.example")).await.assert_is(CREATED);
        world
            .send(at(&format!("http://other.example{target}"), "shop.example"))
            .await
            .assert_rejected(404, "unknown_app");
    }
}

#[tokio::test]
async fn the_signatures_header_survives_an_ingress_that_asks() {
    for world in World::asking(companion).await {
        let order = create();
        let header = format!("app_signature: {}\r\n", order.signature());
        world.get(&order.unsigned_target(), &header).await.assert_is(CREATED);
        world.get(&order.unsigned_target(), "").await.assert_rejected(401, "signature_missing");
        let folded = header.replace('_', "-");
        world.get(&order.unsigned_target(), &folded).await.assert_rejected(401, "signature_missing");
        world.assert_logs("/spi", &[order.signature()]).await;
    }
}

#[tokio::test]
async fn both_dialects_pass_with_every_field() {
    for world in World::asking(|| companion().dialect("qingcloud-market")).await {
        for action in ["CreateInstance", "RenewInstance", "UpgradeInstance", "DeleteInstance"] {
            let order = market(action);
            world.get(&order.target(), POSING).await.assert_is(CREATED);
            let seen = world.backend.last();
            assert_nobody_poses(&seen);
            assert_eq!(seen.header("x-spi-action"), Some(action));
            for name in order.names() {
                let header = format!("x-spi-param-{}", name.replace('_', "-"));
                assert_eq!(seen.header(&header).is_some(), name != "signature", "{header}: {}", seen.text());
            }
        }
    }
}

#[tokio::test]
async fn without_spigate_nothing_passes() {
    for mut world in World::asking(companion).await {
        world.gateway.kill();
        let order = create();
        let reply = world.get(&order.target(), "").await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(world.backend.count(), 0);
        world.assert_logs("/spi", &[order.signature(), encode(&order.signature())]).await;
    }
}

#[tokio::test]
async fn an_ingress_says_who_called_it() {
    let claims = ["X-Forwarded-For: 203.0.113.7\r\n", "Forwarded: for=203.0.113.7\r\n"];
    for world in World::asking(companion).await {
        let mut clients = Vec::new();
        for claim in [&[""], &claims[..]].concat() {
            world.get(&create().target(), claim).await.assert_is(CREATED);
            let seen = world.backend.last();
            // Envoy calls a client on loopback by an address of its own.
            let named = seen.header("x-forwarded-for").unwrap().rsplit([',', ' ']).next().unwrap().to_owned();
            let id = seen.header("x-request-id").unwrap();
            let line = world.gateway.line("the access line", |line| line["request_id"] == id).await;
            assert_eq!((&line["client"], seen.header("forwarded")), (&named.as_str().into(), None), "{line}");
            clients.push(named);
        }
        assert!(clients.iter().all(|client| *client == clients[0] && client != "203.0.113.7"), "{clients:?}");
    }
    for world in World::asking(|| companion().app("allow_from = [\"203.0.113.0/24\"]")).await {
        for claim in claims {
            world.get(&create().target(), claim).await.assert_rejected(403, "client_not_allowed");
        }
        assert_eq!(world.backend.count(), 0);
    }
}

/// A gateway that delivers, and believes a proxy on loopback.
fn delivering(backend: &Backend) -> Setup {
    Setup::new(backend).backend("send = \"headers\"").environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1")
}

/// What has to hold in front of a gateway, whatever is in front.
async fn passes_everything_on_as_it_came(world: &World) {
    let confirmed = |reply: &Reply| assert!(reply.status == 200 && reply.json()["success"] == true, "{reply:?}");
    let order = create().with("debug", "true").and("未知", "a b+%2F");
    let first = world.get(&order.target(), POSING).await;
    confirmed(&first);
    // The platform takes nothing else.
    assert_eq!(first.header("content-type"), Some("application/json"));
    let seen = world.backend.only_request();
    assert_nobody_poses(&seen);
    assert_eq!(seen.header("x-spi-app"), Some("crm"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.2"));
    // A copy is answered by spigate.
    world.get(&order.target(), "").await.assert_is(&first.text());
    assert_eq!(world.backend.count(), 1);
    let header_only = create();
    let header = format!("app_signature: {}\r\n", header_only.signature());
    confirmed(&world.get(&header_only.unsigned_target(), &header).await);
    for claim in ["X-Forwarded-For: 6.6.6.6\r\n", "Forwarded: for=6.6.6.6\r\n"] {
        let reply = world.get(&create().target(), claim).await;
        let line = world.gateway.access_line(&reply).await;
        assert_eq!((&line["client"], &line["peer"]), (&"127.0.0.2".into(), &"127.0.0.1".into()), "{line}");
    }
    let refused = create().key("wrong");
    let reply = world.get(&refused.target(), "").await;
    reply.assert_rejected(401, "signature_invalid");
    world.get("/spi?a=%zz", "").await.assert_rejected(400, "malformed_request");
    let reply = world.get(&create().path("/other").target(), "").await;
    assert_eq!(reply.status, 404);
    let signatures = [&order, &header_only, &refused].map(Order::signature);
    let encoded = signatures.iter().map(|signature| encode(signature));
    world.assert_logs("/spi", &encoded.chain(signatures.iter().cloned()).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn nginx_in_front_passes_everything_on_as_it_came() {
    let backend = Backend::start(creating).await;
    let Some(mut world) = World::nginx("nginx/spigate-proxy.conf", backend, delivering).await else { return };
    passes_everything_on_as_it_came(&world).await;
    world.get(&create().path("/%73pi").target(), "").await.assert_rejected(404, "unknown_app");
    world.gateway.kill();
    let order = create();
    assert_eq!(world.get(&order.target(), "").await.status, 502);
    world.assert_logs("\"status\":502", &[order.signature(), encode(&order.signature())]).await;
}

#[tokio::test]
async fn haproxy_in_front_passes_everything_on_and_asks_whether_spigate_is_ready() {
    if !has_program("haproxy") {
        return;
    }
    let (backend, directory) = (Backend::start(creating).await, Directory::new());
    let setup = delivering(&backend).environment("SPIGATE_LISTEN__PROXY_PROTOCOL", "true");
    let gateway = setup.top("[shutdown]\ndelay = \"600s\"\n").start().await;
    let (client, [_, _, pem]) = certified(&directory);
    let address = free_port();
    let text = configuration(
        "haproxy/haproxy.cfg",
        &[
            ("bind :443", format!("bind {address}")),
            ("/etc/haproxy/spi.pem", pem),
            ("127.0.0.1:8080", gateway.listen.to_string()),
            ("port 9090 inter 2s", format!("port {} inter 200ms", gateway.admin.port())),
        ],
    );
    let config = directory.write("haproxy.cfg", &text);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let process = Process::start(&mut command, address, directory.path().join("output.log")).await;
    let mut world = World { backend, gateway, client, address, process, directory };
    passes_everything_on_as_it_came(&world).await;
    assert_eq!(world.gateway.metric("spigate_proxy_protocol_errors_total{reason=\"malformed\"}").await, 0.0);
    // A gateway that says that it will go is not called any more, although it would still answer.
    world.gateway.terminate();
    world.gateway.wait_for_readyz(503).await;
    let left = async { while world.get(&create().target(), "").await.status != 503 {} };
    within_deadline("HAProxy to look", left).await;
    let order = create();
    assert_eq!(world.get(&order.target(), "").await.status, 503);
    world.gateway.kill();
    world.assert_logs("503", &[order.signature(), encode(&order.signature())]).await;
}

/// Files that name each header have to name all of them.
#[test]
fn every_header_of_ours_is_in_every_list() {
    let mut names =
        ["App", "Dialect", "Action", "Debug", "Key-Id", "Attempt"].map(|name| format!("X-Spi-{name}")).to_vec();
    names.push("Idempotency-Key".into());
    for dialect in ["qingcloud-appcenter", "qingcloud-market"].map(dialect) {
        let fields = dialect.fields.iter().map(|field| &field.name);
        let time = dialect.time.as_ref().map(|rule| &rule.parameter);
        for name in fields.chain(time).chain([&dialect.action_parameter]) {
            names.push(format!("X-Spi-Param-{}", name.replace('_', "-")));
        }
    }
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for (file, before, after) in
        [("nginx/spigate-companion.conf", "proxy_set_header ", " $"), ("kubernetes/ingress-nginx/ingress.yaml", "", "")]
    {
        let text = std::fs::read_to_string(deploy.join(file)).unwrap().to_lowercase();
        for name in &names {
            let expected = format!("{before}{name}{after}").to_lowercase();
            assert!(text.contains(&expected), "{file} lacks {expected}");
        }
    }
}
