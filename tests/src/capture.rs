//! `qvs capture`, as a person runs it beside what a test does.

use crate::daemon::{Daemon, program};
use crate::process::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Longest time from its interruption to its end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A capture under way; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// What it says beside the frames.
    notes: BufReader<ChildStderr>,
}

impl Running {
    /// Starts it with a port and options, words separated by spaces; frames are being captured when this returns.
    ///
    /// # Panics
    /// If they are not.
    pub fn start(daemon: &Daemon, line: &str) -> Running {
        let mut running = Running::try_start(daemon, line);
        let first = running.note();
        assert!(first.starts_with("capturing at"), "{line}: {first}");
        running
    }

    /// The same, whatever becomes of it.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn try_start(daemon: &Daemon, line: &str) -> Running {
        let mut command = Command::new(program());
        command.arg("capture").args(line.split_whitespace()).arg("--admin").arg(daemon.admin_socket());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the daemon's own program");
        let notes = BufReader::new(child.stderr.take().expect("it is piped"));
        Running { child, notes }
    }

    /// Its next note.
    ///
    /// # Panics
    /// If it is no text.
    pub fn note(&mut self) -> String {
        let mut line = String::new();
        self.notes.read_line(&mut line).expect("notes are UTF-8");
        line
    }

    /// What it writes.
    ///
    /// # Panics
    /// The second time.
    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("taken once")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has been waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// Waits for its end; answers its exit status and its last notes.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for(END_LIMIT, || self.child.try_wait().expect("our own child")).expect("the capture ends");
        let mut notes = String::new();
        self.notes.read_to_string(&mut notes).expect("notes are UTF-8");
        (status.code(), notes)
    }

    /// Interrupts it; it must end in good order. Answers its notes.
    ///
    /// # Panics
    /// If it does not.
    pub fn interrupt(self) -> String {
        self.signal(Signal::INT);
        let (status, notes) = self.end();
        assert_eq!(status, Some(0), "{notes}");
        notes
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
