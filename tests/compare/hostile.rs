//! What a guest that misbehaves costs a healthy pair: beside each class of misbehaviour, a polite guest of equal load.
//!
//! Equal is what the switch and the pair's generator get to feel, but for the misbehaviour: as many frames a second that the switch
//! takes from it, and as much of the first CPU, on which the generator runs too, by the guest's own thread and by the
//! switch's thread for its socket. The pair's frames come in trains: were they evenly spaced, a guest whose ring has been stopped
//! would shorten the worker's rounds, fewer frames would be waiting at each, and each would cost more of what a round
//! costs. That is so beside any guest with less to say, and no harm that this one does.
//!
//! All three are members of one network. The pair sends a million frames a second through one worker; what its two queues cost
//! that worker comes from the switch's own books, which sample them.
//!
//! Loss is held against a control run of the generator; cycles are held against each other in short slices of one run, in which
//! the two guests take turns, for what this machine does to cycles from one second to the next is more than what is looked for.

use crate::frames::Layout;
use crate::options::Options;
use crate::peers::Peer;
use crate::report::{Figure, Page, Sample, load};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::daemon::Daemon;
use tests::generator::{Running, run};
use tests::hostile::{Class, Deeds, Load, misbehave};
use tests::process::wait_until;
use vhost::net::F_RING_PACKED;

/// The pair, and the guest beside it.
const PAIR: [&str; 2] = ["a", "b"];
const BESIDE: &str = "c";

/// Families of the switch's metrics.
const FRAMES: &str = "qvs_port_packets_total{";
const DROPS: &str = "qvs_port_drops_total{";
const BUSY_NS: &str = "qvs_queue_busy_nanoseconds_total{";
const BUSY_FRAMES: &str = "qvs_queue_busy_packets_total{";
const WORKER_FRAMES: &str = "qvs_worker_packets_total{";
const WORKER_BATCHES: &str = "qvs_worker_batches_total{";
/// The name of the switch's threads for sockets.
const SESSION_THREAD: &str = "vhost-session";
/// Layouts of the rings of the guest beside the pair, whose own are split.
pub(crate) const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];

/// The name by which the page keeps what a class costs: [`Figure::Times`] slice by slice, [`Figure::MoreLoss`] run by run, each
/// against the polite guest that followed.
pub(crate) fn finding(class: Class, layout: Layout) -> String {
    match layout {
        Layout::Split => format!("beside {class:?}"),
        Layout::Packed => format!("beside {class:?}, packed"),
    }
}

/// Slices of each of the two guests in an alternation.
const SLICES: u32 = 16;
/// How long a guest has been at it when its slice begins, which is longer than it takes to connect.
const SETTLE: Duration = Duration::from_millis(40);
const SLICE: Duration = Duration::from_millis(100);
/// How long the pair may take to be under way.
const START_LIMIT: Duration = Duration::from_secs(10);
/// A generator that runs for as long as is needed is stopped by whoever started it.
const UNTIL_STOPPED: f64 = 3600.0;
/// Frames of the pair that come together.
const TRAIN: usize = 32;

/// What one slice came to.
struct Found {
    /// Cycles that a frame of the pair cost; nothing if none was sampled.
    cycles: Option<f64>,
    fill: Option<f64>,
    /// Frames to the pair, and those of them that the switch dropped, whoever had no CPU.
    sent: f64,
    dropped: f64,
    deeds: Deeds,
    /// What a polite guest is to do to be its equal.
    load: Load,
}

/// Samples of one side.
#[derive(Default)]
struct Samples {
    cycles: Sample,
    fill: Sample,
    loss: Sample,
    turns: Sample,
    beside: Sample,
    cpu: Sample,
    left_out: Sample,
    sent: f64,
    dropped: f64,
}

impl Samples {
    fn add(&mut self, found: &Found) {
        self.sent += found.sent;
        self.dropped += found.dropped;
        found.cycles.into_iter().for_each(|cycles| self.cycles.add(cycles));
        found.fill.into_iter().for_each(|fill| self.fill.add(fill));
        self.turns.add(found.deeds.turns as f64);
        self.beside.add(found.load.frames / 1e3);
        self.cpu.add(found.load.cpu_permille as f64 / 10.0);
    }

    fn cells(&self) -> String {
        let all = self.dropped / (self.sent + self.dropped).max(1.0);
        format!("{} | {} | {all:.1e}", self.cycles.middle(0), self.loss.brief(6))
    }
}

/// What the switch says so far.
#[derive(Clone, Copy)]
struct Books {
    at: Instant,
    /// Of the guest beside the pair.
    beside: f64,
    /// Frames to the pair that arrived, and that did not.
    sent: f64,
    dropped: f64,
    /// Frames of the pair's queues that were timed.
    frames: f64,
    /// Time that these frames took.
    ns: f64,
    /// Of all ports, and in how many batches they came.
    all: f64,
    batches: f64,
}

impl Books {
    /// As they stand; `None` while one of the pair is not connected.
    fn read(daemon: &Daemon) -> Option<Books> {
        let mut stream = UnixStream::connect(daemon.admin_socket()).expect("the daemon runs");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: qvs\r\nConnection: close\r\n\r\n").expect("it listens");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("metrics are text");
        let values = |family: &str, labels: &[String]| {
            let is_it =
                |line: &&str| line.starts_with(family) && labels.iter().all(|label| line.contains(label.as_str()));
            let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
            text.lines().filter(is_it).filter_map(value).collect::<Vec<_>>()
        };
        let interface = |name: &str| format!("interface=\"{name}\"");
        let direction = |way: &str| format!("direction=\"{way}\"");
        let queues = |family: &str| {
            let found = PAIR.map(|name| values(family, &[interface(name)]).first().copied());
            found.into_iter().sum::<Option<f64>>()
        };
        let to_pair =
            |family: &str| PAIR.iter().flat_map(|name| values(family, &[interface(name), direction("tx")])).sum();
        let first = |family: &str, labels: &[String]| values(family, labels).first().copied();
        Some(Books {
            at: Instant::now(),
            beside: first(FRAMES, &[interface(BESIDE), direction("rx")])?,
            sent: to_pair(FRAMES),
            dropped: to_pair(DROPS),
            frames: queues(BUSY_FRAMES)?,
            ns: queues(BUSY_NS)?,
            all: first(WORKER_FRAMES, &[])?,
            batches: first(WORKER_BATCHES, &[])?,
        })
    }
}

/// CPU time so far of the threads that serve sockets, ns (Documentation/scheduler/sched-stats.rst).
fn session_ns(daemon: &Daemon) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("the daemon runs").flatten();
    let sessions = tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == SESSION_THREAD));
    let spent = |task: fs::DirEntry| {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split_whitespace().next()?.parse::<u64>().ok()
    };
    sessions.filter_map(spent).sum()
}

/// What the generator does with the pair.
fn pair(daemon: &Daemon, seconds: f64) -> String {
    let [first, second] = PAIR.map(|name| daemon.path(name).display().to_string());
    let rate = "--huge-pages --rate 500kpps --discard-off-cpu --warm-up 0.2";
    format!("{first} {second} {rate} --train {TRAIN} --seconds {seconds}")
}

/// Has a guest of this class at it for as long as something else takes.
fn beside<T>(daemon: &Daemon, class: Class, layout: Layout, load: Load, work: impl FnOnce() -> T) -> (T, Deeds) {
    let features = if layout == Layout::Packed { F_RING_PACKED } else { 0 };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            switch::affinity::pin(0).expect("CPU 0 is ours");
            misbehave(&daemon.path(BESIDE), class, features, load, &is_over)
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        (done, guest.join().expect("it does not panic"))
    })
}

/// What a guest of this class costs the pair, which is under way.
fn slice(daemon: &Daemon, class: Class, layout: Layout, load: Load) -> Found {
    let (begun, session_before) = (Instant::now(), session_ns(daemon));
    let (books, deeds) = beside(daemon, class, layout, load, || {
        thread::sleep(SETTLE);
        let begin = Books::read(daemon);
        thread::sleep(SLICE);
        begin.zip(Books::read(daemon))
    });
    let session_share = (session_ns(daemon) - session_before) as f64 / begun.elapsed().as_nanos() as f64;
    let (begin, end) = books.expect("the pair is under way");
    let mhz = daemon.show("workers")[0]["cpu_mhz"].as_f64();
    let part = |whole: f64, of: f64| (of > 0.0).then(|| whole / of);
    let cycles = mhz.zip(part(end.ns - begin.ns, end.frames - begin.frames)).map(|(mhz, ns)| ns * mhz / 1e3);
    let fill = part(end.all - begin.all, end.batches - begin.batches);
    let frames = (end.beside - begin.beside) / (end.at - begin.at).as_secs_f64();
    let cpu_permille = deeds.cpu_permille + (session_share * 1e3) as u64;
    let boots = deeds.sessions.saturating_sub(1) as f64 / begun.elapsed().as_secs_f64();
    let (sent, dropped) = (end.sent - begin.sent, end.dropped - begin.dropped);
    Found { cycles, fill, sent, dropped, deeds, load: Load { cpu_permille, frames, boots } }
}

/// The table of classes.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "A guest that misbehaves beside a healthy pair",
        "The pair sends 0.5 million frames a second each way in trains of 32, one worker, one network; cycles of the nominal clock that \
         the worker spends on a frame of the pair, and the pair's loss, where generator and sink were on their CPU. The \
         polite guest sends as many frames a second as the switch took from the other, and burns as much of the generator's \
         CPU as that guest and the switch's thread for its socket took; as often as that one connects anew, it makes a guest's memory that \
         the switch does not see. The two take turns of 0.1 s beside the same running pair; the ratio is the median of those of \
         neighbouring turns. Cycles are shown with their quartiles. Loss comes from a run of its own beside each, and from windows of 1 ms in which \
         the pair's generator was on its CPU; loss in all is what the switch dropped for the pair in all turns, which tells of that CPU as well. At most 10 % more cycles and no additional loss are aimed at. Frames a batch are those of all three.",
        "| class | rings | polite: cycles | loss | in all | misbehaving: cycles | loss | in all | ratio | frames a batch, polite | misbehaving | frames a second from that guest, thousands, polite | misbehaving | CPU, %, polite | misbehaving | turns, polite and not | windows left out, %, polite and not | offered Mpps | load |",
    );
    let daemon = Daemon::start("poll = \"always\"");
    let tenant = daemon.tenant("compare");
    let network = tenant.network("lan");
    let names = [PAIR[0], PAIR[1], BESIDE];
    for name in names {
        daemon.must(&format!("plug {name} --vhost-user {}", daemon.path(name).display()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&names);
    for (class, layout) in Class::HOSTILE.into_iter().flat_map(|class| LAYOUTS.map(|layout| (class, layout))) {
        let (mut polite, mut hostile, mut offered) = (Samples::default(), Samples::default(), Sample::default());
        let (mut ratios, mut more_loss) = (Sample::default(), Sample::default());
        for _ in 0..options.rounds {
            let generator = Running::start(&format!("{} --cpu 0", pair(&daemon, UNTIL_STOPPED)));
            let mut before = None;
            wait_until("the pair is under way", START_LIMIT, || {
                Books::read(&daemon).is_some_and(|books| books.frames > *before.get_or_insert(books.frames))
            });
            let mut load = Load::FULL;
            for _ in 0..SLICES {
                let found = slice(&daemon, class, layout, Load::FULL);
                let control = slice(&daemon, Class::Polite, layout, found.load);
                load = found.load;
                hostile.add(&found);
                polite.add(&control);
                if let (Some(cycles), Some(usual)) = (found.cycles, control.cycles) {
                    ratios.add(cycles / usual);
                }
            }
            drop(generator);
            let mut lost = |side: &mut Samples, class, load| {
                let line = pair(&daemon, options.seconds / 2.0);
                let (report, _) = beside(&daemon, class, layout, load, || run(&line));
                let off = &report["off_cpu"];
                let count = |name: &str| off[name].as_f64().expect("a report has it");
                side.left_out.add(100.0 * count("windows_disturbed") / count("windows").max(1.0));
                let mpps = report["offered_mpps"].as_f64().expect("a report has it");
                offered.add(mpps);
                // A run without a window that counts tells nothing of loss.
                let loss = report["loss"].as_f64().filter(|_| mpps > 0.0)?;
                side.loss.add(loss);
                Some(loss)
            };
            let losses = (lost(&mut hostile, class, Load::FULL), lost(&mut polite, Class::Polite, load));
            if let (Some(loss), Some(usual)) = losses {
                more_loss.add(loss - usual);
            }
        }
        let name = finding(class, layout);
        page.keep(&name, Figure::Times, Peer::Qvs, &ratios);
        page.keep(&name, Figure::MoreLoss, Peer::Qvs, &more_loss);
        let ratio = ratios.middle(2);
        page.line(&format!(
            "| {class:?} | {layout:?} | {} | {} | {ratio} | {} | {} | {} | {} | {} | {} | {:.0}, {:.0} | {:.0}, {:.0} | {} | {} |",
            polite.cells(),
            hostile.cells(),
            polite.fill.brief(2),
            hostile.fill.brief(2),
            polite.beside.brief(0),
            hostile.beside.brief(0),
            polite.cpu.brief(0),
            hostile.cpu.brief(0),
            polite.turns.median(),
            hostile.turns.median(),
            polite.left_out.median(),
            hostile.left_out.median(),
            offered.brief(2),
            load()
        ));
    }
}
