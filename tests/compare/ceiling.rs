//! What the load generator can do: by itself, and at the rings of the fastest switch; no switch can be seen to be faster.

use crate::alternate::ratio;
use crate::frames::Size;
use crate::generator::measure_alone;
use crate::options::Options;
use crate::report::{Figure, Page, Sample, load};
use crate::vhost;

/// The table of ceilings.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "The load generator alone",
        &format!(
            "The same frames as between two vhost-user ports, against memory in its own thread, without rings or a switch; {} runs of \
             {} s, million frames a second (64 KB TSO: Gbit/s). Beside it the fastest that was measured above, and what the generator \
             could have moved in those very measurements, at that switch's rings, had it never waited. A rate near that says that the \
             generator, not the switch, was the limit; the rate alone, without rings, is no limit that a switch could meet.",
            options.rounds, options.seconds
        ),
        "| frames | alone | fastest switch | at | generator's ceiling there | fastest to ceiling | load |",
    );
    for row in options.rows().unwrap_or_else(|| vhost::ROWS.to_vec()) {
        let (figure, name, digits) =
            if row.size == Size::Tso { (Figure::Gbps, "wire_gbps", 1) } else { (Figure::Mpps, "mpps", 3) };
        let words = row.words_for(options.seconds);
        let reports = (0..options.rounds).map(|_| measure_alone(&words).ok());
        let alone: Sample = reports.map(|report| Some(report?.figure(name))).collect();
        let found = page.findings.iter().filter(|found| found.row == vhost::finding(row) && found.figure == figure);
        let fastest = found.max_by(|one, other| one.sample.median().total_cmp(&other.sample.median()));
        let (peer, sample, ceiling) = fastest.map_or_else(Default::default, |fastest| {
            let ceiling = page.found(&fastest.row, Figure::Ceiling, fastest.peer).cloned().unwrap_or_default();
            (fastest.peer.to_string(), fastest.sample.clone(), ceiling)
        });
        page.line(&format!(
            "| {row} | {} | {peer} | {} | {} | {} | {} |",
            alone.brief(digits),
            sample.brief(digits),
            ceiling.brief(digits),
            ratio(&sample, &ceiling),
            load()
        ));
    }
}
