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
use tests::generator::run;
use tests::hostile::{Class, Deeds, Load, misbehave};
use vhost::net::F_RING_PACKED;

/// The pair, and the guest beside it.
const PAIR: [&str; 2] = ["a", "b"];
const BESIDE: &str = "c";

/// Families of the switch's metrics.
const FRAMES: &str = "qvs_port_packets_total{";
const BUSY_NS: &str = "qvs_queue_busy_nanoseconds_total{";
const WORKER_FRAMES: &str = "qvs_worker_packets_total{";
const WORKER_BATCHES: &str = "qvs_worker_batches_total{";
/// The name of the switch's threads for sockets.
const SESSION_THREAD: &str = "vhost-session";
/// Layouts of the rings of the guest beside the pair, whose own are split.
pub(crate) const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];

/// The name by which the page keeps what a class costs: [`Figure::Times`] and [`Figure::MoreLoss`], alternation by alternation,
/// each against the polite guest that followed.
pub(crate) fn finding(class: Class, layout: Layout) -> String {
    match layout {
        Layout::Split => format!("beside {class:?}"),
        Layout::Packed => format!("beside {class:?}, packed"),
    }
}

/// How many short alternations stand for one of the other tables: what the machine does to cycles within a minute is more than
/// what is looked for, and evens out over many.
const SHORT: u32 = 4;
/// Frames of the pair that come together.
const TRAIN: usize = 32;

/// Pause between two looks at the books.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What one measurement came to.
struct Found {
    cycles: Option<f64>,
    fill: Option<f64>,
    loss: f64,
    offered_mpps: f64,
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
}

impl Samples {
    fn add(&mut self, found: &Found) {
        found.cycles.into_iter().for_each(|cycles| self.cycles.add(cycles));
        found.fill.into_iter().for_each(|fill| self.fill.add(fill));
        self.loss.add(found.loss);
        self.turns.add(found.deeds.turns as f64);
        self.beside.add(found.load.frames / 1e3);
        self.cpu.add(found.load.cpu_permille as f64 / 10.0);
    }

    fn cells(&self, digits: usize) -> String {
        format!("{} | {}", self.cycles.brief(0), self.loss.brief(digits))
    }
}

/// What the switch says so far.
#[derive(Clone, Copy)]
struct Books {
    at: Instant,
    /// Of the guest beside the pair.
    beside: f64,
    /// Of the pair's queues.
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
        let value = |family: &str, name: &str| {
            let labels = [format!("interface=\"{name}\""), "direction=\"rx\"".to_owned()];
            let wanted = if family == FRAMES { &labels[..] } else { &labels[..1] };
            let is_it = |line: &&str| line.starts_with(family) && wanted.iter().all(|label| line.contains(label));
            text.lines().find(is_it)?.rsplit(' ').next()?.parse::<f64>().ok()
        };
        let sum = |family: &str| PAIR.iter().map(|name| value(family, name)).sum::<Option<f64>>();
        let of_worker = |family: &str| {
            let line = text.lines().find(|line| line.starts_with(family))?;
            line.rsplit(' ').next()?.parse::<f64>().ok()
        };
        let (all, batches) = (of_worker(WORKER_FRAMES)?, of_worker(WORKER_BATCHES)?);
        let beside = value(FRAMES, BESIDE)?;
        Some(Books { at: Instant::now(), beside, frames: sum(FRAMES)?, ns: sum(BUSY_NS)?, all, batches })
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

/// The pair at its rate, with a guest of this class beside it.
fn measure_once(daemon: &Daemon, class: Class, layout: Layout, load: Load, seconds: f64) -> Found {
    let features = if layout == Layout::Packed { F_RING_PACKED } else { 0 };
    let [first, second] = PAIR.map(|name| daemon.path(name).display().to_string());
    let rate = "--huge-pages --rate 500kpps --discard-off-cpu --warm-up 0.2";
    let line = format!("{first} {second} {rate} --train {TRAIN} --seconds {seconds}");
    let is_over = AtomicBool::new(false);
    let (begun, session_before) = (Instant::now(), session_ns(daemon));
    let (report, deeds, books) = thread::scope(|scope| {
        let guest = scope.spawn(|| {
            switch::affinity::pin(0).expect("CPU 0 is ours");
            misbehave(&daemon.path(BESIDE), class, features, load, &is_over)
        });
        let generator = scope.spawn(|| run(&line));
        // The books close when the pair leaves.
        let mut books = Vec::new();
        while !generator.is_finished() {
            books.extend(Books::read(daemon));
            thread::sleep(LOOK_PAUSE);
        }
        is_over.store(true, Ordering::Relaxed);
        let report = generator.join().expect("it does not panic");
        (report, guest.join().expect("it does not panic"), books)
    });
    let session_share = (session_ns(daemon) - session_before) as f64 / begun.elapsed().as_nanos() as f64;
    let mhz = daemon.show("workers")[0]["cpu_mhz"].as_f64();
    let cycles = books.first().zip(books.last()).zip(mhz).and_then(|((begin, end), mhz)| {
        let frames = end.frames - begin.frames;
        (frames > 0.0).then(|| (end.ns - begin.ns) * mhz / 1e3 / frames)
    });
    let fill = books.first().zip(books.last()).and_then(|(begin, end)| {
        let batches = end.batches - begin.batches;
        (batches > 0.0).then(|| (end.all - begin.all) / batches)
    });
    let beside = books.first().zip(books.last()).map_or(0.0, |(begin, end)| {
        let seconds = (end.at - begin.at).as_secs_f64();
        if seconds > 0.0 { (end.beside - begin.beside) / seconds } else { 0.0 }
    });
    let cpu_permille = deeds.cpu_permille + (session_share * 1e3) as u64;
    let figure = |name: &str| report[name].as_f64().expect("a report has it");
    let boots = deeds.sessions.saturating_sub(1) as f64 / begun.elapsed().as_secs_f64();
    let load = Load { cpu_permille, frames: beside, boots };
    Found { cycles, fill, loss: figure("loss"), offered_mpps: figure("offered_mpps"), deeds, load }
}

/// The table of classes.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "A guest that misbehaves beside a healthy pair",
        "The pair sends 0.5 million frames a second each way in trains of 32, one worker, one network; cycles of the nominal clock that \
         the worker spends on a frame of the pair, and the pair's loss, where generator and sink were on their CPU. The \
         polite guest sends as many frames a second as the switch took from the other, and burns as much of the generator's \
         CPU as that guest and the switch's thread for its socket took; as often as that one connects anew, it makes a guest's memory that \
         the switch does not see. Of each alternation the cycles are held against those of its own \
         control, which follows at once: what the machine does to cycles from minute to minute is in both; the ratio is the \
         median of these, with its quartiles. At most 10 % more cycles and no additional loss are aimed at. Frames a batch are those of all three.",
        "| class | rings | polite: cycles | loss | misbehaving: cycles | loss | ratio | frames a batch, polite | misbehaving | frames a second from that guest, thousands, polite | misbehaving | CPU, %, polite | misbehaving | turns, polite and not | offered Mpps | load |",
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
        let seconds = options.seconds / f64::from(SHORT);
        for _ in 0..SHORT * options.rounds {
            let found = measure_once(&daemon, class, layout, Load::FULL, seconds);
            let control = measure_once(&daemon, Class::Polite, layout, found.load, seconds);
            hostile.add(&found);
            polite.add(&control);
            if let (Some(cycles), Some(usual)) = (found.cycles, control.cycles) {
                ratios.add(cycles / usual);
                more_loss.add(found.loss - control.loss);
            }
            offered.add(found.offered_mpps);
        }
        let name = finding(class, layout);
        page.keep(&name, Figure::Times, Peer::Qvs, &ratios);
        page.keep(&name, Figure::MoreLoss, Peer::Qvs, &more_loss);
        let ratio = ratios.middle(2);
        page.line(&format!(
            "| {class:?} | {layout:?} | {} | {} | {ratio} | {} | {} | {} | {} | {} | {} | {:.0}, {:.0} | {} | {} |",
            polite.cells(6),
            hostile.cells(6),
            polite.fill.brief(2),
            hostile.fill.brief(2),
            polite.beside.brief(0),
            hostile.beside.brief(0),
            polite.cpu.brief(0),
            hostile.cpu.brief(0),
            polite.turns.median(),
            hostile.turns.median(),
            offered.brief(2),
            load()
        ));
    }
}
