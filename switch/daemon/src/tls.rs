//! The TLS of the API's listener: the settings' files made into what the API's server takes.

use crate::settings::{Settings, SettingsError};
use api::tls::Tls;

/// The certificate and key of the settings; `None`: the API speaks plain HTTP.
///
/// # Errors
/// A file that cannot be used, with the line of the setting that names it.
pub(crate) fn of(settings: &Settings) -> Result<Option<Tls>, SettingsError> {
    let api = &settings.api;
    if !api.has_tls() {
        return Ok(None);
    }
    let tls = Tls::open(&api.certificate, &api.key);
    tls.map(Some).map_err(|error| {
        let key = if error.path() == api.key { "key" } else { "certificate" };
        settings.fault("api", key, error)
    })
}
