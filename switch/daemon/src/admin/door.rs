//! Who answers at the admin socket while the daemon is not yet complete.
//!
//! As a rule nobody does: a start takes milliseconds, and who asks then waits for the daemon itself. But where it has to wait
//! for something elsewhere, who asks is told what for at once.

use super::{AdminSocket, ServedSocket, Service, write_answer};
use crate::capture::serve::CaptureRequest;
use crate::cli::What;
use crate::protocol::{Answer, Request};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The socket until the daemon answers at it.
pub(crate) struct Door {
    /// At which nobody answers yet.
    shut: Option<AdminSocket>,
    /// At which the porter answers.
    served: Option<ServedSocket>,
    porter: Arc<Porter>,
}

impl Door {
    /// A door at which nobody answers yet.
    pub(crate) fn new(socket: AdminSocket) -> Door {
        Door { shut: Some(socket), served: None, porter: Arc::default() }
    }

    /// From now on, until the daemon is complete, who asks is refused with these words.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn answer_meanwhile(&mut self, why: String) -> io::Result<()> {
        *self.porter.why() = why;
        self.serve()
    }

    /// Lets `service` answer; the answer is that of [`AdminSocket::serve`].
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn open(mut self, service: Arc<dyn Service>) -> io::Result<ServedSocket> {
        assert!(self.porter.service.set(service).is_ok(), "a door is opened once");
        self.serve()?;
        Ok(self.served.expect("it was served just now, or before"))
    }

    fn serve(&mut self) -> io::Result<()> {
        if let Some(socket) = self.shut.take() {
            self.served = Some(socket.serve(self.porter.clone())?);
        }
        Ok(())
    }
}

/// Hands on what is asked to the daemon, once there is one.
#[derive(Default)]
struct Porter {
    service: OnceLock<Arc<dyn Service>>,
    why: Mutex<String>,
}

impl Porter {
    fn why(&self) -> MutexGuard<'_, String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> Answer {
        Answer::Error(self.why().clone())
    }
}

impl Service for Porter {
    fn answer(&self, request: Request) -> Answer {
        self.service.get().map_or_else(|| self.refusal(), |service| service.answer(request))
    }

    fn show(&self, what: What, to: &mut dyn Write) -> io::Result<()> {
        match self.service.get() {
            Some(service) => service.show(what, to),
            None => write_answer(to, &self.refusal()),
        }
    }

    fn capture(&self, request: CaptureRequest, mut stream: &UnixStream) -> io::Result<()> {
        match self.service.get() {
            Some(service) => service.capture(request, stream),
            None => write_answer(&mut stream, &self.refusal()),
        }
    }

    /// Nothing is counted before there is a daemon.
    fn metrics(&self) -> String {
        self.service.get().map(|service| service.metrics()).unwrap_or_default()
    }
}
