//! What a guest that misbehaves costs a healthy pair: beside each class of misbehaviour, a polite guest that takes as much
//! of the first CPU and sends at the same turns.
//!
//! All three are members of one network. The pair sends a million frames a second through one worker; what its two queues cost
//! that worker comes from the switch's own books, which sample them.

use crate::frames::Layout;
use crate::options::Options;
use crate::peers::Peer;
use crate::report::{Figure, Page, Sample, load};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::generator::run;
use tests::hostile::{Class, Deeds, misbehave};
use vhost::net::F_RING_PACKED;

/// The pair, and the guest beside it.
const PAIR: [&str; 2] = ["a", "b"];
const BESIDE: &str = "c";

/// Families of the switch's metrics.
const FRAMES: &str = "qvs_port_packets_total{";
const BUSY_NS: &str = "qvs_queue_busy_nanoseconds_total{";
const WORKER_FRAMES: &str = "qvs_worker_packets_total{";
const WORKER_BATCHES: &str = "qvs_worker_batches_total{";
/// Layouts of the rings of the guest beside the pair, whose own are split.
pub(crate) const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];

/// The name by which the page keeps what a class costs, and what the polite guest beside it does.
pub(crate) fn finding(class: Class, layout: Layout) -> [String; 2] {
    let name = match layout {
        Layout::Split => format!("beside {class:?}"),
        Layout::Packed => format!("beside {class:?}, packed"),
    };
    [format!("{name}, polite"), name]
}

/// Pause between two looks at the books.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What one measurement came to.
struct Found {
    cycles: Option<f64>,
    fill: Option<f64>,
    loss: f64,
    offered_mpps: f64,
    deeds: Deeds,
}

/// Samples of one side.
#[derive(Default)]
struct Samples {
    cycles: Sample,
    fill: Sample,
    loss: Sample,
    turns: Sample,
}

impl Samples {
    fn add(&mut self, found: &Found) {
        found.cycles.into_iter().for_each(|cycles| self.cycles.add(cycles));
        found.fill.into_iter().for_each(|fill| self.fill.add(fill));
        self.loss.add(found.loss);
        self.turns.add(found.deeds.turns as f64);
    }

    fn cells(&self, digits: usize) -> String {
        format!("{} | {}", self.cycles.brief(0), self.loss.brief(digits))
    }
}

/// What the switch says of the pair's queues so far.
#[derive(Clone, Copy)]
struct Books {
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
        Some(Books { frames: sum(FRAMES)?, ns: sum(BUSY_NS)?, all, batches })
    }
}

/// The pair at its rate, with a guest of this class beside it.
fn measure_once(daemon: &Daemon, class: Class, layout: Layout, cpu_permille: u64, seconds: f64) -> Found {
    let features = if layout == Layout::Packed { F_RING_PACKED } else { 0 };
    let [first, second] = PAIR.map(|name| daemon.path(name).display().to_string());
    let rate = "--huge-pages --rate 500kpps --discard-off-cpu --warm-up 0.2";
    let line = format!("{first} {second} {rate} --seconds {seconds}");
    let is_over = AtomicBool::new(false);
    let (report, deeds, books) = thread::scope(|scope| {
        let guest = scope.spawn(|| {
            switch::affinity::pin(0).expect("CPU 0 is ours");
            misbehave(&daemon.path(BESIDE), class, features, cpu_permille, &is_over)
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
    let mhz = daemon.show("workers")[0]["cpu_mhz"].as_f64();
    let cycles = books.first().zip(books.last()).zip(mhz).and_then(|((begin, end), mhz)| {
        let frames = end.frames - begin.frames;
        (frames > 0.0).then(|| (end.ns - begin.ns) * mhz / 1e3 / frames)
    });
    let fill = books.first().zip(books.last()).and_then(|(begin, end)| {
        let batches = end.batches - begin.batches;
        (batches > 0.0).then(|| (end.all - begin.all) / batches)
    });
    let figure = |name: &str| report[name].as_f64().expect("a report has it");
    Found { cycles, fill, loss: figure("loss"), offered_mpps: figure("offered_mpps"), deeds }
}

/// The table of classes.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "A guest that misbehaves beside a healthy pair",
        "The pair sends 0.5 million frames a second each way, one worker, one network; cycles of the nominal clock that \
         the worker spends on a frame of the pair, and the pair's loss, where generator and sink were on their CPU. The \
         polite guest burns as much of that CPU as the other took. At most 10 % more cycles and no additional loss are \
         aimed at. A guest that sends less leaves the worker shorter rounds, so that the pair's frames come in smaller batches \
         and each costs more of what a round costs: frames a batch, of all three, tell how much of a difference is that.",
        "| class | rings | polite: cycles | loss | misbehaving: cycles | loss | ratio | frames a batch, polite | misbehaving | turns, polite and not | offered Mpps | load |",
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
        for _ in 0..options.rounds {
            let found = measure_once(&daemon, class, layout, 0, options.seconds);
            let control = measure_once(&daemon, Class::Polite, layout, found.deeds.cpu_permille, options.seconds);
            hostile.add(&found);
            polite.add(&control);
            offered.add(found.offered_mpps);
        }
        for (name, samples) in finding(class, layout).iter().zip([&polite, &hostile]) {
            page.keep(name, Figure::Cycles, Peer::Qvs, &samples.cycles);
            page.keep(name, Figure::Loss, Peer::Qvs, &samples.loss);
        }
        let ratio = if hostile.cycles.is_empty() || polite.cycles.is_empty() {
            "–".to_owned()
        } else {
            format!("{:.2}", hostile.cycles.median() / polite.cycles.median())
        };
        page.line(&format!(
            "| {class:?} | {layout:?} | {} | {} | {ratio} | {} | {} | {:.0}, {:.0} | {} | {} |",
            polite.cells(6),
            hostile.cells(6),
            polite.fill.brief(2),
            hostile.fill.brief(2),
            polite.turns.median(),
            hostile.turns.median(),
            offered.brief(2),
            load()
        ));
    }
}
