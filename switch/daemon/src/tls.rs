//! The TLS of the API's listener: the settings' files made into what the API's server takes.

use crate::settings::{Settings, SettingsError};
use api::tls::Tls;
use api::watched::Rights;

/// What is said of a certificate that the listener has and clients refuse.
pub(crate) const AUTHORITY: &str =
    "the API's certificate says CA:TRUE, and clients that look at that refuse it, ours too";

/// The certificate and key of the settings, which must have `rights`; `None`: the API speaks plain HTTP.
///
/// # Errors
/// A file that cannot be used, with the line of the setting that names it.
pub(crate) fn of(settings: &Settings, rights: Rights) -> Result<Option<Tls>, SettingsError> {
    let api = &settings.api;
    if !api.has_tls() {
        return Ok(None);
    }
    let tls = Tls::open(&api.certificate, &api.key, rights);
    tls.map(Some).map_err(|error| {
        let key = if error.path() == api.key { "key" } else { "certificate" };
        settings.fault("api", key, error)
    })
}
