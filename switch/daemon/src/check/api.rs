//! What the API needs, and what it gives away: who its clients are, its certificate, the key of its secrets, quotas.

use super::Finding;
use crate::FAILED;
use crate::backup::handed_over;
use crate::identity::{owner_of_secrets, rights_of_secrets};
use crate::settings::{IdentityMode, Settings};
use ::api::identity::wall::format_utc;
use ::api::sealed::{SealError, SealKey};
use ::api::store::Store;
use ::api::v1::opens_secrets_in;
use std::path::Path;

/// A certificate that ends sooner should have been renewed.
const CERTIFICATE_DAYS_MIN: i64 = 30;
const DAY_S: i64 = 86_400;

/// Whether the files by which the API's clients are known can be used.
pub(super) fn identity(settings: &Settings) -> Finding {
    const NAME: &str = "identity";
    match (crate::identity::mode(settings, rights_of_secrets(settings)), settings.identity.mode) {
        (Err(error), _) => Finding::fail(
            NAME,
            error.to_string(),
            "mend what it names; `qvs token TENANT` makes the file of tokens; secrets: chmod 0600, owner the switch's user",
        ),
        (Ok(_), IdentityMode::Noauth) => {
            Finding::ok(NAME, "none: whoever reaches the API may do everything, so it listens on loopback")
        }
        (Ok(_), IdentityMode::Tokens) => {
            Finding::ok(NAME, format!("by the tokens in {}", settings.identity.tokens.display()))
        }
        (Ok(_), IdentityMode::Keystone) if settings.keystone_is_asked_in_clear() => Finding::warn(
            NAME,
            format!(
                "by Keystone at {}: tokens and the service user's password go there in clear",
                settings.keystone.url
            ),
            "give Keystone a certificate, and set keystone.url = \"https://…\" and keystone.ca",
        ),
        (Ok(_), IdentityMode::Keystone) => {
            Finding::ok(NAME, format!("by Keystone at {}; whether it answers was not tried", settings.keystone.url))
        }
    }
}

/// Whether the API's certificate and key can be used and for how long, and what is served without.
pub(super) fn tls(settings: &Settings, now: i64) -> Finding {
    const NAME: &str = "TLS";
    const RENEW: &str = "renew api.certificate and api.key; they are read again by themselves";
    match (crate::tls::of(settings, rights_of_secrets(settings)), settings.api.listen) {
        (Err(error), _) => Finding::fail(
            NAME,
            error.to_string(),
            "mend what it names, PEM both; the key: chmod 0600, owner the switch's user",
        ),
        (Ok(Some(tls)), _) => {
            let path = settings.api.certificate.display();
            match tls.not_after() {
                Some(end) if end <= now => {
                    Finding::warn(NAME, format!("the certificate {path} ended on {}", format_utc(end)), RENEW)
                }
                Some(end) if end - now < CERTIFICATE_DAYS_MIN * DAY_S => {
                    Finding::warn(NAME, format!("the certificate {path} ends on {}", format_utc(end)), RENEW)
                }
                _ if tls.is_authority() => Finding::warn(
                    NAME,
                    format!("{path}: {}", crate::tls::AUTHORITY),
                    "make another with basicConstraints=critical,CA:FALSE; README.md has the line for openssl",
                ),
                end => {
                    let end = end.map(|end| format!(", until {}", format_utc(end))).unwrap_or_default();
                    Finding::ok(NAME, format!("by the certificate {path} and its key{end}; they fit each other"))
                }
            }
        }
        (Ok(None), listen) if listen.ip().is_loopback() => {
            Finding::ok(NAME, "none: the API speaks plain HTTP, on loopback")
        }
        (Ok(None), listen) => Finding::warn(
            NAME,
            format!("none, and the API listens on {listen}: everybody on the way may read and change what is said"),
            "set api.certificate and api.key, and identity.insecure = false",
        ),
    }
}

/// Whether secrets in the store can be opened.
pub(super) fn seal_key(settings: &Settings) -> Finding {
    const NAME: &str = "store.seal_key";
    let path = &settings.store.seal_key;
    let shown = path.display();
    match SealKey::read_of(path, owner_of_secrets(settings)) {
        Ok(key) if !opens_what_is_kept(settings.store.path(), &key) => Finding::warn(
            NAME,
            format!("{shown} does not open the credentials in {}", settings.store.path().display()),
            "put the copy of the key back that sealed them; else delete those credentials and give them anew",
        ),
        Ok(_) => Finding::ok(NAME, format!("{shown}; keep a copy, and apart from those of the store")),
        Err(SealError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            if settings.store.path().exists() {
                return Finding::warn(
                    NAME,
                    format!("{shown} is not there, and the store is: secrets sealed in it cannot be opened"),
                    "put the copy of the key back; else a new one is made at start, and those secrets must be given anew",
                );
            }
            Finding::ok(NAME, format!("{shown} will be made, mode 0600"))
        }
        Err(error) => Finding::fail(
            NAME,
            error.to_string(),
            "chmod 0600, owner the switch's user; or put the copy of the key back",
        ),
    }
}

/// Whether the key opens the secrets in the store at `path`. One that is not there, or that nobody may look into now, tells
/// nothing: a daemon that has it says so in its log when it starts.
fn opens_what_is_kept(path: &Path, key: &SealKey) -> bool {
    let is_there = std::fs::metadata(path).is_ok_and(|found| found.len() > 0);
    let looked = is_there.then(|| handed_over(path, || Store::look(path).map_err(|error| (FAILED, error.to_string()))));
    looked.and_then(Result::ok).is_none_or(|found| opens_secrets_in(&found.extras, key))
}

/// Who can read the metrics.
pub(super) fn metrics(settings: &Settings) -> Finding {
    const NAME: &str = "metrics";
    match settings.metrics.listen {
        None => Finding::ok(NAME, "on the admin socket only"),
        Some(listen) if listen.ip().is_loopback() => Finding::ok(NAME, format!("on {listen}, to all of this host")),
        Some(listen) => Finding::warn(
            NAME,
            format!("on {listen}, in clear and to anybody who reaches it: names of interfaces and their traffic"),
            "let them be reached by the collector only, or listen on loopback behind a proxy",
        ),
    }
}

/// Whether the file of tenants' quotas can be used.
pub(super) fn quotas(settings: &Settings) -> Finding {
    const NAME: &str = "quotas";
    match (settings.quotas(), settings.quota.tenants.as_str()) {
        (Err(error), _) => Finding::fail(NAME, error.to_string(), "mend what it names, or unset quota.tenants"),
        (Ok(_), "") => Finding::ok(NAME, "the same for every tenant"),
        (Ok(_), path) => Finding::ok(NAME, format!("tenants' own in {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    /// Settings with files of their own, and the directory that has them.
    fn with_files(name: &str, api: &str) -> (PathBuf, Settings) {
        let dir = std::env::temp_dir().join(format!("qvs-check-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let api = api.replace("DIR", &dir.display().to_string());
        let settings = Settings::parse(&format!("state_dir = {dir:?}\n{api}"), "x").unwrap();
        (dir, settings)
    }

    fn write_secret(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_certificate_that_ends_soon_or_has_ended_is_told_with_the_day() {
        let keys = "[api]\ncertificate = \"DIR/api.pem\"\nkey = \"DIR/api.key\"";
        let (dir, settings) = with_files("tls", keys);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 6, 15);
        fs::write(dir.join("api.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        write_secret(&dir.join("api.key"), &key.serialize_pem());
        let end = ::api::identity::wall::parse_utc("2030-06-15T00:00:00Z").unwrap();
        for (days, grade, words) in [
            (31, Grade::Ok, "until 2030-06-15T00:00:00Z"),
            (29, Grade::Warn, "ends on 2030-06-15T00:00:00Z"),
            (0, Grade::Warn, "ended on 2030-06-15T00:00:00Z"),
        ] {
            let finding = tls(&settings, end - days * DAY_S);
            assert!(finding.grade == grade && finding.found.contains(words), "{days}: {finding:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_certificate_that_vouches_for_others_is_told() {
        let (dir, settings) = with_files("authority", "[api]\ncertificate = \"DIR/api.pem\"\nkey = \"DIR/api.key\"");
        let key = rcgen::KeyPair::generate().unwrap();
        write_secret(&dir.join("api.key"), &key.serialize_pem());
        for (is_ca, grade) in [
            (rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained), Grade::Warn),
            (rcgen::IsCa::ExplicitNoCa, Grade::Ok),
        ] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.is_ca = is_ca;
            fs::write(dir.join("api.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            let finding = tls(&settings, 0);
            assert_eq!(finding.grade, grade, "{finding:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_key_that_the_daemons_user_cannot_read_is_told_to_root() {
        let (dir, settings) = with_files("owner", "[api]\ncertificate = \"DIR/api.pem\"\nkey = \"DIR/api.key\"");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(dir.join("api.pem"), certificate.pem()).unwrap();
        write_secret(&dir.join("api.key"), &key.serialize_pem());
        let daemons = |path: &Path| std::os::unix::fs::chown(path, Some(4711), None);
        if rustix::process::geteuid().is_root() && daemons(&dir).is_ok() {
            let finding = tls(&settings, 0);
            assert!(finding.grade == Grade::Fail && finding.found.contains("owner 0"), "{finding:?}");
            daemons(&dir.join("api.key")).unwrap();
        }
        assert_eq!(tls(&settings, 0).grade, Grade::Ok);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_seal_key_that_is_missing_beside_a_store_or_open_to_others_is_told() {
        let (dir, settings) = with_files("seal", "");
        let key = &settings.store.seal_key;
        assert_eq!(seal_key(&settings).grade, Grade::Ok, "it will be made");
        fs::write(settings.store.path(), "").unwrap();
        assert_eq!(seal_key(&settings).grade, Grade::Warn, "what was sealed is lost");
        let first = SealKey::open(key).unwrap();
        assert_eq!(seal_key(&settings).grade, Grade::Ok);
        fs::remove_file(settings.store.path()).unwrap();
        let sealed = first.seal("credential/id", b"secret");
        let record = serde_json::json!({"tenant": "red", "serial": 1, "name": "u", "credential_name": "c",
            "user_name": "u", "sealed": sealed});
        let store = Store::open(settings.store.path()).unwrap();
        store.put_extra("credential", "id", record.to_string().as_bytes()).unwrap();
        drop(store);
        assert_eq!(seal_key(&settings).grade, Grade::Ok);
        let copy = fs::read(key).unwrap();
        fs::remove_file(key).unwrap();
        SealKey::open(key).unwrap();
        let finding = seal_key(&settings);
        assert!(finding.grade == Grade::Warn && finding.found.contains("does not open"), "{finding:?}");
        fs::write(key, copy).unwrap();
        assert_eq!(seal_key(&settings).grade, Grade::Ok);
        fs::set_permissions(key, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(seal_key(&settings).grade, Grade::Fail);
        write_secret(key, "no key");
        assert_eq!(seal_key(&settings).grade, Grade::Fail);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_goes_in_clear_beyond_this_host_is_told() {
        for (text, is_clear) in
            [("", false), ("[metrics]\nlisten = \"127.0.0.1:1\"", false), ("[metrics]\nlisten = \"0.0.0.0:1\"", true)]
        {
            let settings = Settings::parse(text, "x").unwrap();
            assert_eq!(metrics(&settings).grade == Grade::Warn, is_clear, "{text}");
        }
        let keystone = "[identity]\nmode = \"keystone\"\n[keystone]\npassword_file = \"DIR/password\"\nurl = ";
        for (url, is_clear) in [
            ("http://127.0.0.1:5000", false),
            ("http://[::1]:5000/v3", false),
            ("http://localhost/v3", false),
            ("http://keystone.example:5000/v3", true),
            ("http://192.0.2.1", true),
        ] {
            let (dir, settings) = with_files("clear", &format!("{keystone}\"{url}\""));
            write_secret(&dir.join("password"), "secret");
            let finding = identity(&settings);
            assert_eq!(finding.grade == Grade::Warn, is_clear, "{url}: {finding:?}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
