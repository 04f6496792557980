//! QEMU's monitor: one command, one answer, with events between them thrown away.

use crate::process::wait_for;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest wait for an answer, and for QEMU to make its socket.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// QEMU's arguments that make it listen at `path`.
    pub fn arguments(path: &Path) -> [String; 2] {
        ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path.display())]
    }

    /// Connects.
    ///
    /// # Panics
    /// If nobody listens there in time.
    pub fn connect(path: &Path) -> Qmp {
        let stream = wait_for(ANSWER_LIMIT, || UnixStream::connect(path).ok());
        let stream = stream.unwrap_or_else(|| panic!("no QEMU listens on {}", path.display()));
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("the limit is not zero");
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        qmp.must("qmp_capabilities", &json!({}));
        qmp
    }

    /// A command that must succeed; answers what it returned.
    ///
    /// # Panics
    /// If it fails or is not answered.
    pub fn must(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).expect("QEMU reads its monitor");
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("QEMU answers in time");
            let mut answer: Value = serde_json::from_str(&line).expect("QEMU speaks JSON");
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
            assert!(answer.get("error").is_none() && !line.is_empty(), "{command}: {line}");
        }
    }
}
