//! tcpdump, a witness that is nobody's of ours: to frames that came in it gives back the VLAN tag that the kernel took out, which a
//! [`Sniffer`](crate::namespace::Sniffer) does not.

use crate::namespace::Namespace;
use crate::process::{Child, TempDir, wait_until};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Longest start.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the head of a file, and of that of a frame in it (pcap-savefile(5)).
const FILE_HEAD: usize = 24;
const FRAME_HEAD: usize = 16;

/// A capture under way; ended when dropped.
#[derive(Debug)]
pub struct Tcpdump {
    _child: Child,
    dir: TempDir,
}

impl Tcpdump {
    /// Starts one at an interface inside; frames are being captured when this returns.
    ///
    /// # Panics
    /// If they are not.
    pub fn start(space: &Namespace, interface: &str) -> Tcpdump {
        let dir = TempDir::new();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", space.name(), "tcpdump", "-i", interface]);
        // Each frame is written as it comes, by us and not by a user to whom the directory is closed.
        command.args(["--immediate-mode", "-U", "-Z", "root", "-B", "16384", "-w"]).arg(dir.join("frames"));
        let child = Child::spawn("tcpdump", &mut command, &dir.join("log"));
        wait_until("tcpdump listens", START_LIMIT, || {
            fs::read_to_string(dir.join("log")).is_ok_and(|text| text.contains("listening on"))
        });
        Tcpdump { _child: child, dir }
    }

    /// The frames so far, in both directions, each from its destination MAC on.
    ///
    /// # Panics
    /// If there is no file.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let file = fs::read(self.dir.join("frames")).expect("it was made before the first frame");
        let mut rest = file.get(FILE_HEAD..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((head, behind)) = rest.split_at_checked(FRAME_HEAD) {
            let len = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
            // The last one may still be being written.
            let Some((frame, behind)) = behind.split_at_checked(len) else { break };
            frames.push(frame.to_vec());
            rest = behind;
        }
        frames
    }
}
