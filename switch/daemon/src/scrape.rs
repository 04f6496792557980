//! The metrics over TCP, where the settings ask for them: each scrape on a thread of its own, some at a time.

use crate::admin::{self, Service};
use crate::timed::Timed;
use std::io::{BufReader, BufWriter};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections for metrics over TCP served at once.
const SCRAPES_MAX: usize = 8;
/// How long one read or write of a scrape may take.
const SCRAPE_IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a scrape may take in all: Prometheus gives up after ten seconds by itself.
const SCRAPE_MAX: Duration = Duration::from_secs(10);

/// Serves `GET /metrics` over TCP.
pub(crate) fn serve(listener: TcpListener, service: Arc<dyn Service>) -> std::io::Result<()> {
    let scrapes = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if scrapes.fetch_add(1, Ordering::Relaxed) >= SCRAPES_MAX {
                scrapes.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (service, scrapes) = (service.clone(), scrapes.clone());
            let seat = scrapes.clone();
            let spawned = std::thread::Builder::new().name("scrape".into()).spawn(move || {
                if let Err(error) = scrape(&stream, &*service) {
                    tracing::debug!(%error, "a scrape ended early");
                }
                scrapes.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                seat.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

fn scrape(stream: &TcpStream, service: &dyn Service) -> std::io::Result<()> {
    let timed = || Timed::over(stream, SCRAPE_MAX, SCRAPE_IDLE_MAX);
    // Both clocks start now: it is one time for all.
    let (mut reader, mut writer) = (BufReader::new(timed()), BufWriter::new(timed()));
    match crate::protocol::read_line(&mut reader, admin::HTTP_LINE_MAX)? {
        Some(line) if line.starts_with(b"GET ") => admin::serve_http(&line, &mut reader, &mut writer, service),
        _ => Ok(()),
    }
}
