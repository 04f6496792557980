//! Which links of a bonded uplink are used: by carrier alone (active-backup), or by what the other end says (LACP).
//!
//! The frames are carried elsewhere (`switch/src/bond.rs`); here one thread a bond follows the kernel's word about each link, speaks
//! LACP on packet sockets beside the ports, and says which links send and receive. What is hard is to be quick without being
//! hasty: a carrier that goes is acted on as soon as the kernel tells it, while one that comes back changes nothing as long
//! as the link in use is well (active-backup stays where it is), or has to be agreed on first (LACP).
//!
//! When active-backup moves to another link, the switches beyond still send to the old one. So everybody whom they know by us is
//! announced on the new one (`announce`), several times: a frame may be lost while links change, and Open vSwitch learns as much as half
//! a second late from frames that came before the move. With LACP the other end moves at once by itself.
//!
//! Bounds: a look at least every [`LOOK_PAUSE`]; [`FRAMES_PER_LOOK`] frames of a link a look, and none again for [`HEAR_PAUSE`]. The
//! thread ends when the bond is dropped.

pub(crate) mod lacp;

use lacp::{Lacp, LinkView, Rate};
use pipelines::wire::lacp::{FRAME_LEN, GROUP, Slow, TYPE_SLOW, answer_marker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use switch::bond::{Bond, Links};
use switch::ids::MacAddr;
use switch::link::LinkWatch;

/// Longest pause between two looks; an interface that comes is found by these.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Frames of one link taken in one look: several times what a partner may send in that time.
const FRAMES_PER_LOOK: usize = 16;
/// Between two looks at what partners say. Who floods us with it costs no more than so many looks; a carrier's news do not wait.
const HEAR_PAUSE: Duration = Duration::from_millis(10);

/// Pauses before everybody is announced again.
const ANNOUNCE_PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(500)];

/// By what links are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// One at a time: the first that has a carrier, until it has none.
    ActiveBackup,
    /// As many as the other end agrees to.
    Lacp(Rate),
}

/// How a link does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LinkStatus {
    /// The interface.
    pub(crate) interface: String,
    /// Whether it is open and has a carrier.
    pub(crate) is_up: bool,
    /// Whether frames are sent by it, and received.
    pub(crate) is_sending: bool,
    pub(crate) is_receiving: bool,
    /// What LACP knows; `None` without LACP.
    pub(crate) lacp: Option<LinkView>,
}

/// A bond that is followed as long as this lives.
pub(crate) struct Following {
    bond: Arc<Bond>,
    status: Mutex<Vec<LinkStatus>>,
}

impl Following {
    /// Starts to follow the links of these interfaces. `announce` is called when, by active-backup, another link is
    /// used than before, and some times more.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(
        bond: Arc<Bond>,
        interfaces: &[String],
        mode: Mode,
        announce: impl Fn() + Send + 'static,
    ) -> std::io::Result<Arc<Following>> {
        let following = Arc::new(Following { bond, status: Mutex::default() });
        let ends =
            interfaces.iter().map(|name| End { name: name.clone(), watch: None, lacp: None, mac: None }).collect();
        let machine = match mode {
            Mode::ActiveBackup => Machine::ActiveBackup { active: None },
            Mode::Lacp(rate) => Machine::Lacp { rate, lacp: None },
        };
        let mut shift = Shift {
            ends,
            machine,
            used: [0; 2],
            deaf_until: Instant::now(),
            known_by: 0,
            announcing: None,
            announce: Box::new(announce),
        };
        let weak = Arc::downgrade(&following);
        std::thread::Builder::new().name("bond".into()).spawn(move || shift.run(&weak))?;
        Ok(following)
    }

    /// How the links do.
    pub(crate) fn status(&self) -> Vec<LinkStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Our end of one link.
struct End {
    name: String,
    watch: Option<LinkWatch>,
    lacp: Option<RawSocket>,
    mac: Option<MacAddr>,
}

impl End {
    /// Looks whether the interface has a carrier.
    fn look(&mut self) -> bool {
        if self.watch.is_none() {
            self.watch = LinkWatch::open(&self.name).ok().flatten();
        }
        let status = self.watch.as_ref().and_then(LinkWatch::status);
        if status.is_none() {
            (self.watch, self.lacp) = (None, None);
        }
        self.mac = status.as_ref().map(|status| status.mac);
        status.is_some_and(|status| status.has_carrier)
    }

    /// Takes what came by LACP's socket, which is opened where there is none; answers whether anything did.
    fn hear(&mut self, mut take: impl FnMut(Slow)) -> bool {
        if self.watch.is_some() && self.lacp.is_none() {
            match RawSocket::open_group(&self.name, TYPE_SLOW, GROUP) {
                Ok(socket) => self.lacp = Some(socket),
                Err(error) => tracing::debug!(link = self.name, %error, "no socket for LACP"),
            }
        }
        let Some(socket) = &self.lacp else { return false };
        let mut frame = [0; FRAME_LEN];
        for number in 0..FRAMES_PER_LOOK {
            // An error is told once, as when the interface went down: its watch tells as much.
            let Ok(Some((len, is_own))) = socket.receive_own(&mut frame) else { return number > 0 };
            // What a tenant puts behind a tag is his own: LACPDUs "shall not be tagged" (IEEE 802.1AX-2008 section 5.4.2.2).
            let Some(slow) = Slow::read(&frame[..len]).ok().filter(|_| is_own) else { continue };
            if slow == Slow::Marker {
                let _ = socket.send(&answer_marker(&frame, socket.mac()));
            }
            take(slow);
        }
        true
    }
}

enum Machine {
    ActiveBackup {
        active: Option<usize>,
    },
    /// `None` until an interface is there whose MAC is the system's.
    Lacp {
        rate: Rate,
        lacp: Option<Lacp>,
    },
}

/// What the thread has.
struct Shift {
    ends: Vec<End>,
    machine: Machine,
    used: [Links; 2],
    /// When partners may be heard again.
    deaf_until: Instant,
    /// The links by which the other end saw us last.
    known_by: Links,
    /// When everybody is announced next, and how often that was done since the last move.
    announcing: Option<(Instant, usize)>,
    announce: Box<dyn Fn() + Send>,
}

impl Shift {
    fn run(&mut self, following: &Weak<Following>) {
        while let Some(following) = following.upgrade() {
            let now = Instant::now();
            let open = following.bond.open_links();
            let up: Vec<bool> =
                self.ends.iter_mut().enumerate().map(|(at, end)| end.look() && open & 1 << at != 0).collect();
            let next = self.decide(&up, now);
            let usable = self.usable();
            if usable != self.used {
                following.bond.use_links(usable[0], usable[1]);
                tracing::info!(links = self.names(usable[0]), "the bond sends by");
                self.used = usable;
                if usable[0] != 0 && usable[0] != self.known_by {
                    let is_moved = self.known_by != 0 && matches!(self.machine, Machine::ActiveBackup { .. });
                    self.known_by = usable[0];
                    if is_moved {
                        self.announcing = Some((now, 0));
                    }
                }
            }
            if let Some((due, count)) = self.announcing
                && due <= now
            {
                (self.announce)();
                self.announcing = ANNOUNCE_PAUSES.get(count).map(|&pause| (now + pause, count + 1));
            }
            *following.status.lock().unwrap_or_else(PoisonError::into_inner) = self.status(&up);
            drop(following);
            let due = self.announcing.map(|(due, _)| due);
            let next = next.into_iter().chain(due).min();
            self.wait(next.map_or(LOOK_PAUSE, |next| next.saturating_duration_since(now).min(LOOK_PAUSE)));
        }
    }

    fn names(&self, links: Links) -> String {
        let used = self.ends.iter().enumerate().filter(|(at, _)| links & 1 << at != 0);
        let names: Vec<&str> = used.map(|(_, end)| end.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" and ") }
    }

    /// Follows the links; answers when something is to be done next.
    fn decide(&mut self, up: &[bool], now: Instant) -> Option<Instant> {
        match &mut self.machine {
            Machine::ActiveBackup { active } => {
                if active.is_none_or(|active| !up[active]) {
                    *active = up.iter().position(|&is_up| is_up);
                }
                None
            }
            Machine::Lacp { rate, lacp } => {
                let system = self.ends.iter().find_map(|end| end.mac);
                if lacp.is_none() {
                    *lacp = system.map(|system| Lacp::new(system, self.ends.len(), *rate));
                }
                let lacp = lacp.as_mut()?;
                let (hears, mut has_heard) = (self.deaf_until <= now, false);
                for (at, (end, &is_up)) in self.ends.iter_mut().zip(up).enumerate() {
                    lacp.set_link(at, is_up, now);
                    // Also while it is down: an error that nobody takes would wake us for ever.
                    has_heard |= hears
                        && end.hear(|slow| {
                            if let Slow::Lacp(pdu) = slow {
                                lacp.heard(at, &pdu, now);
                            }
                        });
                }
                if has_heard {
                    self.deaf_until = now + HEAR_PAUSE;
                }
                for (at, pdu) in lacp.tick(now) {
                    if let Some(socket) = &self.ends[at].lacp {
                        // One that is lost is told again: by the other end's silence, or ours.
                        let _ = socket.send(&pdu.to_frame(socket.mac()));
                    }
                }
                lacp.next(now)
            }
        }
    }

    fn usable(&self) -> [Links; 2] {
        match &self.machine {
            Machine::ActiveBackup { active } => [active.map_or(0, |active| 1 << active); 2],
            Machine::Lacp { lacp, .. } => lacp.as_ref().map_or([0; 2], Lacp::usable),
        }
    }

    fn status(&self, up: &[bool]) -> Vec<LinkStatus> {
        let views = match &self.machine {
            Machine::ActiveBackup { .. } => None,
            Machine::Lacp { lacp, .. } => lacp.as_ref().map(Lacp::views),
        };
        let status = |(at, end): (usize, &End)| LinkStatus {
            interface: end.name.clone(),
            is_up: up[at],
            is_sending: self.used[0] & 1 << at != 0,
            is_receiving: self.used[1] & 1 << at != 0,
            lacp: views.as_ref().map(|views| views[at]),
        };
        self.ends.iter().enumerate().map(status).collect()
    }

    /// Until the kernel has news of a link, a partner speaks, or so much time has passed.
    fn wait(&self, timeout: Duration) {
        let deaf_for = self.deaf_until.saturating_duration_since(Instant::now());
        let hears = deaf_for.is_zero();
        let timeout = if hears { timeout } else { timeout.min(deaf_for) };
        let watches = self.ends.iter().filter_map(|end| end.watch.as_ref()).map(AsFd::as_fd);
        let sockets = self.ends.iter().filter_map(|end| end.lacp.as_ref().filter(|_| hears)).map(AsFd::as_fd);
        let mut fds: Vec<PollFd<'_>> =
            watches.chain(sockets).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        // An interrupted wait is a look too early.
        let _ = poll(&mut fds, Some(&timeout));
    }
}
