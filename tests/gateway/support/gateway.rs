//! The gateway as a process of its own, with a configuration made for one test.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::backend::Backend;
use super::client::{self, Reply};
use super::order::{KEY, Order};
use super::{Directory, within_deadline};

/// A backend's times above every deadline of the tests.
const UNHURRIED: &str = "answer_within = \"100s\"\nconnect_timeout = \"100s\"\ntimeout = \"100s\"\n";

/// Between two looks at a gateway that is to change.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// A configuration in pieces; what a test does not set has defaults that suit tests.
pub(crate) struct Setup {
    url: String,
    top: String,
    listen: String,
    admin: String,
    dialect: String,
    app: String,
    backend: Option<String>,
    more: String,
    directory: Directory,
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Setup {
    /// One app called `crm` at `/spi` whose backend is `backend`.
    pub(crate) fn new(backend: &Backend) -> Self {
        Self::to(backend.url("/internal/spi"))
    }

    /// One app called `crm` at `/spi` whose backend has this url.
    pub(crate) fn to(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            top: String::new(),
            listen: String::new(),
            admin: "address = \"127.0.0.1:0\"\n".into(),
            dialect: "qingcloud-appcenter".into(),
            app: String::new(),
            backend: Some(String::new()),
            more: String::new(),
            directory: Directory::new(),
            wrapper: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// TOML at the top: keys first, then whole tables.
    pub(crate) fn top(mut self, toml: &str) -> Self {
        self.top.push_str(toml);
        self
    }

    /// Keys of the public listener.
    pub(crate) fn listen(mut self, toml: &str) -> Self {
        self.listen.push_str(toml);
        self.listen.push('\n');
        self
    }

    /// Keys of the admin listener.
    pub(crate) fn admin(mut self, toml: &str) -> Self {
        self.admin.push_str(toml);
        self.admin.push('\n');
        self
    }

    /// Lets the admin listener be reached from elsewhere.
    pub(crate) fn admin_off_loopback(mut self) -> Self {
        self.admin = self.admin.replace("127.0.0.1", "0.0.0.0");
        self
    }

    pub(crate) fn dialect(mut self, name: &str) -> Self {
        self.dialect = name.into();
        self
    }

    /// Keys of the app.
    pub(crate) fn app(mut self, toml: &str) -> Self {
        self.app.push_str(toml);
        self.app.push('\n');
        self
    }

    /// Forwards every copy and records nothing: for tests that are not about delivery.
    pub(crate) fn forwarding_all(self) -> Self {
        self.app("deliver_once = false")
    }

    /// The journal's URL.
    pub(crate) fn journal(self, url: &str) -> Self {
        self.top(&format!("[journal]\nurl = \"{url}\"\n"))
    }

    /// A journal that outlives the gateway: a file in this directory.
    pub(crate) fn journal_in(self, directory: &Directory) -> Self {
        self.journal(&format!("sqlite:{}/spigate.db", directory.path().display()))
    }

    /// Keys of the app's backend.
    pub(crate) fn backend(mut self, toml: &str) -> Self {
        let backend = self.backend.get_or_insert_default();
        backend.push_str(toml);
        backend.push('\n');
        self
    }

    /// A companion for an ingress on loopback.
    pub(crate) fn companion(self) -> Self {
        self.companion_for("127.0.0.1")
    }

    /// The same for an ingress elsewhere.
    pub(crate) fn companion_for(self, network: &str) -> Self {
        self.top(&format!("[companion]\naddress = \"127.0.0.1:0\"\nallow_from = [\"{network}\"]\n"))
    }

    /// The app has no backend.
    pub(crate) fn without_backend(mut self) -> Self {
        self.backend = None;
        self
    }

    /// TOML at the end: subtables of the app, further apps.
    pub(crate) fn more(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self
    }

    /// A file beside the configuration.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        self.directory.write(name, text);
        self
    }

    /// Runs the gateway by means of another program.
    pub(crate) fn through(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(ToString::to_string).collect();
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Its text.
    pub(crate) fn text(&self) -> String {
        let Self { url, top, listen, admin, dialect, app, backend, more, .. } = self;
        // Timeouts that no test is about lie above every deadline of the tests.
        let limits = if top.contains("[limits]") {
            ""
        } else {
            "[limits]\nheader_timeout = \"120s\"\nidle_timeout = \"120s\"\n"
        };
        let timed = ["answer_within", "connect_timeout", "timeout"].map(|key| format!("{key} = "));
        let times = |keys: &str| if timed.iter().any(|key| keys.contains(key)) { "" } else { UNHURRIED };
        let backend = backend.as_ref().map(|keys| format!("[apps.backend]\nurl = \"{url}\"\n{}{keys}\n", times(keys)));
        let backend = backend.unwrap_or_default();
        format!(
            "{top}\n{limits}
            [listen]\naddress = \"127.0.0.1:0\"\n{listen}
            [admin]\n{admin}
            [[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"{dialect}\"
            keys = [{{ id = \"k-2026\", value = \"{KEY}\" }}]\n{app}
            {backend}{more}"
        )
    }

    /// What `check-config` says of it.
    pub(crate) fn check(&self) -> Checked {
        check(&self.directory, &self.text())
    }

    /// Starts the gateway and waits until it is ready.
    pub(crate) async fn start(self) -> Gateway {
        self.start_logging("json").await
    }

    /// The same with another form of log lines.
    pub(crate) async fn start_logging(self, format: &str) -> Gateway {
        let mut command = self.command(format);
        let (child, output, readers) = spawn(&mut command);
        let mut gateway = Gateway {
            command,
            child,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            companion: None,
            output,
            readers: Some(readers),
            directory: self.directory,
        };
        gateway.until_ready().await;
        gateway
    }

    /// Starts the gateway, which has to end by itself.
    pub(crate) async fn refusal(&self) -> Checked {
        let (mut child, output, readers) = spawn(&mut self.command("text"));
        let mut ends = async || {
            while child.try_wait().unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        };
        let ended = tokio::time::timeout(super::DEADLINE, ends()).await;
        let _ = child.kill();
        let code = child.wait().unwrap().code();
        readers.into_iter().try_for_each(std::thread::JoinHandle::join).unwrap();
        let text = String::from_utf8_lossy(&output.borrow()).into_owned();
        assert!(ended.is_ok(), "still runs: {text}");
        Checked { code: code.unwrap_or(-1), text }
    }

    /// Where the gateway is started.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    fn command(&self, log_format: &str) -> Command {
        let config = self.directory.path().join("spigate.toml");
        // It may be there by now, and in a place that cannot be written any more.
        if std::fs::read(&config).ok() != Some(self.text().into()) {
            std::fs::write(&config, self.text()).unwrap();
        }
        let binary = env!("CARGO_BIN_EXE_spigate");
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.args(["serve", "--log-format", log_format, "--config"]).arg(config);
        without_settings(&mut command).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A process, what it writes, and the threads that read that.
type Spawned = (Child, watch::Sender<Vec<u8>>, [std::thread::JoinHandle<()>; 2]);

fn spawn(command: &mut Command) -> Spawned {
    let mut child = command.spawn().expect("the gateway");
    let output = watch::Sender::new(Vec::new());
    let readers =
        [keep(child.stdout.take().unwrap(), output.clone()), keep(child.stderr.take().unwrap(), output.clone())];
    (child, output, readers)
}

/// An address in the ready line, in either form: `"listen":"…"` or `listen=…`.
fn address(line: &str, field: &str) -> SocketAddr {
    let text = line.split_once(field).expect(field).1.trim_start_matches(['"', ':', '=']);
    text.split(['"', ' ']).next().unwrap().parse().unwrap()
}

/// The result of `spigate check-config`.
pub(crate) struct Checked {
    pub(crate) code: i32,
    /// Both streams.
    pub(crate) text: String,
}

/// Runs `check-config` on a configuration.
pub(crate) fn check(directory: &Directory, toml: &str) -> Checked {
    let config = directory.write("spigate.toml", toml);
    let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
    let command = without_settings(&mut command).arg("check-config").arg("--config").arg(config);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Checked { code: output.status.code().unwrap(), text: String::from_utf8(text).unwrap() }
}

/// Settings around the test run must not reach the gateway's configuration.
pub(crate) fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SPIGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Keeps whole lines, so that the two streams do not cut into each other.
fn keep(stream: impl Read + Send + 'static, output: watch::Sender<Vec<u8>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            output.send_modify(|output| output.append(&mut line));
        }
    })
}

/// A running gateway; killed when it goes out of scope.
pub(crate) struct Gateway {
    command: Command,
    child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    companion: Option<SocketAddr>,
    output: watch::Sender<Vec<u8>>,
    readers: Option<[std::thread::JoinHandle<()>; 2]>,
    directory: Directory,
}

impl Gateway {
    /// A configuration with nothing special.
    pub(crate) async fn over(backend: &Backend) -> Self {
        Setup::new(backend).start().await
    }

    /// One that forwards every copy and records nothing: for tests that are not about delivery.
    pub(crate) async fn forwarding_all(backend: &Backend) -> Self {
        Setup::new(backend).forwarding_all().start().await
    }

    /// Sends an order the plain way.
    pub(crate) async fn order(&self, order: &Order<'_>) -> Reply {
        self.get(&order.target()).await
    }

    /// Where an ingress asks.
    pub(crate) fn companion(&self) -> SocketAddr {
        self.companion.expect("a companion")
    }

    /// Sends an order and does not wait for its answer.
    pub(crate) fn send(&self, order: &Order<'_>) -> tokio::task::JoinHandle<Reply> {
        tokio::spawn(client::one_reply(self.listen, client::get(&order.target(), "")))
    }

    /// Waits until so many copies of orders have asked the journal what to do.
    pub(crate) async fn wait_for_claims(&self, count: u32) {
        let series = "spigate_journal_seconds_count{operation=\"claim\"}";
        self.wait_for_metric(series, |claims| claims >= f64::from(count)).await;
    }

    /// How many deliveries of an action of the app ended like this.
    pub(crate) async fn deliveries(&self, action: &str, outcome: &str) -> f64 {
        self.metric(&deliveries(action, outcome)).await
    }

    /// Waits until that many did.
    pub(crate) async fn wait_for_deliveries(&self, action: &str, outcome: &str, count: u32) {
        self.wait_for_metric(&deliveries(action, outcome), |ended| ended >= f64::from(count)).await;
    }

    /// Sends a plain GET on a connection of its own.
    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.get_with(target, "").await
    }

    /// The same with further header lines.
    pub(crate) async fn get_with(&self, target: &str, headers: &str) -> Reply {
        client::one_reply(self.listen, client::get(target, headers)).await
    }

    /// Sends bytes and reads until the gateway closes the connection.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> Vec<Reply> {
        client::until_closed(self.listen, bytes).await
    }

    /// Standard output and standard error so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.borrow()).into_owned()
    }

    async fn ready(&self) -> String {
        let find = |output: &[u8]| {
            let output = String::from_utf8_lossy(output);
            output.lines().find(|line| line.contains("ready") && line.contains("listen")).map(str::to_owned)
        };
        let mut output = self.output.subscribe();
        let found = tokio::time::timeout(super::DEADLINE, output.wait_for(|output| find(output).is_some())).await;
        let output = found.unwrap_or_else(|_| panic!("not ready:\n{}", self.output())).unwrap();
        find(&output).unwrap()
    }

    /// The first JSON line that fits, once it is there.
    pub(crate) async fn line(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let find = |output: &[u8]| {
            let lines = output.split(|&byte| byte == b'\n');
            lines.filter_map(|line| serde_json::from_slice(line).ok()).find(|line| fits(line))
        };
        let mut output = self.output.subscribe();
        let found = tokio::time::timeout(super::DEADLINE, output.wait_for(|output| find(output).is_some())).await;
        let output = found.unwrap_or_else(|_| panic!("{what}: not in\n{}", self.output())).unwrap();
        find(&output).unwrap()
    }

    /// The access line of an answer.
    pub(crate) async fn access_line(&self, reply: &Reply) -> Value {
        let id = reply.request_id();
        self.line("the access line", |line| line["message"] == "request" && line["request_id"] == id).await
    }

    /// All metrics, as a scraper sees them.
    pub(crate) async fn metrics(&self) -> String {
        let reply = client::one_reply(self.admin, client::get("/metrics", "")).await;
        assert_eq!(reply.status, 200);
        reply.text()
    }

    /// The value of one series, given as name and labels; absent is zero.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::parse);
        line.map_or(0.0, Result::unwrap)
    }

    /// Polls a series until its value is as it should be.
    pub(crate) async fn wait_for_metric(&self, series: &str, fits: impl Fn(f64) -> bool) {
        let poll = async {
            while !fits(self.metric(series).await) {
                // What it waits for needs the processor, too.
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        within_deadline(series, poll).await;
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL, in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew after its end, with the same files and one more variable if need be. Its
    /// output begins anew, too; its addresses are known when it is ready.
    pub(crate) fn spawn_again(&mut self, variable: Option<(&str, &str)>) {
        self.command.envs(variable);
        let (child, output, readers) = spawn(&mut self.command);
        (self.child, self.output, self.readers) = (child, output, Some(readers));
    }

    /// Waits until it serves.
    pub(crate) async fn until_ready(&mut self) {
        let ready = self.ready().await;
        (self.listen, self.admin) = (address(&ready, "listen"), address(&ready, "admin"));
        self.companion = ready.contains("companion").then(|| address(&ready, "companion"));
    }

    /// Kills it and starts it anew.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.spawn_again(None);
        self.until_ready().await;
    }

    /// What `/readyz` says.
    pub(crate) async fn readyz(&self) -> Reply {
        client::one_reply(self.admin, client::get("/readyz", "")).await
    }

    /// Polls `/readyz` until its status is this.
    pub(crate) async fn wait_for_readyz(&self, status: u16) -> Reply {
        let poll = async {
            loop {
                let reply = self.readyz().await;
                if reply.status == status {
                    return reply;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        within_deadline("/readyz", poll).await
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Changes the text of its configuration, in one step.
    pub(crate) fn rewrite(&self, change: impl Fn(&str) -> String) {
        let config = self.directory.path().join("spigate.toml");
        let text = change(&std::fs::read_to_string(&config).unwrap());
        std::fs::rename(self.directory.write("spigate.toml.new", &text), config).unwrap();
    }

    /// How many changed configurations ended so.
    pub(crate) async fn reloads(&self, result: &str) -> f64 {
        self.metric(&format!("spigate_config_reloads_total{{result=\"{result}\"}}")).await
    }

    /// Waits until one more than `before` did.
    pub(crate) async fn wait_for_reload(&self, result: &str, before: f64) {
        let series = format!("spigate_config_reloads_total{{result=\"{result}\"}}");
        self.wait_for_metric(&series, |reloads| reloads > before).await;
    }

    /// Changes its configuration and waits until it serves by that.
    pub(crate) async fn reconfigure(&self, change: impl Fn(&str) -> String) {
        let before = self.reloads("success").await;
        self.rewrite(change);
        self.signal("HUP");
        self.wait_for_reload("success", before).await;
    }

    /// From here on answers have time. Calls that run keep what they have.
    pub(crate) async fn hurry_no_more(&self) {
        let longer = |line: &str| match line.trim_start().split_once(" = ") {
            Some(("answer_within", _)) => "answer_within = \"50s\"".to_owned(),
            Some(("timeout", _)) => "timeout = \"60s\"".to_owned(),
            _ => line.to_owned(),
        };
        self.reconfigure(|text| text.lines().map(longer).collect::<Vec<_>>().join("\n")).await;
    }

    /// Asks it to end, and does not wait for that.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Asks it to end and returns everything that it ever wrote.
    pub(crate) async fn stop(self) -> String {
        self.terminate();
        self.ended().await
    }

    /// Waits until it has ended by itself, in good order, and returns everything that it ever wrote.
    pub(crate) async fn ended(mut self) -> String {
        let readers = self.readers.take().unwrap();
        let wait = tokio::task::spawn_blocking(move || readers.into_iter().try_for_each(std::thread::JoinHandle::join));
        // Both streams end with the process.
        within_deadline("the end of the process", wait).await.unwrap().unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.output());
        self.output()
    }

    /// Whether the process still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }
}

fn deliveries(action: &str, outcome: &str) -> String {
    format!("spigate_deliveries_total{{action=\"{action}\",app=\"crm\",outcome=\"{outcome}\"}}")
}

/// The gauge of confirmed deliveries that the platform was not told of.
pub(crate) const UNANSWERED: &str = "spigate_unanswered_deliveries{app=\"crm\"}";

/// The gauge of deliveries that may have been executed.
pub(crate) const UNCONFIRMED: &str = "spigate_unconfirmed_deliveries{app=\"crm\"}";

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
