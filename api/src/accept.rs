//! The Accept header (RFC 9110 section 12.5.1), read as leniently as the original's framework did (WebOb 1.0.8): of parameters the
//! quality alone counts, which is brought within its bounds and is 1 if it is no number; what is no range covers nothing.
//! Unlike there, upper and lower case are one. Pure.

/// One media range.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct MediaRange<'a> {
    /// The type, or `*`.
    kind: &'a str,
    /// The subtype, or `*`.
    subtype: &'a str,
    /// 0 to 1.
    pub(crate) quality: f64,
}

impl MediaRange<'_> {
    /// Whether a media type is in it.
    pub(crate) fn covers(&self, media_type: &str) -> bool {
        let (kind, subtype) = media_type.split_once('/').unwrap_or((media_type, ""));
        match (self.kind, self.subtype) {
            ("*", "*") => true,
            (own, "*") => own.eq_ignore_ascii_case(kind),
            (own, one) => own.eq_ignore_ascii_case(kind) && one.eq_ignore_ascii_case(subtype),
        }
    }

    /// How plainly it names what it covers: 0 to 2.
    pub(crate) fn plainness(&self) -> usize {
        usize::from(self.kind != "*") + usize::from(self.subtype != "*")
    }
}

/// How a page of the border can be written beside plain text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageForm {
    /// `text/html`.
    Html,
    /// `application/json`.
    Json,
}

/// The form of a page: of what the plainest range about each says, the better; HTML on a tie. `None`: neither is wanted.
pub(crate) fn page_form(accept: &str) -> Option<PageForm> {
    let quality = |media_type| {
        let about = ranges(accept).filter(|range| range.covers(media_type));
        about.max_by_key(MediaRange::plainness).map_or(0.0, |range| range.quality)
    };
    let (html, json) = (quality("text/html"), quality("application/json"));
    match html.max(json) {
        0.0 => None,
        best if best == html => Some(PageForm::Html),
        _ => Some(PageForm::Json),
    }
}

/// The ranges of a header.
pub(crate) fn ranges(accept: &str) -> impl Iterator<Item = MediaRange<'_>> {
    accept.split(',').filter_map(|part| {
        let part = part.trim_start();
        let (range, parameters) = part.split_at(part.find([';', ' ', '\t']).unwrap_or(part.len()));
        let (kind, subtype) = range.split_once('/')?;
        Some(MediaRange { kind, subtype, quality: quality(parameters) })
    })
}

/// The first quality among parameters.
fn quality(parameters: &str) -> f64 {
    let mut parameters = parameters.split(';').skip(1).map(str::trim_start);
    let value = parameters.find_map(|parameter| parameter.strip_prefix(['q', 'Q'])?.strip_prefix('='));
    let number = value.and_then(|value| value.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok());
    number.unwrap_or(1.0_f64).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_the_originals_framework_read_it() {
        let read = |accept| -> Vec<_> {
            let ranges = ranges(accept).map(|range| (format!("{}/{}", range.kind, range.subtype), range.quality));
            ranges.collect()
        };
        for (accept, wanted) in [
            ("", &[][..]),
            (", ,", &[]),
            ("a/b", &[("a/b", 1.0)]),
            (" a/b ,", &[("a/b", 1.0)]),
            ("a/b;q=0.25", &[("a/b", 0.25)]),
            ("a/b ; Q=0. ; x", &[("a/b", 0.0)]),
            ("a/b; charset=utf-8", &[("a/b", 1.0)]),
            ("a/b;x=\"y\";q=0.5;q=1", &[("a/b", 0.5)]),
            ("a/b;q=1.000,*/*;q=.1,c/*", &[("a/b", 1.0), ("*/*", 0.1), ("c/*", 1.0)]),
            ("a/b;q=7", &[("a/b", 1.0)]),
            ("a/b;q=-7", &[("a/b", 1.0)]),
            ("a/b;q=x", &[("a/b", 1.0)]),
            ("a/b;q=1.2.3", &[("a/b", 1.0)]),
            ("a/b;q=0.1234567x", &[("a/b", 0.1234567)]),
            ("a/b;q", &[("a/b", 1.0)]),
            ("a/b c/d", &[("a/b", 1.0)]),
            ("*, a, é/b;", &[("é/b", 1.0)]),
        ] {
            let wanted: Vec<_> = wanted.iter().map(|(range, quality)| ((*range).to_owned(), *quality)).collect();
            assert_eq!(read(accept), wanted, "{accept:?}");
        }
    }

    #[test]
    fn a_page_has_the_form_that_is_liked_best() {
        use PageForm::{Html, Json};
        for (accept, wanted) in [
            ("application/json", Some(Json)),
            ("application/*", Some(Json)),
            ("text/html;q=0.1, application/json", Some(Json)),
            ("text/html;q=0, */*", Some(Json)),
            ("text/html, */*", Some(Html)),
            ("*/*", Some(Html)),
            ("text/*", Some(Html)),
            ("TEXT/HTML", Some(Html)),
            ("*/*;q=0.5, application/json;q=0.4", Some(Html)),
            ("application/json, text/html", Some(Html)),
            ("no header", None),
            ("application/json;q=2", Some(Json)),
            ("application/json;q=0", None),
            ("application/json;charset=utf-8", Some(Json)),
            ("text/html;level=1", Some(Html)),
            ("application/xml", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(page_form(accept), wanted, "{accept:?}");
        }
    }
}
