//! A virtual machine under QEMU's own emulation, as a test drives it: boots in seconds, runs a shell command, answers
//! its output.
//!
//! The guest has two serial lines. The first is the kernel's console and goes to a file. The second is a UNIX socket on
//! which we listen: the guest's init reads one command a line from it and answers with the command's output and a
//! closing line that carries the exit status, so no prompt has to be guessed. Emulation (TCG) is always used, so that
//! results do not depend on nested virtualisation; QEMU 7.2 crashes under TCG when a vhost-user device uses MSI-X, hence
//! `vectors=0` on every device.

use crate::initramfs::{Cpio, Kernel};
use crate::process::{Child, TempDir, log_tail, target_dir, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest boot; three seconds on an idle core.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Longest command, unless [`Guest::run_within`] says otherwise.
const RUN_LIMIT: Duration = Duration::from_secs(30);
/// Guest memory, MiB: the kernel, 12 MiB of files, and room for iperf3's windows.
const MEMORY_MIB: u32 = 256;

/// The init script: mounts, loads modules, then serves commands on the second serial line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo "@@ready" >&3
while read -r serial command <&3; do
    sh -c "$command" </dev/null >/tmp/.output 2>&1
    status=$?
    cat /tmp/.output >&3
    echo "@@$serial $status" >&3
done
poweroff -f
"#;

/// Modules a guest of ours needs. What is built in is skipped.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "8021q", "sch_netem"];
/// Programs of the host that the guest gets besides busybox.
const PROGRAMS: &[&str] = &["/usr/bin/iperf3", "/usr/sbin/ethtool", "/usr/sbin/tc"];

/// Who listens on the vhost-user socket, seen from QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QemuRole {
    /// The switch listens, QEMU connects and connects again.
    Client,
    /// QEMU listens, the switch connects.
    Server,
}

/// One vhost-user network device of a guest.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The socket.
    pub socket: PathBuf,
    /// QEMU's role on it.
    pub role: QemuRole,
    /// Its address, as text.
    pub mac: String,
}

/// What a guest has besides its devices; by default as little as can be.
#[derive(Clone, Debug)]
pub struct Extras {
    /// Pairs of queues of each device.
    pub queue_pairs: u16,
    /// Further properties of each device, as QEMU takes them: `packed=on`.
    pub properties: Vec<String>,
    /// Further arguments of QEMU.
    pub arguments: Vec<String>,
    /// Programs that it gets, at the paths they have here.
    pub programs: Vec<PathBuf>,
    /// Modules that it loads besides those that all do.
    pub modules: Vec<String>,
}

impl Default for Extras {
    fn default() -> Extras {
        let (properties, arguments, programs, modules) = Default::default();
        Extras { queue_pairs: 1, properties, arguments, programs, modules }
    }
}

/// What a command in a guest gave back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// Both its output streams, carriage returns taken out.
    pub text: String,
}

/// A running virtual machine; gone when dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    qemu: Child,
    control: UnixStream,
    received: Vec<u8>,
    serial: u32,
    dir: TempDir,
}

struct Image {
    kernel: Kernel,
    initramfs: PathBuf,
}

impl Image {
    /// The archive with more behind it: a kernel unpacks one archive after another.
    fn with(&self, extras: &Extras, dir: &TempDir) -> PathBuf {
        if extras.programs.is_empty() && extras.modules.is_empty() {
            return self.initramfs.clone();
        }
        let mut cpio = Cpio::default();
        for program in &extras.programs {
            cpio.program(program);
        }
        let modules: Vec<&str> = MODULES.iter().copied().chain(extras.modules.iter().map(String::as_str)).collect();
        self.kernel.put_modules(&modules, &mut cpio);
        let mut bytes = fs::read(&self.initramfs).expect("it was just built");
        bytes.extend(cpio.finish());
        let place = dir.join("initramfs");
        fs::write(&place, bytes).expect("there is room for a guest's files");
        place
    }
}

/// Builds the archive once a process.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = target_dir().join("guest");
        let kernel = Kernel::find(&root.join("root"));
        let mut cpio = Cpio::default();
        for directory in ["dev", "proc", "sys", "tmp"] {
            cpio.directory(directory);
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| fs::read(path).ok());
        let busybox = busybox.expect("busybox-static is installed; `cargo xtask test vm` sees to it");
        cpio.file("bin/busybox", 0o755, &busybox);
        for program in PROGRAMS {
            cpio.program(Path::new(program));
        }
        kernel.put_modules(MODULES, &mut cpio);
        cpio.file("init", 0o755, INIT.as_bytes());
        let initramfs = root.join(format!("initramfs.{}", std::process::id()));
        fs::write(&initramfs, cpio.finish()).expect("target/guest can be written");
        // Renamed whole, so that another process never boots half a file.
        let place = root.join("initramfs.cpio");
        fs::rename(&initramfs, &place).expect("both are in target/guest");
        Image { kernel, initramfs: place }
    })
}

/// The command lines that the README shows, for both of the switch's roles on the socket.
const README_SWITCH_LISTENS: &str = include_str!("../golden/readme/qemu-server.txt");
const README_SWITCH_CONNECTS: &str = include_str!("../golden/readme/qemu-client.txt");

/// The value behind each `option` of a README line, with the README's examples replaced.
fn readme_values<'a>(readme: &'a str, option: &'a str) -> impl Iterator<Item = &'a str> {
    let mut words = readme.split_whitespace().filter(|word| *word != "\\");
    std::iter::from_fn(move || {
        words.find(|word| *word == option)?;
        Some(words.next().expect("an option of QEMU has a value"))
    })
}

/// QEMU's arguments for the `index`th vhost-user device: the very lines of the README, with this device's socket and
/// address in place of the example's, and as many queues.
pub fn nic_arguments(index: usize, nic: &Nic, extras: &Extras) -> Vec<String> {
    let queue_pairs = extras.queue_pairs;
    let readme = match nic.role {
        QemuRole::Client => README_SWITCH_LISTENS,
        QemuRole::Server => README_SWITCH_CONNECTS,
    };
    let mut arguments = Vec::new();
    for option in ["-chardev", "-netdev", "-device"] {
        for value in readme_values(readme, option) {
            let value = value
                .replace("char0", &format!("char{index}"))
                .replace("net0", &format!("net{index}"))
                .replace("/run/qvs/vhost/vif-2", nic.socket.to_str().expect("socket paths are UTF-8"))
                .replace("52:54:00:00:00:02", &nic.mac);
            let more = match (option, queue_pairs) {
                ("-netdev", 2..) => format!(",queues={queue_pairs}"),
                ("-device", _) => {
                    let mq = (queue_pairs > 1).then_some("mq=on");
                    let properties = extras.properties.iter().map(String::as_str).chain(mq);
                    std::iter::once("vectors=0").chain(properties).map(|property| format!(",{property}")).collect()
                }
                _ => String::new(),
            };
            arguments.extend([option.to_owned(), value + &more]);
        }
    }
    arguments
}

/// QEMU's arguments that give a guest memory another process can map: the README's, with less of it.
fn memory_arguments() -> Vec<String> {
    let mut arguments = vec!["-m".to_owned(), MEMORY_MIB.to_string()];
    for option in ["-object", "-numa"] {
        for value in readme_values(README_SWITCH_LISTENS, option) {
            arguments.extend([option.to_owned(), value.replace("2048M", &format!("{MEMORY_MIB}M"))]);
        }
    }
    arguments
}

impl Guest {
    /// Boots a guest with these devices, `eth0` first, and returns when it takes commands.
    ///
    /// Runs on CPU 0, so that on two cores the switch has the other to itself.
    ///
    /// # Panics
    /// If it does not come up, with the end of its console.
    pub fn boot(name: &str, nics: &[Nic]) -> Guest {
        let starting = Guest::start(name, nics);
        starting.ready()
    }

    /// Starts to boot a guest; [`StartingGuest::ready`] waits for it. So several boot at a time.
    pub fn start(name: &str, nics: &[Nic]) -> StartingGuest {
        Guest::start_with(name, nics, &Extras::default())
    }

    /// The same, with more than a guest needs.
    pub fn start_with(name: &str, nics: &[Nic], extras: &Extras) -> StartingGuest {
        let image = image();
        let dir = TempDir::new();
        let initramfs = image.with(extras, &dir);
        let listener = UnixListener::bind(dir.join("control")).expect("our own short path");
        listener.set_nonblocking(true).expect("a fresh socket");
        let mut command = Command::new("taskset");
        command.args(["-c", "0", "qemu-system-x86_64", "-accel", "tcg", "-smp", "1"]);
        command.args(memory_arguments());
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&image.kernel.image).arg("-initrd").arg(&initramfs);
        // An emulated timer that comes too late on a busy machine is none to a kernel that checks it, and it panics.
        command.args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off net.ifnames=0 no_timer_check"]);
        command.arg("-serial").arg(format!("file:{}", dir.join("console").display()));
        command.arg("-chardev").arg(format!("socket,id=control,path={}", dir.join("control").display()));
        command.args(["-serial", "chardev:control"]);
        for (index, nic) in nics.iter().enumerate() {
            command.args(nic_arguments(index, nic, extras));
        }
        command.args(&extras.arguments);
        let qemu = Child::spawn(name, &mut command, &dir.join("qemu.log"));
        StartingGuest { name: name.to_owned(), listener, qemu, dir, deadline: Instant::now() + BOOT_LIMIT }
    }

    /// Runs a shell command, one line, and answers what it said.
    ///
    /// # Panics
    /// If it takes longer than 30 s or the guest is gone.
    pub fn run(&mut self, command: &str) -> Output {
        self.run_within(RUN_LIMIT, command)
    }

    /// The same with another limit.
    ///
    /// # Panics
    /// If it takes longer than `limit` or the guest is gone.
    pub fn run_within(&mut self, limit: Duration, command: &str) -> Output {
        self.begin(command);
        self.finish_within(limit)
    }

    /// Runs a command that must succeed and answers its output.
    ///
    /// # Panics
    /// If it fails, with its output.
    pub fn must(&mut self, command: &str) -> String {
        let output = self.run(command);
        assert_eq!(output.status, 0, "{}: `{command}` failed:\n{}", self.name, output.text);
        output.text
    }

    /// Starts a command without waiting for it; [`Guest::finish_within`] gets its output. Meanwhile no other can run.
    ///
    /// # Panics
    /// If the guest is gone, or the command has more than one line.
    pub fn begin(&mut self, command: &str) {
        assert!(!command.contains('\n'), "one command, one line");
        self.serial += 1;
        let line = format!("{} {command}\n", self.serial);
        if let Err(error) = self.control.write_all(line.as_bytes()) {
            panic!("{} is gone: {error}\n{}", self.name, self.story());
        }
    }

    /// Waits for what [`Guest::begin`] started.
    ///
    /// # Panics
    /// If it takes longer than `limit` or the guest is gone.
    pub fn finish_within(&mut self, limit: Duration) -> Output {
        let mark = format!("@@{} ", self.serial);
        let text = self.read_until(&mark, Instant::now() + limit);
        let status = self.read_until("\n", Instant::now() + limit);
        let status = status.trim().parse().unwrap_or_else(|_| panic!("{}: no exit status in {status:?}", self.name));
        Output { status, text: text.replace('\r', "") }
    }

    /// Text up to `mark`, which is taken too.
    fn read_until(&mut self, mark: &str, deadline: Instant) -> String {
        loop {
            if let Some(at) = find(&self.received, mark.as_bytes()) {
                let text = String::from_utf8_lossy(&self.received[..at]).into_owned();
                self.received.drain(..at + mark.len());
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let so_far = String::from_utf8_lossy(&self.received).into_owned();
                panic!("{}: no answer in time; so far: {so_far}\n{}", self.name, self.story());
            }
            self.control.set_read_timeout(Some(left)).expect("the limit is not zero");
            let mut chunk = [0; 4096];
            match self.control.read(&mut chunk) {
                Ok(0) => panic!("{} ended\n{}", self.name, self.story()),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => panic!("{}: {error}\n{}", self.name, self.story()),
            }
        }
    }

    /// What its console and QEMU said last.
    pub fn story(&self) -> String {
        format!("{}\n{}", log_tail("the console", &self.dir.join("console")), self.qemu.log_tail())
    }

    /// QEMU's process id.
    pub fn qemu_id(&self) -> u32 {
        self.qemu.id()
    }
}

/// A guest that is booting.
#[derive(Debug)]
pub struct StartingGuest {
    name: String,
    listener: UnixListener,
    qemu: Child,
    dir: TempDir,
    deadline: Instant,
}

impl StartingGuest {
    /// Waits until it takes commands.
    ///
    /// # Panics
    /// If it does not in time, with the end of its console.
    pub fn ready(self) -> Guest {
        let deadline = self.deadline;
        let mut guest = self.connected();
        guest.read_until("@@ready", deadline);
        guest.read_until("\n", deadline);
        guest
    }

    /// Waits for QEMU alone: the guest in it comes from elsewhere and takes commands once it is there.
    ///
    /// # Panics
    /// If QEMU ends, or does not connect its control line.
    pub fn connected(mut self) -> Guest {
        let limit = self.deadline.saturating_duration_since(Instant::now());
        let accepted = wait_for(limit, || match self.listener.accept() {
            Ok((stream, _)) => Some(Ok(stream)),
            Err(_) => self.qemu.ended().map(Err),
        });
        let control = match accepted {
            Some(Ok(control)) => control,
            Some(Err(status)) => panic!("QEMU of {} ended at once: {status}\n{}", self.name, self.qemu.log_tail()),
            None => panic!("QEMU of {} does not connect its control line\n{}", self.name, self.qemu.log_tail()),
        };
        control.set_nonblocking(false).expect("a connected socket");
        let StartingGuest { name, qemu, dir, .. } = self;
        Guest { name, qemu, control, received: Vec::new(), serial: 0, dir }
    }
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_arguments_are_those_of_the_readme() {
        let nic = |role| Nic { socket: "/s".into(), role, mac: "02:00:00:00:00:01".into() };
        let expected = |how: &str| {
            let chardev = format!("socket,id=char3,path=/s,{how}");
            let device = "virtio-net-pci,netdev=net3,mac=02:00:00:00:00:01,vectors=0".to_owned();
            let netdev = "vhost-user,id=net3,chardev=char3".to_owned();
            ["-chardev".to_owned(), chardev, "-netdev".to_owned(), netdev, "-device".to_owned(), device]
        };
        assert_eq!(nic_arguments(3, &nic(QemuRole::Client), &Extras::default()), expected("reconnect=1"));
        assert_eq!(nic_arguments(3, &nic(QemuRole::Server), &Extras::default()), expected("server=on,wait=off"));
        let many = nic_arguments(3, &nic(QemuRole::Client), &Extras { queue_pairs: 4, ..Extras::default() });
        assert!(many[3].ends_with(",queues=4") && many[5].ends_with(",mq=on"), "{many:?}");
        let memory = "memory-backend-memfd,id=mem,size=256M,share=on";
        assert_eq!(memory_arguments(), ["-m", "256", "-object", memory, "-numa", "node,memdev=mem"]);
    }
}
