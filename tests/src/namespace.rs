//! Network namespaces, by iproute2's `ip`: a stand-in for a tenant's machine.
//!
//! IPv6 is off inside, so that a namespace says nothing unless told to, and counters can be compared exactly.

use crate::process::{output_of, wait_until};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A named network namespace; deleted when dropped, with every TAP in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up.
    ///
    /// # Panics
    /// If this is not allowed.
    pub fn new(name: &str) -> Namespace {
        output_of("ip", &["netns", "add", name]);
        let namespace = Namespace { name: name.to_owned() };
        for when in ["all", "default"] {
            // A kernel without IPv6 has nothing to switch off.
            namespace.run(&format!("echo 1 > /proc/sys/net/ipv6/conf/{when}/disable_ipv6"));
        }
        namespace.must("ip link set lo up");
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell command inside.
    ///
    /// # Panics
    /// If the shell cannot be started.
    pub fn run(&self, command: &str) -> Output {
        let mut shell = Command::new("ip");
        shell.args(["netns", "exec", &self.name, "/bin/sh", "-c", command]);
        shell.output().expect("iproute2 is installed")
    }

    /// Runs a shell command that must succeed; answers what it printed.
    ///
    /// # Panics
    /// If it fails, with what it said.
    pub fn must(&self, command: &str) -> String {
        let output = self.run(command);
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: `{command}` failed: {text}{error}", self.name);
        text.into_owned()
    }

    /// Waits for an interface and gives it an address (`10.0.0.1/24`).
    pub fn address(&self, interface: &str, address: &str) {
        wait_until(&format!("{interface} is in {}", self.name), Duration::from_secs(10), || {
            self.run(&format!("ip link show dev {interface}")).status.success()
        });
        self.must(&format!("ip addr add {address} dev {interface}"));
    }

    /// The MAC of an interface.
    pub fn mac(&self, interface: &str) -> String {
        self.must(&format!("cat /sys/class/net/{interface}/address")).trim().to_owned()
    }

    /// Whether one ping is answered within a second. A neighbour is resolved anew.
    pub fn pings(&self, address: &str) -> bool {
        self.must("ip neigh flush all");
        self.run(&format!("busybox ping -c 1 -W 1 {address}")).status.success()
    }

    /// Whether a ping is answered within `limit`, trying again and again.
    pub fn pings_within(&self, address: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            if self.pings(address) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
        }
    }

    /// Calls `act` on a thread that lives inside: sockets it opens are there.
    ///
    /// # Panics
    /// If `act` does.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&namespace);
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts to record every frame that comes in or goes out at any interface inside.
    ///
    /// # Panics
    /// If packet sockets are not allowed.
    pub fn sniff(&self) -> Sniffer {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || record(&namespace, &ready, &stopped));
        is_ready.recv().expect("a packet socket can be opened");
        Sniffer { thread, stop }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It goes with the mount namespace of the test anyhow.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// A recording under way.
#[derive(Debug)]
pub struct Sniffer {
    thread: std::thread::JoinHandle<Vec<Vec<u8>>>,
    stop: mpsc::Sender<()>,
}

impl Sniffer {
    /// Waits for what is in flight and answers the frames that passed, each from its destination MAC on.
    ///
    /// # Panics
    /// If the recording failed.
    pub fn stop(self) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(300));
        self.stop.send(()).expect("the recorder waits for this");
        self.thread.join().expect("the recorder does not panic")
    }
}

/// Moves the calling thread into the namespace.
fn enter(namespace: &File) {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("our own namespace");
}

/// The body of the recording thread: joins the namespace and reads a packet socket. An unbound one hears all interfaces.
fn record(namespace: &File, ready: &mpsc::Sender<()>, stopped: &mpsc::Receiver<()>) -> Vec<Vec<u8>> {
    use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
    /// ETH_P_ALL in network order (packet(7)).
    const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;
    /// Bytes of frames that may wait for us, with the kernel's books about them.
    const SNIFF_BUFFER: usize = 32 << 20;
    enter(namespace);
    let protocol = Protocol::from_raw(std::num::NonZeroU32::new(ALL_PROTOCOLS).expect("not zero"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol)).expect("CAP_NET_RAW");
    // The default holds a few large segments only.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SNIFF_BUFFER).expect("CAP_NET_ADMIN");
    let mut socket = File::from(socket);
    ready.send(()).expect("the test waits for this");
    let mut frames = Vec::new();
    let mut frame = vec![0; 1 << 16];
    loop {
        match socket.read(&mut frame) {
            Ok(len) => frames.push(frame[..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stopped.recv_timeout(Duration::from_millis(10)).is_ok() {
                    return frames;
                }
            }
            Err(error) => panic!("packet socket: {error}"),
        }
    }
}
