//! The daemon with a certificate, from outside: the commands over https, renewals, and files that are refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything may take that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// A directory with settings, certificate and key, and the daemon that runs on them.
struct Rig {
    directory: PathBuf,
    daemon: Option<Child>,
    address: String,
    log: Option<Receiver<Value>>,
}

impl Rig {
    fn new(name: &str, settings: &str) -> Rig {
        let directory = std::env::temp_dir().join(format!("qvs-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let rig = Rig { directory, daemon: None, address: String::new(), log: None };
        let shown = rig.directory.to_str().unwrap();
        let text = format!("state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n{settings}").replace("DIR", shown);
        std::fs::write(rig.path("qvs.toml"), text).unwrap();
        rig.renew();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts a new certificate and its key in place, each by a rename, as those who renew them do.
    fn renew(&self) {
        self.renew_as(IsCa::NoCa);
    }

    fn renew_as(&self, is_ca: IsCa) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).unwrap();
        for (name, mode, text) in [("api.pem", 0o644, certificate.pem()), ("api.key", 0o600, key.serialize_pem())] {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(mode).open(self.path("new")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
        }
    }

    fn qvs(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(args).arg("--config").arg(self.path("qvs.toml")).output().unwrap()
    }

    /// A tenant's command, over https, by the certificate that lies there now.
    fn tenant(&self, args: &[&str], token: &str) -> Output {
        let port = self.address().rsplit_once(':').unwrap().1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(args).env("QVS_URL", format!("https://localhost:{port}")).env("QVS_CACERT", self.path("api.pem"));
        command.env("QVS_TENANT", "red").env("QVS_TOKEN", token).output().unwrap()
    }

    fn must(&self, args: &[&str], token: &str) -> String {
        let output = self.tenant(args, token);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn run(self) -> Rig {
        self.run_and_say("the MAC table has its memory")
    }

    /// Starts the daemon, which says this before it serves.
    fn run_and_say(mut self, first: &str) -> Rig {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(["run", "--log", "json", "--config"]).arg(self.path("qvs.toml"));
        let mut daemon = command.env_remove("NOTIFY_SOCKET").stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(daemon.stderr.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(serde_json::from_str::<Value>(&line).unwrap_or_default());
            }
        });
        self.log = Some(events);
        self.daemon = Some(daemon);
        self.said(first);
        self.address = self.said("serving")["api"].as_str().unwrap().to_owned();
        self
    }

    /// The next line of the log with this in its message or its error.
    fn said(&self, word: &str) -> Value {
        let begin = Instant::now();
        loop {
            let left = SOON.checked_sub(begin.elapsed()).unwrap_or_default();
            let event = self.log.as_ref().unwrap().recv_timeout(left).unwrap_or_else(|_| panic!("{word:?} never came"));
            if ["message", "error"].iter().any(|key| event[key].as_str().is_some_and(|text| text.contains(word))) {
                return event;
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const TLS: &str = "[api]\nlisten = \"127.0.0.1:0\"\ncertificate = \"DIR/api.pem\"\nkey = \"DIR/api.key\"\n";

#[test]
fn a_tenant_s_commands_work_over_https_with_a_token() {
    let rig = Rig::new("commands", &format!("{TLS}[identity]\nmode = \"tokens\"\n"));
    let token = String::from_utf8(rig.qvs(&["token", "red"]).stdout).unwrap().trim_end().to_owned();
    let rig = rig.run();
    assert!(
        rig.qvs(&["plug", "vif", "--tenant", "red", "--vhost-user", rig.path("vif").to_str().unwrap()])
            .status
            .success()
    );
    let network = rig.must(&["net", "create", "blue"], &token);
    let port = rig.must(&["port", "create", "blue"], &token);
    rig.must(&["attach", "plug", "blue", &port, "vif"], &token);
    assert!(rig.must(&["net", "list"], &token).contains(&network));
    assert!(rig.must(&["port", "list", "blue"], &token).contains("vif"));
    let refused = rig.tenant(&["net", "list"], "wrong");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not take the token"), "{refused:?}");

    let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
    command.args(["net", "list"]).env("QVS_TENANT", "red").env("QVS_TOKEN", &token);
    let plain = command.env("QVS_URL", format!("http://{}", rig.address())).output().unwrap();
    assert_eq!(plain.status.code(), Some(1), "a token is not told in clear: {plain:?}");
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_logged_and_the_old_one_kept() {
    let rig = Rig::new("renew", TLS).run();
    rig.must(&["net", "create", "blue"], "");
    let first = std::fs::read(rig.path("api.pem")).unwrap();
    rig.renew();
    let begin = Instant::now();
    // The command trusts the new certificate alone.
    while !rig.tenant(&["net", "list"], "").status.success() {
        assert!(begin.elapsed() < SOON, "the new certificate never came");
        std::thread::sleep(Duration::from_millis(50));
    }
    let event = rig.said("what changed is in force");
    assert!(event["path"].as_str().unwrap().ends_with("api.key"), "{event}");
    let second = std::fs::read(rig.path("api.pem")).unwrap();
    std::fs::write(rig.path("api.pem"), &first).unwrap();
    std::thread::sleep(api_pause());
    assert_eq!(rig.tenant(&["net", "list"], "").status.code(), Some(1), "the first certificate is not served again");
    let event = rig.said("it is not the key of the first certificate in");
    assert_eq!(event["level"], "ERROR", "{event}");
    std::fs::write(rig.path("api.pem"), &second).unwrap();
    rig.must(&["net", "list"], "");
}

#[test]
fn a_certificate_that_vouches_for_others_is_told_at_the_start_and_by_who_refuses_it() {
    let rig = Rig::new("authority", TLS);
    rig.renew_as(IsCa::Ca(BasicConstraints::Unconstrained));
    let rig = rig.run_and_say("CA:TRUE");
    let refused = rig.tenant(&["net", "list"], "");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("basicConstraints=critical,CA:FALSE"), "{said}");
    let findings = String::from_utf8(rig.qvs(&["check"]).stdout).unwrap();
    assert!(findings.lines().any(|line| line.contains("TLS: ") && line.contains("CA:TRUE")), "{findings}");
}

/// Longer than a change may go unnoticed.
fn api_pause() -> Duration {
    Duration::from_millis(1100)
}

#[test]
fn files_that_cannot_be_used_end_the_daemon_and_the_check_with_file_and_reason() {
    let rig = Rig::new("refused", TLS);
    let refused = |setting: &str, why: &str| {
        let output = rig.qvs(&["run"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(&format!("qvs.toml:{setting}: ")) && message.contains(why), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let check = rig.qvs(&["check"]);
        let findings = String::from_utf8(check.stdout).unwrap();
        assert!(findings.contains("FAIL  TLS: ") && findings.contains(why), "{findings}");
        assert_eq!(check.status.code(), Some(1));
    };
    let certificate = std::fs::read(rig.path("api.pem")).unwrap();
    rig.renew();
    let fitting = std::fs::read(rig.path("api.pem")).unwrap();
    std::fs::write(rig.path("api.pem"), certificate).unwrap();
    refused("6: api.key", "api.key: it is not the key of the first certificate in");
    std::fs::write(rig.path("api.pem"), "nothing").unwrap();
    refused("5: api.certificate", "api.pem: it has no certificate");
    std::fs::write(rig.path("api.pem"), fitting).unwrap();
    std::fs::set_permissions(rig.path("api.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    refused("6: api.key", "has mode 0640");
    std::fs::remove_file(rig.path("api.key")).unwrap();
    refused("6: api.key", "No such file");
    assert!(!rig.path("state").exists(), "nothing was made before the settings were checked");
}

#[test]
fn beyond_loopback_the_daemon_wants_tls_and_identity_unless_told_otherwise() {
    let clear = "[api]\nlisten = \"0.0.0.0:0\"\n";
    let tls = TLS.replace("127.0.0.1", "0.0.0.0");
    for (name, settings, why) in [
        ("clear", clear.to_owned(), "without TLS"),
        ("clear-tokens", format!("{clear}[identity]\nmode = \"tokens\"\n"), "without TLS"),
        (
            "clear-keystone",
            format!("{clear}[identity]\nmode = \"keystone\"\n[keystone]\nurl = \"http://k\"\n"),
            "without TLS",
        ),
        ("everybody", tls.clone(), "without identity everybody"),
    ] {
        let output = Rig::new(name, &settings).qvs(&["run"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(
            message.contains(":4: api.listen: 0.0.0.0:0 is not loopback, and ") && message.contains(why),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let rig = Rig::new("both", &format!("{tls}[identity]\nmode = \"tokens\"\n"));
    let token = String::from_utf8(rig.qvs(&["token", "red"]).stdout).unwrap().trim_end().to_owned();
    rig.run().must(&["net", "list"], &token);
    let insecure = Rig::new("insecure", &format!("{clear}[identity]\ninsecure = true\n")).run();
    let address = insecure.address().replace("0.0.0.0", "127.0.0.1");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}
