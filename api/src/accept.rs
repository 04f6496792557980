//! The Accept header (RFC 9110 section 12.5.1), read strictly, as by the framework that answered when the original was recorded
//! (its pages in JSON tell WebOb 1.8): one that breaks the grammar says nothing. Pure.

/// One media range.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct MediaRange<'a> {
    /// The type, or `*`.
    kind: &'a str,
    /// The subtype, or `*`.
    subtype: &'a str,
    /// It asks for parameters, which nothing here has.
    has_parameters: bool,
    /// 0 to 1.
    pub(crate) quality: f32,
}

impl MediaRange<'_> {
    /// Whether a media type without parameters is in it.
    pub(crate) fn covers(&self, media_type: &str) -> bool {
        let (kind, subtype) = media_type.split_once('/').unwrap_or((media_type, ""));
        let is_like = |mask: &str, text: &str| mask == "*" || mask.eq_ignore_ascii_case(text);
        !self.has_parameters && is_like(self.kind, kind) && is_like(self.subtype, subtype)
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

/// The form of a page: of what the plainest range about each says, the better; HTML on a tie and for a header that is
/// none. `None`: neither is wanted.
pub(crate) fn page_form(accept: &str) -> Option<PageForm> {
    let Some(ranges) = ranges(accept) else { return Some(PageForm::Html) };
    let quality = |media_type| {
        let about = ranges.iter().filter(|range| range.covers(media_type));
        about.max_by_key(|range| range.plainness()).map_or(0.0, |range| range.quality)
    };
    let (html, json) = (quality("text/html"), quality("application/json"));
    match html.max(json) {
        0.0 => None,
        best if best == html => Some(PageForm::Html),
        _ => Some(PageForm::Json),
    }
}

/// The ranges of a header; `None` if it is none.
pub(crate) fn ranges(accept: &str) -> Option<Vec<MediaRange<'_>>> {
    let mut rest = Scanner(accept);
    let mut ranges = Vec::new();
    loop {
        rest.skip_blanks();
        if !rest.0.is_empty() && !rest.0.starts_with(',') {
            ranges.push(rest.range()?);
            rest.skip_blanks();
        }
        if rest.0.is_empty() {
            return Some(ranges);
        }
        rest.take(',')?;
    }
}

/// What is left of a header.
struct Scanner<'a>(&'a str);

impl<'a> Scanner<'a> {
    fn range(&mut self) -> Option<MediaRange<'a>> {
        let kind = self.token()?;
        self.take('/')?;
        let subtype = self.token()?;
        let (mut has_parameters, mut quality) = (false, None);
        while self.0.trim_start_matches(is_blank).starts_with(';') {
            self.skip_blanks();
            self.take(';')?;
            self.skip_blanks();
            let name = self.token()?;
            let value = if self.take('=').is_some() { Some(self.value()?) } else { None };
            match quality {
                None if name.eq_ignore_ascii_case("q") => quality = Some(weight(value?)?),
                // A parameter of the type has a value; what follows the quality need not.
                None => {
                    value?;
                    has_parameters = true;
                }
                Some(_) => {}
            }
        }
        Some(MediaRange { kind, subtype, has_parameters, quality: quality.unwrap_or(1.0) })
    }

    fn value(&mut self) -> Option<&'a str> {
        if !self.0.starts_with('"') {
            return self.token();
        }
        let mut is_escaped = false;
        let end = self.0[1..].find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        })?;
        let (value, rest) = self.0.split_at(end + 2);
        self.0 = rest;
        Some(value)
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.0.find(|c| !is_token_char(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    fn take(&mut self, c: char) -> Option<()> {
        self.0 = self.0.strip_prefix(c)?;
        Some(())
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_start_matches(is_blank);
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A quality: 0 to 1 with at most three decimals.
fn weight(text: &str) -> Option<f32> {
    let decimals = text.strip_prefix(['0', '1'])?;
    let digits = if decimals.is_empty() { "" } else { decimals.strip_prefix('.')? };
    let is_sound = digits.len() <= 3 && digits.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|quality| is_sound && *quality <= 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_by_its_grammar_or_not_at_all() {
        let read = |accept| ranges(accept).map(|ranges| ranges.iter().map(|it| it.quality).collect::<Vec<_>>());
        let one = |quality| Some(vec![quality]);
        for (accept, wanted) in [
            ("", Some(vec![])),
            (", ,", Some(vec![])),
            ("a/b", one(1.0)),
            (" a/b ,", one(1.0)),
            ("a/b;q=0.25", one(0.25)),
            ("a/b ; Q=0. ; x", one(0.0)),
            ("a/b;x=\"\\\"q;,\";q=0.5;y=\"\"", one(0.5)),
            ("a/b;q=1.000,*/*;q=0.1,c/*", Some(vec![1.0, 0.1, 1.0])),
            ("*", None),
            ("a", None),
            ("a/", None),
            ("/b", None),
            ("a /b", None),
            ("a/b;", None),
            ("a/b;x", None),
            ("a/b;q", None),
            ("a/b;q=", None),
            ("a/b;q=2", None),
            ("a/b;q=1.5", None),
            ("a/b;q=0.1234", None),
            ("a/b;q=NaN", None),
            ("a/b;q=-0", None),
            ("a/b;x=\"y", None),
            ("a/b c/d", None),
            ("é/b", None),
        ] {
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
            ("no header", Some(Html)),
            ("application/json;q=2", Some(Html)),
            ("application/json;q=0", None),
            ("application/json;charset=utf-8", None),
            ("text/html;level=1", None),
            ("application/xml", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(page_form(accept), wanted, "{accept:?}");
        }
    }
}
