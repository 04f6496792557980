//! The plot beside the page: medians as columns, extremes as lines over them, as SVG written by hand.
//!
//! One panel for each unit; a group of columns for each row, a colour for each switch.

use crate::peers::Peer;
use crate::report::{Figure, Finding, Page};
use crate::{hosts, latency, tap, vhost, vhost_tap};
use std::fmt::Write as _;

/// All lengths are SVG user units, that is pixels where nothing is scaled.
const WIDTH: f64 = 1120.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const LEGEND_HEIGHT: f64 = 44.0;
const TITLE_HEIGHT: f64 = 34.0;
const COLUMNS_HEIGHT: f64 = 200.0;
const LABELS_HEIGHT: f64 = 46.0;
/// Part of a group's width that its columns take.
const FILL: f64 = 0.8;
/// A column is no wider than this.
const COLUMN_WIDTH_MAX: f64 = 46.0;
/// Lines of the scale, about.
const TICKS: f64 = 5.0;

const PEERS: [(Peer, &str); 6] = [
    (Peer::Qvs, "#1b6ca8"),
    (Peer::Testpmd, "#e0912f"),
    (Peer::Ovs, "#9a9a9a"),
    (Peer::OvsTso, "#5d5d5d"),
    (Peer::Bridge, "#6aa84f"),
    (Peer::Yardstick, "#c9d8e6"),
];

/// The columns of one row.
struct Group<'a> {
    label: &'a str,
    columns: Vec<&'a Finding>,
}

/// Groups that share a scale.
struct Panel<'a> {
    title: &'a str,
    groups: Vec<Group<'a>>,
}

/// The plot of a page.
pub(crate) fn svg(page: &Page) -> String {
    let panels: Vec<Panel> = [
        ("Frames between two vhost-user ports, million a second", vhost::FRAMES, Figure::Mpps),
        ("Frames with TAPs, million a second", vhost_tap::MIXED, Figure::Mpps),
        ("Frames between two TAPs, million a second", vhost_tap::TAPS, Figure::Mpps),
        ("Large TCP frames between two vhost-user ports, Gbit/s", vhost::LARGE, Figure::Gbps),
        ("Large TCP frames between a vhost-user port and a TAP, Gbit/s", vhost_tap::MIXED_LARGE, Figure::Gbps),
        ("Large TCP frames between two TAPs, Gbit/s", vhost_tap::TAPS_LARGE, Figure::Gbps),
        ("TCP between two TAPs, Gbit/s", tap::ROW, Figure::Gbps),
        ("TCP between TAPs of two hypervisors, by VXLAN, Gbit/s", hosts::ROW, Figure::Gbps),
        ("Median delay between two vhost-user ports, microseconds", latency::ONE_FRAME, Figure::P50),
        ("Median delay at a million frames a second, microseconds", latency::ONE_MPPS, Figure::P50),
    ]
    .into_iter()
    .map(|(title, prefix, figure)| Panel { title, groups: groups(page, prefix, figure) })
    .filter(|panel| !panel.groups.is_empty())
    .collect();
    let panel_height = TITLE_HEIGHT + COLUMNS_HEIGHT + LABELS_HEIGHT;
    let mut places = Vec::new();
    let (mut x, mut y) = (0.0, LEGEND_HEIGHT);
    for panel in &panels {
        // Few columns take half a line.
        let width = if panel.groups.len() > 3 { WIDTH } else { WIDTH / 2.0 };
        if x + width > WIDTH {
            (x, y) = (0.0, y + panel_height);
        }
        places.push((x, y, width));
        x += width;
    }
    let height = if panels.is_empty() { LEGEND_HEIGHT } else { y + panel_height };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    legend(&mut svg, &panels);
    for (panel, (x, y, width)) in panels.iter().zip(places) {
        draw(&mut svg, panel, x, y, width);
    }
    svg + "</svg>\n"
}

/// The findings of a section, row by row.
fn groups<'a>(page: &'a Page, prefix: &str, figure: Figure) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    for finding in page.findings.iter().filter(|finding| finding.figure == figure) {
        let Some(rest) = finding.row.strip_prefix(prefix) else { continue };
        let label = rest.strip_prefix(": ").unwrap_or("");
        match groups.iter_mut().find(|group| group.label == label) {
            Some(group) => group.columns.push(finding),
            None => groups.push(Group { label, columns: vec![finding] }),
        }
    }
    groups
}

fn colour(peer: Peer) -> &'static str {
    PEERS.iter().find(|(known, _)| *known == peer).map_or("#000000", |(_, colour)| colour)
}

fn line(svg: &mut String, words: &str) {
    writeln!(svg, "{words}").expect("a string grows");
}

fn legend(svg: &mut String, panels: &[Panel<'_>]) {
    let is_there = |peer: Peer| {
        panels
            .iter()
            .flat_map(|panel| &panel.groups)
            .flat_map(|group| &group.columns)
            .any(|finding| finding.peer == peer)
    };
    let mut x = LEFT;
    for (peer, colour) in PEERS.into_iter().filter(|(peer, _)| is_there(*peer)) {
        line(svg, &format!("<rect x=\"{x}\" y=\"16\" width=\"14\" height=\"14\" fill=\"{colour}\"/>"));
        line(svg, &format!("<text x=\"{}\" y=\"28\">{peer}</text>", x + 20.0));
        x += 140.0;
    }
}

/// The distance of the lines of a scale that reaches `most`: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let raw = most / TICKS;
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= raw).unwrap_or(raw)
}

fn draw(svg: &mut String, panel: &Panel<'_>, x: f64, y: f64, width: f64) {
    let columns = panel.groups.iter().flat_map(|group| &group.columns);
    let most = columns.map(|finding| finding.sample.most()).fold(f64::MIN_POSITIVE, f64::max);
    let step = step(most);
    let top = step * (most / step).ceil();
    let digits = if step < 1.0 { (-step.log10()).ceil() as usize } else { 0 };
    let bottom = y + TITLE_HEIGHT + COLUMNS_HEIGHT;
    let height_of = |value: f64| bottom - value / top * COLUMNS_HEIGHT;
    let (left, right) = (x + LEFT, x + width - RIGHT);
    line(svg, &format!("<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>", y + 20.0, panel.title));
    for tick in 0..=(top / step).round() as usize {
        let value = tick as f64 * step;
        let at = height_of(value);
        line(svg, &format!("<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>"));
        let (text_x, text_y) = (left - 6.0, at + 4.0);
        line(svg, &format!("<text x=\"{text_x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{value:.digits$}</text>"));
    }
    let group_width = (right - left) / panel.groups.len() as f64;
    for (at, group) in panel.groups.iter().enumerate() {
        let count = group.columns.len() as f64;
        let column_width = (group_width * FILL / count).min(COLUMN_WIDTH_MAX);
        let middle = left + (at as f64 + 0.5) * group_width;
        for (number, finding) in group.columns.iter().enumerate() {
            let column_x = middle + (number as f64 - count / 2.0) * column_width;
            let sample = &finding.sample;
            let median = height_of(sample.median());
            line(
                svg,
                &format!(
                    "<rect x=\"{column_x:.1}\" y=\"{median:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}: \
                     {:.3} ({:.3}–{:.3})</title></rect>",
                    column_width - 1.0,
                    bottom - median,
                    colour(finding.peer),
                    finding.peer,
                    sample.median(),
                    sample.least(),
                    sample.most()
                ),
            );
            let (centre, low, high) =
                (column_x + (column_width - 1.0) / 2.0, height_of(sample.least()), height_of(sample.most()));
            line(
                svg,
                &format!(
                    "<line x1=\"{centre:.1}\" y1=\"{low:.1}\" x2=\"{centre:.1}\" y2=\"{high:.1}\" stroke=\"#000000\"/>"
                ),
            );
        }
        // Long labels go on in a second line, after the comma.
        let (first, second) = group.label.split_once(", ").unwrap_or((group.label, ""));
        for (row, text) in [first, second].into_iter().enumerate() {
            let text_y = bottom + 17.0 + 16.0 * row as f64;
            line(svg, &format!("<text x=\"{middle:.1}\" y=\"{text_y:.1}\" text-anchor=\"middle\">{text}</text>"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Sample;

    fn page() -> Page {
        let mut page = Page::default();
        let mut keep = |row: &str, figure, peer, values: &[f64]| {
            page.keep(row, figure, peer, &values.iter().copied().collect::<Sample>());
        };
        for row in ["64 B", "64 B, packed", "512 B", "IMIX"] {
            let row = format!("{}: {row}", vhost::FRAMES);
            keep(&row, Figure::Mpps, Peer::Qvs, &[10.0, 20.0, 30.0]);
            keep(&row, Figure::Mpps, Peer::Testpmd, &[5.0, 6.0, 7.0]);
        }
        keep(tap::ROW, Figure::Gbps, Peer::Qvs, &[11.0]);
        keep(latency::ONE_FRAME, Figure::P50, Peer::Qvs, &[0.7]);
        page
    }

    #[test]
    fn columns_are_as_high_as_their_medians_on_a_scale_that_reaches_the_highest_extreme() {
        let svg = svg(&page());
        // 20 of a scale to 30 in columns of 200.
        assert!(svg.contains("height=\"133.3\" fill=\"#1b6ca8\""), "{svg}");
        assert_eq!(svg.matches("<title>").count(), 10);
    }

    #[test]
    fn few_rows_share_a_line_and_nothing_lies_outside() {
        let svg = svg(&page());
        let line = TITLE_HEIGHT + COLUMNS_HEIGHT + LABELS_HEIGHT;
        assert!(svg.contains(&format!("viewBox=\"0 0 {WIDTH} {}\"", LEGEND_HEIGHT + 2.0 * line)), "{svg}");
    }

    #[test]
    fn steps_of_a_scale_are_round() {
        assert_eq!([9.0, 30.0, 0.7, 5.0].map(step), [2.0, 10.0, 0.2, 1.0]);
    }
}
