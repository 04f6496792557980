//! The log: `tracing` to standard error, as text or as one JSON object a line; and the last line of a dying process.

use crate::cli::{LogForm, LogLevel};
use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
    // Who changed what is told even where otherwise only errors are.
    let filter = Targets::new()
        .with_default(LevelFilter::from(level))
        .with_target(api::audit::TARGET, LevelFilter::from(level).max(LevelFilter::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match form {
        LogForm::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init(),
        LogForm::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(thread, place, message, "panic: a promise of our own code is broken");
        std::process::abort();
    }));
}
