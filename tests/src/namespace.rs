//! Network namespaces, by iproute2's `ip`: a stand-in for a tenant's machine.
//!
//! IPv6 is off inside, so that a namespace says nothing unless told to, and counters can be compared exactly.

use crate::process::{Child, output_of, wait_until};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Longest time in which a stream may stand still.
const STALL_LIMIT: Duration = Duration::from_secs(10);

/// Runs ip(8) where we are, words separated by spaces.
///
/// # Panics
/// If it fails, with what it said.
pub fn ip(line: &str) {
    output_of("ip", &line.split(' ').collect::<Vec<_>>());
}

/// A MAC as it is written.
pub fn text_of(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Sends `bytes` bytes by TCP to `address`, which is one of `to`'s, and checks each. `None`: from or to where we are.
///
/// # Panics
/// If they do not arrive, or not as they were sent.
pub fn transfer(from: Option<&Namespace>, to: Option<&Namespace>, address: &str, bytes: usize) {
    fn at<T: Send>(place: Option<&Namespace>, act: impl FnOnce() -> T + Send) -> T {
        match place {
            Some(namespace) => namespace.inside(act),
            None => act(),
        }
    }
    let address: IpAddr = address.parse().expect("an IP address");
    let listener = at(to, || TcpListener::bind((address, 0)).expect("the address is its own"));
    let there = listener.local_addr().expect("it is bound");
    let chunk: Vec<u8> = (0..1usize << 16).map(|at| (at % 251) as u8).collect();
    // It waits among those that are to be accepted.
    let mut stream = at(from, || TcpStream::connect(there).expect("the other end listens"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stream.set_write_timeout(Some(STALL_LIMIT)).expect("not zero");
            for _ in 0..bytes / chunk.len() {
                stream.write_all(&chunk).expect("the other end reads");
            }
        });
        let (mut stream, _) = listener.accept().expect("it is bound");
        stream.set_read_timeout(Some(STALL_LIMIT)).expect("not zero");
        let mut got = vec![0; chunk.len()];
        for _ in 0..bytes / chunk.len() {
            stream.read_exact(&mut got).expect("bytes arrive");
            assert!(got == chunk, "bytes changed");
        }
    });
}

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

    /// Starts a program inside that goes on beside the test, words separated by spaces; its output is appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, line: &str, log: &Path) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split_whitespace());
        Child::spawn(line, &mut command, log)
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

    /// Whether one ping is answered within a second, for who expects that it is not. A neighbour is resolved anew.
    pub fn pings(&self, address: &str) -> bool {
        self.pings_once(address, 1)
    }

    /// Whether one ping is answered, however slow the machine is. A neighbour is resolved anew.
    pub fn is_answered(&self, address: &str) -> bool {
        self.pings_once(address, 5)
    }

    fn pings_once(&self, address: &str, seconds: u64) -> bool {
        self.must("ip neigh flush all");
        self.run(&format!("busybox ping -c 1 -W {seconds} {address}")).status.success()
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

    /// Sends these frames out of an interface inside, as they are.
    ///
    /// # Panics
    /// If the interface does not take one.
    pub fn send(&self, interface: &str, frames: &[Vec<u8>]) {
        const SCRIPT: &str = "import socket, sys\n\
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
            s.bind((sys.argv[1], 0))\n\
            for line in sys.stdin: s.send(bytes.fromhex(line))\n";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "python3", "-c", SCRIPT, interface]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("iproute2 is installed");
        let lines: String = frames
            .iter()
            .flat_map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]))
            .collect();
        child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("python3 is installed and reads");
        assert!(child.wait().expect("our own child").success(), "{}: {interface} did not take all", self.name);
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
        let frames = Heard::default();
        let heard = frames.clone();
        let thread = std::thread::spawn(move || record(&namespace, &heard, &ready, &stopped));
        is_ready.recv().expect("a packet socket can be opened");
        Sniffer { thread, frames, stop }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It goes with the mount namespace of the test anyhow.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Frames recorded so far.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// A recording under way.
#[derive(Debug)]
pub struct Sniffer {
    thread: std::thread::JoinHandle<()>,
    frames: Heard,
    stop: mpsc::Sender<()>,
}

impl Sniffer {
    /// Waits for what is in flight and answers the frames that passed, each from its destination MAC on.
    ///
    /// # Panics
    /// If the recording failed.
    pub fn stop(self) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(300));
        self.stop_now()
    }

    /// The same for who knows that nothing is in flight.
    ///
    /// # Panics
    /// If the recording failed.
    pub fn stop_now(self) -> Vec<Vec<u8>> {
        self.stop.send(()).expect("the recorder waits for this");
        self.thread.join().expect("the recorder does not panic");
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many frames passed of which `is_it` is true.
    ///
    /// # Panics
    /// With `what`, if they do not within 10 s.
    pub fn wait_for(&self, what: &str, count: usize, is_it: impl Fn(&[u8]) -> bool) {
        wait_until(what, Duration::from_secs(10), || self.count(&is_it) >= count);
    }

    /// How many frames passed so far of which `is_it` is true.
    pub fn count(&self, is_it: impl Fn(&[u8]) -> bool) -> usize {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter(|frame| is_it(frame)).count()
    }
}

/// Moves the calling thread into the namespace.
fn enter(namespace: &File) {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("our own namespace");
}

/// The body of the recording thread: joins the namespace and reads a packet socket. An unbound one hears all interfaces.
fn record(namespace: &File, heard: &Heard, ready: &mpsc::Sender<()>, stopped: &mpsc::Receiver<()>) {
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
    let mut frame = vec![0; 1 << 16];
    loop {
        match socket.read(&mut frame) {
            Ok(len) => heard.lock().unwrap_or_else(PoisonError::into_inner).push(frame[..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stopped.recv_timeout(Duration::from_millis(10)).is_ok() {
                    return;
                }
            }
            Err(error) => panic!("packet socket: {error}"),
        }
    }
}
