//! Tokens validated by Keystone, against a double that says what Keystone says and counts what it is asked.

use crate::rig::{Scratch, Server};
use crate::tls;
use api::identity::keystone::{Keystone, KeystoneConfig, KeystoneError};
use api::identity::{Caller, Denied, Mode, Verified, Verifier};
use api::peer::Peer;
use api::plugins::FakePlugin;
use api::server::ServerConfig;
use api::watched::Rights;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const HOUR: Duration = Duration::from_secs(3600);
/// The time of day in these tests, and an hour later as Keystone writes it.
const NOW: i64 = 1_800_000_000;
const IN_AN_HOUR: &str = "2027-01-15T09:00:00.000000Z";
const IN_A_SECOND: &str = "2027-01-15T08:00:01.000000Z";
const IN_DAYS: &str = "2027-01-18T08:00:00.000000Z";
const AN_HOUR_AGO: &str = "2027-01-15T07:00:00.000000Z";

/// How the double behaves, and what it was asked.
#[derive(Default)]
struct Script {
    /// Descriptions of the valid tokens.
    tokens: HashMap<String, Value>,
    /// Service tokens given out; the last one is valid.
    given: u32,
    /// Questions for a token.
    asked: u32,
    is_down: bool,
    is_silent: bool,
    is_babbling: bool,
    /// What it answers to questions for this token, before it looks who asks.
    odd: Option<(&'static str, &'static str)>,
    /// What it answers to questions for any token.
    to_all: Option<&'static str>,
}

struct Double {
    url: String,
    script: Arc<Mutex<Script>>,
}

impl Double {
    fn start() -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.lock().unwrap().is_silent {
                    silent.push(stream);
                } else {
                    answer(stream, &shared);
                }
            }
        });
        Double { url, script }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn give(&self, token: &str, project: Option<&str>, role: &str, expires: &str) {
        let project = project.map(|id| json!({"id": id, "name": format!("{id}-name"), "domain": {"id": "default"}}));
        let mut description = json!({"methods": ["password"], "user": {"id": "user-id", "name": "alice"},
            "roles": [{"id": "r", "name": role}], "expires_at": expires, "issued_at": AN_HOUR_AGO});
        if let Some(project) = project {
            description["project"] = project;
        }
        self.script().tokens.insert(token.to_owned(), description);
    }

    fn config(&self, scratch: &Scratch, cache: Duration) -> KeystoneConfig {
        KeystoneConfig {
            url: self.url.clone(),
            user: "qvs".into(),
            user_domain: "Default".into(),
            password_rights: Rights::OwnerOnly,
            password_file: password_file(scratch, "secret\n"),
            project: "service".into(),
            project_domain: "Default".into(),
            ca: "/nonexistent".into(),
            cache,
            timeout: Duration::from_secs(10),
        }
    }

    fn verifier(&self, scratch: &Scratch, cache: Duration) -> Keystone {
        Keystone::new(self.config(scratch, cache), || NOW).unwrap()
    }
}

fn password_file(scratch: &Scratch, password: &str) -> PathBuf {
    let path = scratch.store().with_file_name("password");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(&path);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(&path).unwrap().write_all(password.as_bytes()).unwrap();
    path
}

/// One request, answered as Keystone does.
fn answer(mut stream: TcpStream, script: &Mutex<Script>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        let found = lines.iter().filter_map(|line| line.split_once(": "));
        found.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let mut script = script.lock().unwrap();
    let (status, extra, body) = reply(&mut script, &lines[0], &header, &body);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{extra}Content-Length: {length}\r\n\r\n{body}");
}

fn reply(
    script: &mut Script,
    request: &str,
    header: &dyn Fn(&str) -> Option<String>,
    body: &[u8],
) -> (&'static str, String, Value) {
    if script.is_down {
        return ("503 Service Unavailable", String::new(), Value::Null);
    }
    if script.is_babbling {
        return ("200 OK", "X-Subject-Token: x\r\n".to_owned(), json!({"tokens": "none"}));
    }
    match request {
        "POST /v3/auth/tokens?nocatalog HTTP/1.1" => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let identity = &body["auth"]["identity"];
            assert_eq!(identity["methods"], json!(["password"]));
            assert_eq!(identity["password"]["user"]["domain"]["name"], "Default");
            assert_eq!(body["auth"]["scope"]["project"]["name"], "service");
            if identity["password"]["user"]["password"] != "secret" {
                return ("401 Unauthorized", String::new(), json!({"error": {"code": 401}}));
            }
            script.given += 1;
            ("201 Created", format!("X-Subject-Token: service-{}\r\n", script.given), json!({"token": {}}))
        }
        "GET /v3/auth/tokens?nocatalog HTTP/1.1" => {
            if let Some((token, status)) = script.odd
                && header("x-subject-token").as_deref() == Some(token)
            {
                return (status, String::new(), Value::Null);
            }
            if header("x-auth-token") != Some(format!("service-{}", script.given)) {
                return ("401 Unauthorized", String::new(), Value::Null);
            }
            script.asked += 1;
            if let Some(status) = script.to_all {
                return (status, String::new(), Value::Null);
            }
            if header("x-subject-token") == header("x-auth-token") {
                return ("200 OK", String::new(), json!({"token": {}}));
            }
            match script.tokens.get(&header("x-subject-token").unwrap()) {
                Some(token) => ("200 OK", String::new(), json!({"token": token})),
                None => ("404 Not Found", String::new(), json!({"error": {"code": 404}})),
            }
        }
        other => panic!("Keystone has no {other}"),
    }
}

/// It goes on between the questions of a test, as a server's does.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn verify(keystone: &Keystone, token: &str) -> Verified {
    RUNTIME.block_on(keystone.verify(token, Peer::LOOPBACK))
}

fn is_unavailable(verified: &Verified) -> bool {
    matches!(verified, Err(Denied::Unavailable { retry_after_s: 1.., .. }))
}

#[test]
fn a_token_is_its_project_s_by_id_and_is_asked_about_once() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, HOUR);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    for _ in 0..3 {
        let identity = verify(&keystone, "red").unwrap();
        assert_eq!((&*identity.user, identity.project.as_deref()), ("user-id", Some("red-id")));
        assert_eq!(identity.roles, ["member".into()]);
    }
    assert_eq!(double.script().given, 1);
    assert_eq!(double.script().asked, 1);
    double.give("nowhere", None, "admin", IN_AN_HOUR);
    assert_eq!(verify(&keystone, "nowhere").unwrap().project, None);
}

#[test]
fn forged_and_expired_tokens_are_nobody_s_and_asked_about_once() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, HOUR);
    double.give("old", Some("red-id"), "member", AN_HOUR_AGO);
    for token in ["forged", "old"] {
        assert_eq!(verify(&keystone, token), Err(Denied::Invalid), "{token}");
        assert_eq!(verify(&keystone, token), Err(Denied::Invalid), "{token}");
    }
    assert_eq!(double.script().asked, 2);
}

#[test]
fn a_revoked_token_is_nobody_s_once_it_is_asked_about_again() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, Duration::ZERO);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    assert!(verify(&keystone, "red").is_ok());
    double.script().tokens.clear();
    assert_eq!(verify(&keystone, "red"), Err(Denied::Invalid));
}

#[test]
fn a_service_token_that_keystone_no_longer_takes_is_got_anew() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, HOUR);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    double.give("blue", Some("blue-id"), "member", IN_AN_HOUR);
    assert!(verify(&keystone, "red").is_ok());
    double.script().given = 7;
    assert!(verify(&keystone, "blue").is_ok());
    assert_eq!(double.script().given, 8);
}

#[test]
fn while_keystone_is_away_known_tokens_hold_and_others_are_told_to_come_again() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, Duration::ZERO);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    assert!(verify(&keystone, "red").is_ok());
    double.script().is_down = true;
    assert!(verify(&keystone, "red").is_ok());
    let verified = verify(&keystone, "blue");
    assert!(is_unavailable(&verified), "{verified:?}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = KeystoneConfig { url: format!("http://{gone}/v3"), ..double.config(&scratch, HOUR) };
    let verified = verify(&Keystone::new(config, || NOW).unwrap(), "red");
    assert!(is_unavailable(&verified), "{verified:?}");
}

#[test]
fn a_token_that_ends_while_keystone_is_away_is_nobody_s_and_one_of_many_days_holds() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, HOUR);
    double.give("short", Some("red-id"), "member", IN_A_SECOND);
    double.give("long", Some("red-id"), "member", IN_DAYS);
    assert!(verify(&keystone, "short").is_ok() && verify(&keystone, "long").is_ok());
    double.script().is_down = true;
    let begin = Instant::now();
    while verify(&keystone, "short").is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never ends");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(verify(&keystone, "short"), Err(Denied::Invalid), "nobody need say so");
    assert!(verify(&keystone, "long").is_ok());
    assert!(is_unavailable(&verify(&keystone, "unknown")));
}

#[test]
fn what_keystone_says_to_one_token_is_no_verdict_on_others() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, Duration::ZERO);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    double.give("blue", Some("blue-id"), "member", IN_AN_HOUR);
    assert!(verify(&keystone, "red").is_ok());
    for status in ["403 Forbidden", "418 I'm a teapot", "500 Internal Server Error", "502 Bad Gateway", "301 Moved"] {
        for odd in ["strange", "red"] {
            double.script().odd = Some((odd, status));
            let verified = verify(&keystone, odd);
            assert!(is_unavailable(&verified), "{status}: {odd} is neither denied nor held good: {verified:?}");
            double.script().odd = Some(("strange", status));
            assert!(verify(&keystone, "blue").is_ok(), "{status}");
        }
    }
    double.script().odd = None;
    assert!(verify(&keystone, "red").is_ok());
    let lengths = ["413 Content Too Large", "414 URI Too Long", "431 Request Header Fields Too Large"];
    for (status, token) in std::iter::zip(lengths, ["long-1", "long-2", "long-3"]) {
        double.script().odd = Some((token, status));
        assert_eq!(verify(&keystone, token), Err(Denied::Invalid), "{status}");
        assert!(verify(&keystone, "blue").is_ok(), "{status}");
    }
}

#[test]
fn a_stranger_s_token_without_a_verdict_tells_nothing_of_keystone_when_our_own_has_ended() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, Duration::ZERO);
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    assert!(verify(&keystone, "red").is_ok());
    double.script().given = 7;
    double.script().tokens.clear();
    double.script().odd = Some(("strange", "500 Internal Server Error"));
    let verified = verify(&keystone, "strange");
    assert!(is_unavailable(&verified), "{verified:?}");
    assert_eq!(verify(&keystone, "red"), Err(Denied::Invalid), "it was revoked, and Keystone says so");
    assert_eq!(double.script().given, 8, "ours was got anew");
}

#[test]
fn roles_in_a_domain_open_nothing_and_roles_outside_the_admin_project_open_that_project_only() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let keystone = double.verifier(&scratch, HOUR);
    for token in ["domain", "system", "not-admin", "is-admin", "unsaid"] {
        let project = ["not-admin", "is-admin", "unsaid"].contains(&token).then_some("red-id");
        double.give(token, project, "admin", IN_AN_HOUR);
        let mut script = double.script();
        let description = script.tokens.get_mut(token).unwrap();
        match token {
            "domain" => description["domain"] = json!({"id": "default", "name": "Default"}),
            "system" => description["system"] = json!({"all": true}),
            "not-admin" => description["is_admin_project"] = json!(false),
            "is-admin" => description["is_admin_project"] = json!(true),
            _ => {}
        }
    }
    for (token, opens_own, opens_all) in [
        ("domain", false, false),
        ("system", true, true),
        ("not-admin", true, false),
        ("is-admin", true, true),
        ("unsaid", true, true),
    ] {
        let caller = Caller::Known { identity: verify(&keystone, token).unwrap(), policy: Arc::default() };
        assert_eq!((caller.may_enter("red-id"), caller.may_enter("blue-id")), (opens_own, opens_all), "{token}");
    }
}

#[test]
fn a_keystone_that_says_nothing_is_waited_for_once_and_not_by_everybody() {
    let (double, scratch) = (Double::start(), Scratch::new());
    double.script().is_silent = true;
    let config = KeystoneConfig { timeout: Duration::from_millis(300), ..double.config(&scratch, HOUR) };
    let keystone = Keystone::new(config, || NOW).unwrap();
    assert!(is_unavailable(&verify(&keystone, "red")));
    double.script().is_silent = false;
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    assert!(is_unavailable(&verify(&keystone, "red")), "it is left in peace for a moment");
    assert_eq!(double.script().asked, 0);
    let asks = || {
        std::thread::sleep(Duration::from_millis(100));
        verify(&keystone, "red").is_ok()
    };
    assert!((0..100).any(|_| asks()), "it is asked again");
}

#[test]
fn many_with_known_tokens_are_let_in_at_once_while_keystone_hangs_and_a_revocation_counts_once_it_answers() {
    const WAIT: Duration = Duration::from_secs(3);
    let (double, scratch) = (Double::start(), Scratch::new());
    let config = KeystoneConfig { timeout: WAIT, ..double.config(&scratch, Duration::ZERO) };
    let keystone = Keystone::new(config, || NOW).unwrap();
    let tokens: Vec<String> = (0..200).map(|number| format!("red-{number}")).collect();
    for token in &tokens {
        double.give(token, Some("red-id"), "member", IN_AN_HOUR);
        assert!(verify(&keystone, token).is_ok());
    }
    double.script().is_silent = true;
    assert!(verify(&keystone, &tokens[0]).is_ok(), "it is waited for once");
    for pause in [Duration::ZERO, Duration::from_millis(2100)] {
        std::thread::sleep(pause);
        let begin = Instant::now();
        RUNTIME.block_on(tokio::task::unconstrained(async {
            let mut all: Vec<_> = tokens.iter().map(|token| keystone.verify(token, Peer::LOOPBACK)).collect();
            for (at, one) in all.iter_mut().enumerate() {
                // All have begun before the first is waited for.
                let polled = std::future::poll_fn(|context| std::task::Poll::Ready(one.as_mut().poll(context))).await;
                let std::task::Poll::Ready(outcome) = polled else { panic!("{at} waits after {pause:?}") };
                assert!(outcome.is_ok(), "{at} after {pause:?}: {outcome:?}");
            }
        }));
        assert!(begin.elapsed() < WAIT / 2, "{:?}", begin.elapsed());
    }
    assert!(is_unavailable(&verify(&keystone, "unknown")));
    double.script().is_silent = false;
    double.script().tokens.clear();
    let begin = Instant::now();
    while verify(&keystone, &tokens[1]).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "a revoked token is held good");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(verify(&keystone, &tokens[2]), Err(Denied::Invalid));
}

#[test]
fn where_keystone_gives_no_verdict_on_our_own_token_either_known_tokens_hold() {
    for status in ["403 Forbidden", "429 Too Many Requests", "302 Found", "500 Internal Server Error"] {
        let (double, scratch) = (Double::start(), Scratch::new());
        let keystone = double.verifier(&scratch, Duration::ZERO);
        double.give("red", Some("red-id"), "member", IN_AN_HOUR);
        assert!(verify(&keystone, "red").is_ok());
        double.script().to_all = Some(status);
        assert!(verify(&keystone, "red").is_ok(), "{status}");
        let verified = verify(&keystone, "unknown");
        assert!(is_unavailable(&verified), "{status}: {verified:?}");
    }
}

#[test]
fn a_refused_service_user_and_nonsense_are_no_verdict_on_a_token() {
    let (double, scratch) = (Double::start(), Scratch::new());
    let mut config = double.config(&scratch, HOUR);
    config.password_file = password_file(&scratch, "wrong");
    let verified = verify(&Keystone::new(config.clone(), || NOW).unwrap(), "red");
    assert!(is_unavailable(&verified), "{verified:?}");
    double.script().is_babbling = true;
    let verified = verify(&Keystone::new(config.clone(), || NOW).unwrap(), "red");
    assert!(is_unavailable(&verified), "{verified:?}");
    config.password_file = Path::new("/nonexistent").to_owned();
    assert!(matches!(Keystone::new(config, || NOW), Err(KeystoneError::Password(_))));
}

#[test]
fn the_server_lets_in_whom_keystone_knows_and_names_keystone_to_others() {
    let (double, scratch) = (Double::start(), Scratch::new());
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    double.give("admin", Some("ops-id"), "admin", IN_AN_HOUR);
    let identity = Mode::Tokens { verifier: Arc::new(double.verifier(&scratch, HOUR)), policy: Arc::default() };
    let config = ServerConfig { identity, ..ServerConfig::default() };
    let server = Server::over(Arc::new(FakePlugin::new()), config, scratch);
    let ask = |token: &str, tenant: &str| {
        let token = format!("X-Auth-Token: {token}");
        server.ask_with("GET", &format!("/v1.1/tenants/{tenant}/networks"), &[&token], None)
    };
    assert_eq!(ask("red", "red-id").status, 200);
    assert_eq!(ask("red", "red-id-name").status, 403, "the name of a project is not its id");
    assert_eq!(ask("admin", "red-id").status, 200);
    let refused = ask("forged", "red-id");
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some(format!("Keystone uri=\"{}\"", double.url).as_str()));
}

#[test]
fn over_tls_keystone_says_who_is_let_in_as_it_does_in_clear() {
    let (double, scratch) = (Double::start(), Scratch::new());
    double.give("red", Some("red-id"), "member", IN_AN_HOUR);
    let identity = Mode::Tokens { verifier: Arc::new(double.verifier(&scratch, HOUR)), policy: Arc::default() };
    let files = tls::Files::new();
    let trusted = files.renew();
    let config = ServerConfig { identity, tls: files.tls(), ..ServerConfig::default() };
    let server = Server::over(Arc::new(FakePlugin::new()), config, scratch);
    for (token, tenant, status) in [("red", "red-id", 200), ("red", "blue-id", 403), ("forged", "red-id", 401)] {
        let request = format!(
            "GET /v1.1/tenants/{tenant}/networks HTTP/1.1\r\nHost: cloud.example\r\nX-Auth-Token: {token}\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(tls::ask(&server, &trusted, &request).unwrap().status, status, "{token}");
    }
}
