//! The daemon with identity on, from outside: tokens made by `qvs token`, tenants kept apart.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// A directory with settings, and the daemon that runs on them.
struct Rig {
    directory: PathBuf,
    daemon: Option<(Child, String)>,
}

impl Rig {
    fn new(name: &str, settings: &str) -> Rig {
        let directory = std::env::temp_dir().join(format!("qvs-identity-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let shown = directory.to_str().unwrap();
        let text = format!("state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n{settings}").replace("DIR", shown);
        std::fs::write(directory.join("qvs.toml"), text).unwrap();
        Rig { directory, daemon: None }
    }

    fn qvs(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(args).arg("--config").arg(self.directory.join("qvs.toml")).output().unwrap()
    }

    fn token(&self, args: &[&str]) -> String {
        let output = self.qvs(&[&["token"], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Starts the daemon and waits until it serves.
    fn run(mut self) -> Rig {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(["run", "--log", "json", "--config"]).arg(self.directory.join("qvs.toml"));
        let mut daemon = command.env_remove("NOTIFY_SOCKET").stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(daemon.stderr.take().unwrap());
        let (sender, serving) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                if let Some(address) = serving_at(&line) {
                    let _ = sender.send(address);
                }
            }
        });
        let address = serving.recv_timeout(SOON).expect("the daemon serves");
        self.daemon = Some((daemon, address));
        self
    }

    /// A request to the API; answers status and body.
    fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let address = &self.daemon.as_ref().unwrap().1;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} /v1.1/tenants/{path} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\
             Accept: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn status(&self, token: &str, method: &str, path: &str, body: &Value) -> u16 {
        self.ask(token, method, path, body).0
    }

    fn tokens(&self) -> PathBuf {
        self.directory.join("state/tokens.toml")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some((mut daemon, _)) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The address of the API, if this line of the log tells it.
fn serving_at(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    (event["message"] == "serving").then(|| event["api"].as_str().unwrap().to_owned())
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "{what} never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

const TOKENS: &str = "[api]\nlisten = \"127.0.0.1:0\"\n[identity]\nmode = \"tokens\"\n";

#[test]
fn tenants_with_tokens_are_kept_apart_and_admin_sees_both() {
    let rig = Rig::new("apart", TOKENS);
    let (red, blue) = (rig.token(&["red"]), rig.token(&["blue", "--role", "reader", "--user", "bob", "--days", "3"]));
    let admin = rig.token(&["ops", "--role", "admin"]);
    assert_eq!(mode_of(&rig.tokens()), 0o600);
    let text = std::fs::read_to_string(rig.tokens()).unwrap();
    assert!([&red, &blue, &admin].iter().all(|token| !text.contains(&token[17..])), "only hashes are kept: {text}");
    let rig = rig.run();
    let network = json!({"network": {"name": "n"}});
    assert_eq!(rig.status(&red, "POST", "red/networks", &network), 202);
    assert_eq!(rig.status(&red, "POST", "blue/networks", &network), 403);
    assert_eq!(rig.status(&blue, "GET", "blue/networks", &Value::Null), 200);
    assert_eq!(rig.status(&blue, "POST", "blue/networks", &network), 403);
    assert_eq!(rig.status("", "GET", "red/networks", &Value::Null), 401);
    assert_eq!(rig.status(&red[..80], "GET", "red/networks", &Value::Null), 401);
    let (status, body) = rig.ask(&admin, "GET", "red/networks", &Value::Null);
    assert_eq!((status, body["networks"].as_array().unwrap().len()), (200, 1));
}

#[test]
fn tokens_that_are_made_at_one_moment_are_all_in_the_file() {
    let rig = Rig::new("at-once", TOKENS);
    let tenants: Vec<String> = (0..8).map(|at| format!("t{at}")).collect();
    std::thread::scope(|scope| {
        for tenant in &tenants {
            scope.spawn(|| rig.token(&[tenant]));
        }
    });
    let text = std::fs::read_to_string(rig.tokens()).unwrap();
    for tenant in &tenants {
        assert!(text.contains(&format!("\"{tenant}\"")), "{tenant}: {text}");
    }
}

#[test]
fn a_running_daemon_takes_up_new_tokens_and_lets_go_of_revoked_ones() {
    let rig = Rig::new("change", TOKENS);
    let red = rig.token(&["red"]);
    let rig = rig.run();
    assert_eq!(rig.status(&red, "GET", "red/networks", &Value::Null), 200);
    let blue = rig.token(&["blue"]);
    until("the new token", || rig.status(&blue, "GET", "blue/networks", &Value::Null) == 200);
    assert_eq!(rig.status(&red, "GET", "red/networks", &Value::Null), 200);
    let text = std::fs::read_to_string(rig.tokens()).unwrap();
    let kept = text.split("[[token]]").find(|entry| entry.contains("\"blue\"")).unwrap();
    // Written beside it: a daemon that reads half of it has no token at all.
    let beside = rig.tokens().with_extension("new");
    std::fs::write(&beside, format!("[[token]]{kept}")).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(beside, rig.tokens()).unwrap();
    until("the end of the old token", || rig.status(&red, "GET", "red/networks", &Value::Null) == 401);
    assert_eq!(rig.status(&blue, "GET", "blue/networks", &Value::Null), 200);
}

#[test]
fn a_file_of_tokens_that_others_can_read_is_refused_by_run_token_and_check() {
    let rig = Rig::new("open", TOKENS);
    let missing = rig.qvs(&["run"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let message = String::from_utf8(missing.stderr).unwrap();
    assert!(message.contains("identity.tokens: ") && message.contains("No such file"), "{message}");
    rig.token(&["red"]);
    std::fs::set_permissions(rig.tokens(), std::fs::Permissions::from_mode(0o640)).unwrap();
    for (args, code) in [(&["run"][..], 2), (&["token", "blue"], 1)] {
        let output = rig.qvs(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains("has mode 0640"), "{message}");
    }
    let findings = String::from_utf8(rig.qvs(&["check"]).stdout).unwrap();
    assert!(findings.contains("FAIL  identity: ") && findings.contains("chmod 0600"), "{findings}");
}

#[test]
fn root_looks_after_the_tokens_of_a_daemon_of_another_user_and_of_nobody_else() {
    const DAEMON: u32 = 65_534;
    let rig = Rig::new("other", TOKENS);
    rig.token(&["red"]);
    let give =
        |path: &Path, owner: u32| std::os::unix::fs::chown(path, Some(owner), None).expect("this test needs root");
    give(&rig.directory.join("state"), DAEMON);
    give(&rig.tokens(), DAEMON);
    rig.token(&["blue"]);
    let kept = std::fs::metadata(rig.tokens()).unwrap();
    assert_eq!((kept.uid(), kept.mode() & 0o777), (DAEMON, 0o600));
    let findings = || String::from_utf8(rig.qvs(&["check"]).stdout).unwrap();
    assert!(findings().contains("ok    identity: by the tokens in"), "{}", findings());
    // A daemon of root's takes no secret that another user could change.
    let output = rig.qvs(&["run"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && message.contains("owner 65534"), "{message}");
    give(&rig.tokens(), DAEMON - 1);
    assert!(findings().contains("FAIL  identity: "), "{}", findings());
    assert_eq!(rig.qvs(&["token", "green"]).status.code(), Some(1));
}

#[test]
fn a_new_file_of_tokens_that_root_makes_is_the_daemons_users_also_in_a_directory_of_roots() {
    const DAEMON: u32 = 65_534;
    let rig = Rig::new("new", &format!("{TOKENS}tokens = \"DIR/tokens.toml\"\n"));
    let (state, tokens) = (rig.directory.join("state"), rig.directory.join("tokens.toml"));
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(DAEMON), None).expect("this test needs root");
    for tenant in ["red", "blue"] {
        rig.token(&[tenant]);
        let made = std::fs::metadata(&tokens).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (DAEMON, 0o600), "{tenant}");
    }
}

#[test]
fn a_tenant_plugs_what_an_operator_plugged_for_it_and_learns_nothing_of_the_rest() {
    let rig = Rig::new("claim", TOKENS);
    let (red, blue, admin) = (rig.token(&["red"]), rig.token(&["blue"]), rig.token(&["ops", "--role", "admin"]));
    let rig = rig.run();
    for (id, tenant) in
        [("red-vif", Some("red")), ("blue-vif", Some("blue")), ("anybody-s", None), ("red-two", Some("red"))]
    {
        let path = rig.directory.join(id);
        let mut args = vec!["plug", id, "--vhost-user", path.to_str().unwrap()];
        args.extend(tenant.iter().flat_map(|tenant| ["--tenant", tenant]));
        assert!(rig.qvs(&args).status.success());
    }
    let port = |token: &str, tenant: &str| {
        let networks = format!("{tenant}/networks");
        let (_, made) = rig.ask(token, "POST", &networks, &json!({"network": {"name": "n"}}));
        let ports = format!("{networks}/{}/ports", made["network"]["id"].as_str().unwrap());
        let (_, made) = rig.ask(token, "POST", &ports, &json!({"port": {"state": "ACTIVE"}}));
        let id = made["port"]["id"].as_str().unwrap().to_owned();
        (format!("{ports}/{id}/attachment"), id)
    };
    let plug = |token: &str, path: &str, id: &str| rig.ask(token, "PUT", path, &json!({"attachment": {"id": id}}));
    let ((first, first_id), (second, second_id), (foreign, _)) =
        (port(&red, "red"), port(&red, "red"), port(&blue, "blue"));
    let refused = |path: &str, port: &str, id: &str| {
        let (status, body) = plug(&red, path, id);
        let fault = &body["QuantumError"];
        assert_eq!((status, &fault["type"]), (409, &json!("AlreadyAttached")), "{id}: {body}");
        fault["detail"].as_str().unwrap().replace(id, "ID").replace(port, "PORT")
    };
    assert_eq!(plug(&blue, &foreign, "blue-vif").0, 204);
    let unknown = refused(&first, &first_id, "never-heard-of");
    assert!(unknown.ends_with("plugged into port UNKNOWN"), "{unknown}");
    assert_eq!(refused(&first, &first_id, "blue-vif"), unknown);
    assert_eq!(refused(&first, &first_id, "anybody-s"), unknown);
    assert_eq!(plug(&admin, &port(&blue, "blue").0, "red-two").0, 204);
    assert_eq!(refused(&first, &first_id, "red-two"), unknown, "its own id in another tenant's port");
    assert_eq!(plug(&red, &first, "red-vif").0, 204);
    assert!(refused(&second, &second_id, "red-vif").ends_with(&format!("port {first_id}")), "its own port is named");
    let (status, body) = plug(&red, &first, "never-heard-of");
    assert_eq!((status, &body["QuantumError"]["type"]), (409, &json!("PortInUse")), "{body}");
    assert_eq!(plug(&red, &second.replace(&second_id, "nowhere"), "never-heard-of").0, 404);
    assert_eq!(plug(&admin, &second, "anybody-s").0, 204, "admin plugs what it likes");
}
