//! etcd behind TLS, which asks for certificates: our client, and daemons by their settings.

use super::{SOON, config, put, run, secret};
use api::etcd::{Etcd, EtcdConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::etcd::Etcd as Server;
use tests::http::Connection;
use tests::process::wait_until;

/// How long a host that must not answer has time to do so.
const NO_ANSWER: Duration = Duration::from_secs(10);

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A server that takes only clients whose certificates `ca` vouches for, and another issuer that it does not know.
struct World {
    ca: Issuer,
    strangers: Issuer,
    server: Server,
}

/// A certificate for this host and its key.
fn pair(issuer: &Issuer) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

impl World {
    fn new() -> World {
        let issuer = || {
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ca, strangers) = (issuer(), issuer());
        let (certificate, key) = pair(&ca);
        let server = Server::start_at(Ipv4Addr::LOCALHOST.into(), "https", |dir| {
            let file = |name: &str, text: &str| {
                fs::write(dir.join(name), text).unwrap();
                dir.join(name).display().to_string()
            };
            let flag = |flag: &str, value: String| format!("--{flag}={value}");
            vec![
                flag("cert-file", file("server.pem", &certificate)),
                flag("key-file", file("server.key", &key)),
                flag("trusted-ca-file", file("ca.pem", &ca.pem())),
                "--client-cert-auth=true".to_owned(),
            ]
        });
        let world = World { ca, strangers, server };
        wait_until("etcd serves by TLS", SOON, || world.attempt(&world.ca, Some(pair(&world.ca))).is_ok());
        world
    }

    /// Writes certificate and key to files of this name.
    fn files(&self, name: &str, (certificate, key): &(String, String)) -> (PathBuf, PathBuf) {
        let path = self.server.path(&format!("{name}.pem"));
        fs::write(&path, certificate).unwrap();
        (path, secret(&self.server, &format!("{name}.key"), key))
    }

    /// A write of a client that believes this issuer and shows this certificate.
    fn attempt(&self, ca: &Issuer, own: Option<(String, String)>) -> Result<i64, api::etcd::EtcdError> {
        let ca_file = self.server.path("ours.pem");
        fs::write(&ca_file, ca.pem()).unwrap();
        let identity = own.map(|own| self.files("client", &own));
        let etcd = Etcd::new(EtcdConfig { ca: ca_file, identity, ..config(&[self.server.url()]) }).unwrap();
        run(async { etcd.transact(&put("a", "1")).await }).map(|answer| answer.revision())
    }

    /// The settings of a host that believes this issuer and shows, if any, a certificate of that one.
    fn settings(&self, host: &str, ca: &Issuer, own: Option<&Issuer>) -> String {
        let ca_file = self.server.path(&format!("{host}-ca.pem"));
        fs::write(&ca_file, ca.pem()).unwrap();
        let own = own.map(|issuer| {
            let (certificate, key) = self.files(host, &pair(issuer));
            format!("certificate = {certificate:?}\nkey = {key:?}\n")
        });
        format!(
            "[store]\nurl = \"etcd:{}\"\nca = {ca_file:?}\n{}[node]\nhost = \"{host}\"\nlease_s = 6\n",
            self.server.url(),
            own.unwrap_or_default()
        )
    }
}

#[test]
fn by_tls_each_side_shows_a_certificate_and_strangers_are_refused() {
    let world = World::new();
    assert!(world.attempt(&world.ca, None).is_err());
    assert!(world.attempt(&world.ca, Some(pair(&world.strangers))).is_err());
    assert!(world.attempt(&world.strangers, Some(pair(&world.ca))).is_err());
}

#[test]
fn hosts_share_their_state_by_tls_and_who_is_not_let_in_or_is_not_sure_of_etcd_says_so_and_serves_nothing() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|host| Daemon::start(&world.settings(host, &world.ca, Some(&world.ca))));
    let network = a.tenant("red").network("lan");
    wait_until("the other hears of it", SOON, || super::shared::networks(&b.tenant("red")).contains(&network));
    wait_until("both live", SOON, || b.show("nodes").as_array().unwrap().len() == 2);

    let wait_in_vain = |host: &str, ca: &Issuer, own: Option<&Issuer>, why: &str| {
        let mut stranger = Daemon::prepared(&world.settings(host, ca, own));
        stranger.spawn();
        wait_until("it says that it waits", SOON, || stranger.log_tail().contains("trying again"));
        assert!(stranger.log_tail().contains(why), "{host}: {}", stranger.log_tail());
        let mut connection = Connection::open_for(stranger.api(), NO_ANSWER);
        let answer = connection.as_mut().map(|it| it.request("GET", "/v1.1/tenants/red/networks", None));
        assert!(!matches!(answer, Ok(Ok(answer)) if answer.status == 200), "it serves");
        stranger.stop();
    };
    // All at once, since none is answered.
    std::thread::scope(|scope| {
        scope.spawn(|| wait_in_vain("unknown", &world.ca, Some(&world.strangers), "alert"));
        scope.spawn(|| wait_in_vain("nobody", &world.ca, None, "alert"));
        scope.spawn(|| wait_in_vain("mistaken", &world.strangers, Some(&world.ca), "invalid peer certificate"));
    });
    let nodes = b.show("nodes");
    let is_known = |row: &serde_json::Value| row["host"] == "a" || row["host"] == "b";
    assert!(nodes.as_array().unwrap().iter().all(is_known), "they were not heard of: {nodes:#}");
    wait_until("both live still", SOON, || b.show("nodes").as_array().unwrap().len() == 2);
}
