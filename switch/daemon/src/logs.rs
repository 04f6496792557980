//! The log: `tracing` to standard error, as text or as one JSON object a line; and the last line of a dying process.

use crate::cli::{LogForm, LogLevel};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// Starts the log, and makes every panic of any thread end the process after it was logged: a switch that lost a thread
/// must be restarted, not limp on.
pub(crate) fn start(form: LogForm, level: LogLevel) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(LevelFilter::from(level));
    match form {
        LogForm::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogForm::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(thread, place, message, "panic: a promise of our own code is broken");
        std::process::abort();
    }));
}
