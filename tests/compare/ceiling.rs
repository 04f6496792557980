//! What the load generator can do by itself: no switch can be seen to be faster.

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
             {} s, million frames a second (64 KB TSO: Gbit/s). Beside it the fastest that was measured above. A ratio near 1 says \
             that the generator, not the switch, was the limit.",
            options.rounds, options.seconds
        ),
        "| frames | alone | fastest switch | at | fastest to alone | load |",
    );
    for row in options.rows().unwrap_or_else(|| vhost::ROWS.to_vec()) {
        let (figure, name, digits) =
            if row.size == Size::Tso { (Figure::Gbps, "wire_gbps", 1) } else { (Figure::Mpps, "mpps", 3) };
        let words = row.words_for(options.seconds);
        let reports = (0..options.rounds).filter_map(|_| measure_alone(&words).ok());
        let alone: Sample = reports.map(|report| report.figure(name)).collect();
        let found = page.findings.iter().filter(|found| found.row == vhost::finding(row) && found.figure == figure);
        let fastest = found.max_by(|one, other| one.sample.median().total_cmp(&other.sample.median()));
        let (peer, sample) = fastest.map_or(("–".to_owned(), Sample::default()), |fastest| {
            (fastest.peer.to_string(), fastest.sample.clone())
        });
        page.line(&format!(
            "| {row} | {} | {peer} | {} | {} | {} |",
            alone.brief(digits),
            sample.brief(digits),
            ratio(&sample, &alone),
            load()
        ));
    }
}
