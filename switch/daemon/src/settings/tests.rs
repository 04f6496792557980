//! What a settings file may say, and what it is told when it says something else.

use super::*;

fn fault(text: &str) -> String {
    Settings::parse(text, "qvs.toml").expect_err(text).to_string()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let settings = Settings::parse("", "qvs.toml").unwrap();
    assert_eq!(settings.api.listen.to_string(), "127.0.0.1:9696");
    assert_eq!(settings.api.peer_connections, 128);
    assert_eq!(settings.admin.socket, Path::new("/run/qvs/admin.sock"));
    assert_eq!(settings.vhost.dir, Path::new("/run/qvs/vhost"));
    assert_eq!(settings.vhost.mode_bits(), 0o660);
    assert_eq!(settings.vhost.role, Role::Server);
    assert_eq!(settings.store.path(), Path::new("/var/lib/qvs/state.redb"));
    assert_eq!(settings.switch.workers, Workers::Auto);
    assert_eq!((settings.switch.poll, settings.switch.idle_us), (PollMode::Adaptive, 200));
    assert_eq!((settings.mac.age_s, settings.mac.max), (300, 131_072));
    assert_eq!((settings.attach.auto, settings.attach.claim), (Auto::None, Claim::Any));
    assert_eq!(settings.plugin.driver, Driver::Native);
    assert_eq!(settings.plugin.extensions, None);
    assert!(!settings.node.host.is_empty());
    assert_eq!(settings.identity.mode, IdentityMode::Noauth);
    assert_eq!(settings.identity.tokens, Path::new("/var/lib/qvs/tokens.toml"));
    assert_eq!((settings.quota.all.networks.count(), settings.quota.all.ports.count()), (None, None));
    assert_eq!(settings.metrics.listen, None);
}

#[test]
fn sockets_and_store_follow_the_directories_unless_set() {
    let text = "state_dir = \"/s\"\nrun_dir = \"/r\"\n[vhost]\ndir = \"/v\"\n";
    let settings = Settings::parse(text, "qvs.toml").unwrap();
    assert_eq!(settings.admin.socket, Path::new("/r/admin.sock"));
    assert_eq!(settings.vhost.dir, Path::new("/v"));
    assert_eq!(settings.store.url, "redb:/s/state.redb");
    assert_eq!(settings.store.seal_key, Path::new("/s/seal.key"));
}

#[test]
fn tenants_who_are_known_are_bounded_where_nothing_is_said() {
    let counts = |text: &str| {
        let quota = Settings::parse(text, "qvs.toml").unwrap().quota.all;
        (quota.networks.count(), quota.ports.count())
    };
    assert_eq!(counts("[identity]\nmode = \"tokens\""), (Some(1_000), Some(10_000)));
    assert_eq!(counts("[identity]\nmode = \"tokens\"\n[quota]\nports = -1"), (Some(1_000), None));
    assert_eq!(counts("[identity]\nmode = \"noauth\""), (None, None));
}

#[test]
fn every_key_is_known() {
    let text = r#"
        state_dir = "/s"
        run_dir = "/r"
        [api]
        listen = "[::1]:0"
        certificate = "/s/api.pem"
        key = "/s/api.key"
        hosts = ["cloud.example"]
        peer_connections = 1024
        strict_essex = false
        [admin]
        socket = "/r/a.sock"
        group = "adm"
        [switch]
        workers = [0, 3]
        poll = "always"
        idle_us = 0
        rebalance = true
        [mac]
        age_s = 10
        max = 100
        [vhost]
        dir = "/v"
        role = "client"
        owner = "nobody"
        group = "65534"
        mode = "600"
        [attach]
        auto = "vhost-user"
        claim = "any"
        [plugin]
        driver = "fake"
        extensions = ["portstats"]
        [node]
        roles = ["switch", "api"]
        host = "node-1"
        [store]
        url = "redb:/s/x.redb"
        seal_key = "/k/seal.key"
        [identity]
        mode = "noauth"
        insecure = true
        tokens = "/s/t.toml"
        policy = "/s/p.toml"
        [keystone]
        url = "https://keystone.example:5000/v3"
        user = "quantum"
        user_domain = "services"
        password_file = "/s/password"
        project = "services"
        project_domain = "services"
        ca = "/s/ca.pem"
        cache_s = 60
        timeout_s = 2
        [quota]
        networks = 7
        ports = -1
        tenants = "/s/quotas.toml"
        [metrics]
        listen = "127.0.0.1:9100"
    "#;
    let settings = Settings::parse(text, "qvs.toml").unwrap();
    assert_eq!(settings.switch.workers, Workers::Cpus(vec![0, 3]));
    assert!(settings.switch.rebalance);
    assert_eq!(settings.attach.auto, Auto::VhostUser);
    assert_eq!(settings.vhost.mode_bits(), 0o600);
    assert!(settings.identity.insecure);
    assert_eq!(settings.identity.tokens, Path::new("/s/t.toml"));
    let json = serde_json::to_value(&settings).unwrap();
    assert_eq!(json["quota"], serde_json::json!({"networks": 7, "ports": -1, "tenants": "/s/quotas.toml"}));
    assert_eq!(json["switch"]["workers"], serde_json::json!([0, 3]));
    assert_eq!(json["attach"]["auto"], "vhost-user");
}

#[test]
fn faults_name_file_line_and_key() {
    for (text, expected) in [
        ("[quota]\nports = -2", "qvs.toml:2: quota.ports: -2 is no limit"),
        ("[quota]\ntenants = \"q.toml\"", "qvs.toml:2: quota.tenants: \"q.toml\" must be an absolute path"),
        ("[api]\nlisten_on = 1\n", "qvs.toml:2: unknown field `listen_on`"),
        ("statedir = \"/x\"", "qvs.toml:1: unknown field `statedir`"),
        ("\n[swich]\n", "qvs.toml:2: unknown field `swich`"),
        ("[api]\n\nlisten = 5", "qvs.toml:3: invalid type: integer `5`"),
        ("[api\n", "qvs.toml:1: "),
        ("[api]\nlisten = \"localhost:1\"", "qvs.toml:2: api.listen: \"localhost:1\" must be an IP address"),
        ("[api]\nlisten = \"0.0.0.0:9696\"", "qvs.toml:2: api.listen: 0.0.0.0:9696 is not loopback, and without TLS"),
        (
            "[api]\nlisten = \"[::]:9696\"\n[identity]\nmode = \"tokens\"",
            "qvs.toml:2: api.listen: [::]:9696 is not loopback, and without TLS",
        ),
        (
            "[api]\nlisten = \"10.0.0.1:9696\"\n[identity]\nmode = \"keystone\"\n[keystone]\nurl = \"https://k/v3\"",
            "qvs.toml:2: api.listen: 10.0.0.1:9696 is not loopback, and without TLS",
        ),
        (
            "[api]\nlisten = \"0.0.0.0:9696\"\ncertificate = \"/c\"\nkey = \"/k\"",
            "qvs.toml:2: api.listen: 0.0.0.0:9696 is not loopback, and without identity everybody",
        ),
        ("[api]\npeer_connections = 0", "qvs.toml:2: api.peer_connections: 0 must be 1 to 1024"),
        ("[api]\npeer_connections = 1025", "qvs.toml:2: api.peer_connections: 1025 must be 1 to 1024"),
        ("[api]\ncertificate = \"/c\"", "qvs.toml:2: api.certificate: TLS needs both: set api.key too"),
        ("[api]\n\nkey = \"/k\"", "qvs.toml:3: api.key: TLS needs both: set api.certificate too"),
        ("[api]\ncertificate = \"c\"\nkey = \"/k\"", "qvs.toml:2: api.certificate: \"c\" must be an absolute path"),
        ("[api]\ncertificate = \"/c\"\nkey = \"k\"", "qvs.toml:3: api.key: \"k\" must be an absolute path"),
        (
            "[api]\nlisten = \"0.0.0.0:9696\"\nstrict_essex = true\n[identity]\ninsecure = true",
            "qvs.toml:3: api.strict_essex: the original's oddities are for replaying recordings, on loopback only",
        ),
        (
            "[api]\nstrict_essex = true\n[identity]\nmode = \"tokens\"",
            "qvs.toml:2: api.strict_essex: recordings are replayed without identity",
        ),
        ("[plugin]\nextensions = 3", "qvs.toml:2: plugin.extensions: must be \"all\" or a list of aliases"),
        ("[plugin]\nextensions = [1]", "qvs.toml:2: plugin.extensions: must be \"all\" or a list of aliases"),
        ("[switch]\nrebalance = 1", "qvs.toml:2: invalid type: integer `1`"),
        ("[switch]\nworkers = []", "qvs.toml:2: switch.workers: the list is empty"),
        ("[switch]\nworkers = [1, 1]", "qvs.toml:2: switch.workers: CPU 1 is named twice"),
        ("[switch]\nworkers = [-1]", "qvs.toml:2: switch.workers: -1 is no CPU number"),
        ("[switch]\nworkers = 2", "qvs.toml:2: switch.workers: must be \"auto\" or a list"),
        ("[switch]\npoll = \"never\"", "qvs.toml:2: unknown variant `never`"),
        ("[switch]\nidle_us = 2000000", "qvs.toml:2: switch.idle_us: 2000000 must be 0 to 1000000"),
        ("[mac]\nmax = 0", "qvs.toml:2: mac.max: 0 must be 1 to"),
        ("[mac]\nage_s = -3", "qvs.toml:2: invalid value: integer `-3`"),
        ("[vhost]\nmode = \"0999\"", "qvs.toml:2: vhost.mode: \"0999\" is no octal mode"),
        ("[vhost]\nmode = \"4755\"", "qvs.toml:2: vhost.mode: \"4755\" is no octal mode"),
        ("[vhost]\ndir = \"v\"", "qvs.toml:2: vhost.dir: \"v\" must be an absolute path"),
        ("state_dir = \"/a/../b\"", "qvs.toml:1: state_dir: \"/a/../b\" must be an absolute path"),
        ("[attach]\nclaim = \"registered\"", "qvs.toml:2: attach.claim: \"registered\" needs identity"),
        ("[node]\nroles = [\"api\"]", "qvs.toml:2: node.roles: a node that is not both shares its state"),
        ("[node]\nroles = []", "qvs.toml:2: node.roles: must be"),
        ("[node]\nroles = [\"api\", \"api\"]", "qvs.toml:2: node.roles: must be"),
        ("[node]\nhost = \"a/b\"", "qvs.toml:2: node.host: must be a name"),
        ("[node]\nlease_s = 1", "qvs.toml:2: node.lease_s: 1 must be 6 to 600"),
        ("[store]\nurl = \"etcd://x\"", "qvs.toml:2: store.url: \"//x\" must be like"),
        ("[store]\nurl = \"etcd:\"", "qvs.toml:2: store.url: \"\" must be like"),
        (
            "[store]\nurl = \"etcd:http://a:2379,http://u:p@b:2379\"",
            "qvs.toml:2: store.url: \"http://u:p@b:2379\" must",
        ),
        ("[store]\nurl = \"etcd:http://a:2379/path\"", "qvs.toml:2: store.url: \"http://a:2379/path\" must be like"),
        ("[store]\nprefix = \"/x\"", "qvs.toml:2: store.prefix: is for store.url"),
        ("[store]\nurl = \"etcd:http://a\"\nprefix = \"x\"", "qvs.toml:3: store.prefix: \"x\" must begin with a slash"),
        ("[store]\nurl = \"etcd:http://a\"\nkey = \"/k\"", "qvs.toml:3: store.key: a certificate needs both"),
        ("[store]\nurl = \"etcd:http://a\"\n[attach]\nauto = \"tap\"", "qvs.toml:4: attach.auto: with store.url"),
        ("[store]\nurl = \"etcd:http://a\"\n[plugin]\ndriver = \"fake\"", "qvs.toml:4: plugin.driver: \"fake\" keeps"),
        ("[store]\nseal_key = \"k\"", "qvs.toml:2: store.seal_key: \"k\" must be an absolute path without . or .."),
        ("[store]\nurl = \"/x\"", "qvs.toml:2: store.url: \"/x\" must be redb: and an absolute path"),
        ("[identity]\nmode = \"keystone\"", "qvs.toml:2: identity.mode: \"keystone\" needs keystone.url"),
        ("[keystone]\npassword = \"x\"", "qvs.toml:2: unknown field `password`"),
        ("[keystone]\nca = \"x\"", "qvs.toml:2: keystone.ca: \"x\" must be an absolute path"),
        ("[keystone]\ncache_s = 86401", "qvs.toml:2: keystone.cache_s: 86401 must be 0 to 86400"),
        ("[keystone]\ntimeout_s = 0", "qvs.toml:2: keystone.timeout_s: 0 must be 1 to 60"),
        ("[identity]\nmode = \"password\"", "qvs.toml:2: unknown variant `password`"),
        ("[identity]\ntokens = \"t\"", "qvs.toml:2: identity.tokens: \"t\" must be an absolute path"),
        ("[identity]\n\npolicy = \"p\"", "qvs.toml:3: identity.policy: \"p\" must be an absolute path"),
    ] {
        let message = fault(text);
        assert!(message.starts_with(expected), "{text:?} said {message:?}");
        assert!(!message.contains('\n'), "{message:?}");
    }
}

#[test]
fn beyond_loopback_it_takes_tls_and_identity_or_a_plain_word() {
    let tls = "[api]\nlisten = \"0.0.0.0:1\"\ncertificate = \"/c\"\nkey = \"/k\"\n";
    let clear = "[api]\nlisten = \"0.0.0.0:1\"\n";
    for (text, has_tls) in [
        (format!("{tls}[identity]\nmode = \"tokens\""), true),
        (format!("{tls}[identity]\nmode = \"keystone\"\n[keystone]\nurl = \"https://k/v3\""), true),
        (format!("{tls}[identity]\ninsecure = true"), true),
        (format!("{clear}[identity]\ninsecure = true"), false),
        (format!("{clear}[identity]\nmode = \"tokens\"\ninsecure = true"), false),
        ("[api]\ncertificate = \"\"\nkey = \"\"".to_owned(), false),
        ("[api]\ncertificate = \"/c\"\nkey = \"/k\"".to_owned(), true),
    ] {
        assert_eq!(Settings::parse(&text, "qvs.toml").unwrap().api.has_tls(), has_tls, "{text}");
    }
}

#[test]
fn with_etcd_the_state_is_shared_and_plugs_stay_in_a_file_of_the_hosts_own() {
    let text = "state_dir = \"/s\"\n[store]\nurl = \"etcd:http://[::1]:2379, https://b.example\"\n[node]\nroles = [\"switch\"]";
    let settings = Settings::parse(text, "qvs.toml").unwrap();
    assert_eq!(settings.store.etcd().unwrap(), ["http://[::1]:2379", "https://b.example"]);
    assert_eq!(settings.store.path(), Path::new("/s/state.redb"));
    assert!(settings.node.is(NodeRole::Switch) && !settings.node.is(NodeRole::Api));
    assert_eq!(Settings::parse("", "qvs.toml").unwrap().store.etcd(), None);
}

#[test]
fn with_identity_tenants_plug_what_is_registered_unless_told_otherwise() {
    let claim = |text: &str| Settings::parse(text, "qvs.toml").unwrap().attach.claim;
    assert_eq!(claim("[identity]\nmode = \"tokens\""), Claim::Registered);
    assert_eq!(claim("[identity]\nmode = \"tokens\"\n[attach]\nclaim = \"any\""), Claim::Any);
    assert_eq!(claim("[identity]\nmode = \"noauth\""), Claim::Any);
}

#[test]
fn a_socket_path_that_the_kernel_would_cut_is_refused() {
    let text = format!("run_dir = \"/{}\"", "x".repeat(100));
    assert!(fault(&text).contains("a socket's path has at most 107"));
}

#[test]
fn a_worker_outside_the_allowed_cpus_is_refused_with_its_line() {
    let settings = Settings::parse("[switch]\nworkers = [0, 9]", "qvs.toml").unwrap();
    let message = settings.worker_cpus(&[0, 1], &[1]).unwrap_err().to_string();
    assert!(message.starts_with("qvs.toml:2: switch.workers: CPU 9 is outside the allowed set [0, 1]"), "{message}");
    let auto = Settings::parse("", "qvs.toml").unwrap();
    assert_eq!(auto.worker_cpus(&[0, 1], &[1]).unwrap(), [1]);
}
