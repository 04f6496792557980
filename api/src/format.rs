//! JSON or XML, decided once for both directions. Pure.

use crate::accept::ranges;

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/xml`.
    Xml,
}

/// JSON's media type.
pub const JSON: &str = "application/json";
/// XML's media type.
pub const XML: &str = "application/xml";

impl Format {
    /// The formats in the order in which they win a tie.
    pub const ALL: [Format; 2] = [Format::Json, Format::Xml];

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => JSON,
            Format::Xml => XML,
        }
    }

    /// The format of a request and of its answer. `suffix` is what follows the last dot of the path's last segment; it
    /// wins. Then comes an exact Content-Type, on GET too, then the Accept header. All else is JSON.
    pub fn negotiate(suffix: Option<&str>, content_type: Option<&str>, accept: Option<&str>) -> Format {
        let by_suffix = match suffix {
            Some("json") => Some(Format::Json),
            Some("xml") => Some(Format::Xml),
            _ => None,
        };
        let by_type = || {
            let named = content_type?.split(';').next()?.trim();
            Format::ALL.into_iter().find(|format| format.media_type() == named)
        };
        by_suffix.or_else(by_type).or_else(|| best(accept?)).unwrap_or(Format::Json)
    }
}

/// The format that an Accept header likes best: by quality, then by how plainly it is named, then JSON. A header that
/// breaks the grammar likes none.
fn best(accept: &str) -> Option<Format> {
    let ranges = ranges(accept)?;
    let rank = |format: Format| {
        let known = ranges.iter().filter(|range| range.quality > 0.0 && range.covers(format.media_type()));
        known.map(|range| (range.quality, range.plainness())).reduce(larger)
    };
    match Format::ALL.map(rank) {
        [Some(json), Some(xml)] => Some(if larger(json, xml) == json { Format::Json } else { Format::Xml }),
        [Some(_), None] => Some(Format::Json),
        [None, Some(_)] => Some(Format::Xml),
        [None, None] => None,
    }
}

/// The larger of two ranks, the first if they are equal.
fn larger(one: (f32, usize), other: (f32, usize)) -> (f32, usize) {
    if other.0 > one.0 || (other.0 == one.0 && other.1 > one.1) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Format::{Json, Xml};

    #[test]
    fn the_suffix_beats_the_content_type_which_beats_accept() {
        let rows = [
            (Some("json"), Some(XML), Some(XML), Json),
            (Some("xml"), Some(JSON), Some(JSON), Xml),
            (Some("XML"), None, None, Json),
            (Some("foo"), None, Some(XML), Xml),
            (None, Some(XML), Some(JSON), Xml),
            (None, Some(JSON), Some(XML), Json),
            (None, Some("application/xml; charset=UTF-8"), None, Xml),
            (None, Some("Application/XML"), None, Json),
            (None, Some("text/xml"), None, Json),
            (None, Some("application/x-www-form-urlencoded"), None, Json),
            (None, Some("text/plain"), Some(XML), Xml),
            (None, None, None, Json),
        ];
        for (suffix, content_type, accept, wanted) in rows {
            let found = Format::negotiate(suffix, content_type, accept);
            assert_eq!(found, wanted, "{suffix:?} {content_type:?} {accept:?}");
        }
    }

    #[test]
    fn accept_is_weighed_by_quality_then_by_how_plainly_a_format_is_named() {
        let rows = [
            ("application/xml", Xml),
            ("application/json", Json),
            ("*/*", Json),
            ("application/*", Json),
            ("text/html", Json),
            ("text/xml", Json),
            ("text/html, */*", Json),
            ("application/json;q=0.4, application/xml;q=0.9", Xml),
            ("application/json; q=0.9,application/xml; q=0.4", Json),
            ("application/xml, application/json", Json),
            ("application/xml, */*", Xml),
            ("application/xml;q=0.9, */*", Json),
            ("application/xml;q=0.5, */*;q=0.1", Xml),
            ("application/json;q=0, application/xml;q=0.1", Xml),
            ("application/json;q=0, */*;q=0.1", Json),
            ("application/xml;q=0", Json),
            ("application/xml;level=1;q=0.3, application/json;q=0.2", Json),
            ("application/XML", Xml),
            ("application/xml;q=x", Json),
            ("application/xml;q=7", Json),
            ("application/xml, application", Json),
            ("", Json),
        ];
        for (accept, wanted) in rows {
            assert_eq!(Format::negotiate(None, None, Some(accept)), wanted, "{accept:?}");
        }
    }
}
