//! The daemon with a real Keystone: two projects, an admin, forged, revoked and expired tokens, and Keystone away.
//!
//! `QVS_KEYSTONE` names the Python environment that Keystone is installed in. Its server is Python's own, which serves one
//! request after another: enough for us, who ask seldom.

use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tests::daemon::Daemon;
use tests::http::{Answer, Connection};
use tests::process::{Child, TempDir, wait_until};

/// Keystone is Python, starting up on a busy machine.
const KEYSTONE_START: Duration = Duration::from_secs(60);
/// What a busy machine may add to a wait.
const SPARE: Duration = Duration::from_secs(20);
/// The password of everybody in here.
const PASSWORD: &str = "correct horse";
/// How long a token may be trusted; revocation is in force after that.
const CACHE_S: u64 = 1;
/// How long a token holds, seconds, where nothing else is said: longer than a test.
const EXPIRATION_S: u64 = 3600;
/// How long one holds that is to expire, seconds: time enough to ask a busy Keystone for it and to use it.
const SHORT_S: u64 = 20;

const SERVER: &str = "
import ssl, sys, threading
from wsgiref.simple_server import make_server, WSGIRequestHandler
certificate, tls_port, port = sys.argv.pop(), int(sys.argv.pop()), int(sys.argv.pop())
sys.argv = ['keystone-wsgi-public', '--config-file', sys.argv[1]]
from keystone.server.wsgi import initialize_public_application
application = initialize_public_application()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
secured = make_server('127.0.0.1', tls_port, application, handler_class=WSGIRequestHandler)
secured.socket = context.wrap_socket(secured.socket, server_side=True)
threading.Thread(target=secured.serve_forever, daemon=True).start()
make_server('127.0.0.1', port, application, handler_class=WSGIRequestHandler).serve_forever()
";

/// Makes a certificate for `localhost` by what Keystone itself needs: alone, and with its key.
const CERTIFICATE: &str = "
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, 'localhost')])
now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), critical=False)
certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
open(sys.argv[1], 'wb').write(certificate)
open(sys.argv[2], 'wb').write(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
";

struct Keystone {
    python: PathBuf,
    dir: TempDir,
    address: SocketAddr,
    /// Where it speaks TLS.
    tls_address: SocketAddr,
    child: Option<Child>,
    /// How long the tokens hold that it gives out, seconds.
    expiration_s: u64,
}

impl Keystone {
    fn start() -> Keystone {
        let environment =
            std::env::var_os("QVS_KEYSTONE").expect("`cargo xtask test keystone` installs and names Keystone");
        let python = Path::new(&environment).join("bin/python");
        let [address, tls_address] =
            [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|listener| listener.local_addr().unwrap());
        let dir = TempDir::new();
        let mut keystone = Keystone { python, dir, address, tls_address, child: None, expiration_s: EXPIRATION_S };
        keystone.configure();
        let mut command = Command::new(&keystone.python);
        command.args(["-c", CERTIFICATE]).args(["ca.pem", "keystone.pem"].map(|name| keystone.dir.join(name)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(keystone.dir.join("server.py"), SERVER).unwrap();
        keystone.manage(&["db_sync"]);
        keystone.manage(&["fernet_setup", "--keystone-user", "root", "--keystone-group", "root"]);
        keystone.manage(&["credential_setup", "--keystone-user", "root", "--keystone-group", "root"]);
        let url = format!("http://{address}/v3");
        keystone.manage(&["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-public-url", &url]);
        keystone.serve();
        keystone
    }

    fn configure(&self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (log, database, fernet) = (path("keystone.log"), path("database"), path("fernet"));
        let text = format!(
            "[DEFAULT]\nlog_file = {log}\n[database]\nconnection = sqlite:///{database}\n[fernet_tokens]\n\
             key_repository = {fernet}\n[credential]\nkey_repository = {}\n[token]\nprovider = fernet\nexpiration = {}\n",
            path("credential"),
            self.expiration_s
        );
        std::fs::write(self.dir.join("keystone.conf"), text).unwrap();
    }

    /// The tokens that it gives out from now on hold this long.
    fn expire_after(&mut self, expiration_s: u64) {
        self.expiration_s = expiration_s;
        self.configure();
        self.stop();
        self.serve();
    }

    fn manage(&self, args: &[&str]) {
        let mut command = Command::new(self.python.with_file_name("keystone-manage"));
        command.arg("--config-file").arg(self.dir.join("keystone.conf")).args(args);
        let output = command.output().expect("Keystone is installed");
        assert!(output.status.success(), "keystone-manage {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn serve(&mut self) {
        let mut command = Command::new(&self.python);
        command
            .arg(self.dir.join("server.py"))
            .arg(self.dir.join("keystone.conf"))
            .args([self.address, self.tls_address].map(|address| address.port().to_string()))
            .arg(self.dir.join("keystone.pem"));
        self.child = Some(Child::spawn("keystone", &mut command, &self.dir.join("server.log")));
        wait_until("Keystone", KEYSTONE_START, || TcpStream::connect(self.address).is_ok());
    }

    fn stop(&mut self) {
        self.child.take().expect("it runs").kill();
    }

    fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut connection = Connection::open(self.address).expect("Keystone listens");
        let request = format!(
            "{method} /v3{path} HTTP/1.1\r\nHost: {}\r\nX-Auth-Token: {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.send(request.as_bytes()).expect("Keystone reads");
        connection.answer().expect("Keystone answers")
    }

    fn token(&self, user: &str, project: &str) -> String {
        let user = json!({"name": user, "domain": {"id": "default"}, "password": PASSWORD});
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let answer = self.ask("", "POST", "/auth/tokens", &json!({"auth": {"identity": identity, "scope": scope}}));
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let header = answer.headers.iter().find(|line| line.to_ascii_lowercase().starts_with("x-subject-token:"));
        header.expect("a token").split_once(':').expect("a header").1.trim().to_owned()
    }

    /// Makes something; answers its id.
    fn make(&self, admin: &str, path: &str, kind: &str, body: &Value) -> String {
        let answer = self.ask(admin, "POST", path, &json!({ kind: body }));
        assert_eq!(answer.status, 201, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()[kind]["id"].as_str().expect("an id").to_owned()
    }

    /// A project with a user of the same name in it; answers the project's id.
    fn project(&self, admin: &str, name: &str, role: &str) -> String {
        let project = self.make(admin, "/projects", "project", &json!({"name": name, "domain_id": "default"}));
        let user = json!({"name": name, "domain_id": "default", "password": PASSWORD});
        let user = self.make(admin, "/users", "user", &user);
        let roles = self.ask(admin, "GET", &format!("/roles?name={role}"), &Value::Null).json();
        let role = roles["roles"][0]["id"].as_str().expect("the role is there").to_owned();
        let grant = format!("/projects/{project}/users/{user}/roles/{role}");
        assert_eq!(self.ask(admin, "PUT", &grant, &Value::Null).status, 204);
        project
    }
}

/// A request to the switch's API.
fn ask(daemon: &Daemon, token: &str, method: &str, tenant: &str, body: &str) -> Answer {
    let mut connection = Connection::open(daemon.api()).expect("the daemon listens");
    let request = format!(
        "{method} /v1.1/tenants/{tenant}/networks HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {token}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    connection.send(request.as_bytes()).expect("the daemon reads");
    connection.answer().expect("the daemon answers")
}

fn header(answer: &Answer, name: &str) -> bool {
    answer.headers.iter().any(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))
}

/// Keystone with the service user `qvs`, and the settings that lead to it.
fn with_service_user() -> (Keystone, String, String) {
    let keystone = Keystone::start();
    let admin = keystone.token("admin", "admin");
    keystone.project(&admin, "qvs", "service");
    let password = keystone.dir.join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let settings = format!(
        "[identity]\nmode = \"keystone\"\n[keystone]\nurl = \"http://{}\"\nuser = \"qvs\"\nproject = \"qvs\"\n\
         password_file = {password:?}\ntimeout_s = 20\ncache_s = ",
        keystone.address
    );
    (keystone, admin, settings)
}

#[test]
fn a_token_opens_until_it_expires_whether_keystone_is_there_or_not() {
    let (mut keystone, admin, settings) = with_service_user();
    let red = keystone.project(&admin, "red", "member");
    // Tokens are trusted for longer than they hold, so that only their own end can close what they open.
    let daemon = Daemon::start(&format!("{settings}{EXPIRATION_S}\n"));
    let refused = |token: &str| {
        let answer = ask(&daemon, token, "GET", &red, "");
        (answer.status, header(&answer, "www-authenticate"))
    };
    keystone.expire_after(SHORT_S);
    let begin = Instant::now();
    // The first one ends first.
    let (unused, used) = (keystone.token("red", "red"), keystone.token("red", "red"));
    let end = Duration::from_secs(SHORT_S + 1);
    assert_eq!(ask(&daemon, &used, "GET", &red, "").status, 200);
    wait_until("the token's end", end + SPARE, || ask(&daemon, &used, "GET", &red, "").status != 200);
    assert!(begin.elapsed() + Duration::from_secs(2) > Duration::from_secs(SHORT_S), "it ended early");
    assert_eq!(refused(&used), (401, true), "one that was known");
    assert_eq!(refused(&unused), (401, true), "one that is shown when it is over");

    let (kept, unknown) = (keystone.token("red", "red"), keystone.token("red", "red"));
    let begin = Instant::now();
    assert_eq!(ask(&daemon, &kept, "GET", &red, "").status, 200);
    keystone.stop();
    assert_eq!(ask(&daemon, &kept, "GET", &red, "").status, 200, "a known token holds while Keystone is away");
    wait_until("the token's end", end + SPARE, || ask(&daemon, &kept, "GET", &red, "").status != 200);
    assert!(begin.elapsed() + Duration::from_secs(2) > Duration::from_secs(SHORT_S), "it ended early");
    assert_eq!(refused(&kept), (401, true), "that it is over is known");
    let answer = ask(&daemon, &unknown, "GET", &red, "");
    assert_eq!((answer.status, header(&answer, "retry-after")), (503, true), "nobody can tell what it is now");
    keystone.serve();
    wait_until("Keystone to be asked again", KEYSTONE_START, || refused(&unknown) == (401, true));
    assert_eq!(refused(&kept), (401, true));
}

#[test]
fn keystone_is_asked_over_tls_if_the_ca_file_vouches_for_it() {
    let (keystone, admin, settings) = with_service_user();
    let red = keystone.project(&admin, "red", "member");
    let token = keystone.token("red", "red");
    let (in_clear, over_tls) =
        (format!("http://{}", keystone.address), format!("https://localhost:{}", keystone.tls_address.port()));
    let settings = format!("{}{CACHE_S}\nca = ", settings.replace(&in_clear, &over_tls));
    let daemon = Daemon::start(&format!("{settings}{:?}\n", keystone.dir.join("ca.pem")));
    let status = |token: &str, tenant: &str| ask(&daemon, token, "GET", tenant, "").status;
    assert_eq!((status(&token, &red), status(&token, "blue"), status("forged", &red)), (200, 403, 401));
    let other = keystone.dir.join("other.pem");
    let mut command = Command::new(&keystone.python);
    command.args(["-c", CERTIFICATE]).arg(&other).arg(keystone.dir.join("other-key.pem"));
    assert!(command.status().unwrap().success());
    let daemon = Daemon::start(&format!("{settings}{other:?}\n"));
    assert_eq!(ask(&daemon, &token, "GET", &red, "").status, 503, "whoever answers there, it may not be Keystone");
}

#[test]
fn keystone_says_who_may_use_which_tenant_s_urls() {
    let (mut keystone, admin, settings) = with_service_user();
    let (red, blue) = (keystone.project(&admin, "red", "member"), keystone.project(&admin, "blue", "member"));
    let daemon = Daemon::start(&format!("{settings}{CACHE_S}\n"));
    let status = |token: &str, tenant: &str| ask(&daemon, token, "GET", tenant, "").status;

    let (red_token, blue_token) = (keystone.token("red", "red"), keystone.token("blue", "blue"));
    assert_eq!(ask(&daemon, &red_token, "POST", &red, r#"{"network": {"name": "n"}}"#).status, 202);
    assert_eq!(status(&red_token, &red), 200);
    assert_eq!(status(&red_token, "red"), 403, "the project's name is not its id");
    assert_eq!(status(&red_token, &blue), 403);
    assert_eq!(status(&blue_token, &red), 403);
    assert_eq!(status(&admin, &red), 200);
    for forged in ["", "forged", &red_token[..red_token.len() - 4], &format!("{red_token}x")] {
        let answer = ask(&daemon, forged, "GET", &red, "");
        assert_eq!((answer.status, header(&answer, "www-authenticate")), (401, true), "{forged}");
    }

    let revoke = format!(
        "DELETE /v3/auth/tokens HTTP/1.1\r\nHost: k\r\nX-Auth-Token: {blue_token}\r\nX-Subject-Token: {blue_token}\r\nConnection: close\r\n\r\n"
    );
    let mut connection = Connection::open(keystone.address).expect("Keystone listens");
    connection.send(revoke.as_bytes()).expect("Keystone reads");
    assert_eq!(connection.answer().expect("Keystone answers").status, 204);
    wait_until("the end of a revoked token", Duration::from_secs(CACHE_S + 10), || status(&blue_token, &blue) == 401);

    let late = keystone.token("red", "red");
    keystone.stop();
    assert_eq!(status(&red_token, &red), 200, "a known token holds");
    let answer = ask(&daemon, &late, "GET", &red, "");
    assert_eq!((answer.status, header(&answer, "retry-after")), (503, true));
    keystone.serve();
    wait_until("Keystone to be asked again", KEYSTONE_START, || status(&late, &red) == 200);
}
