//! What a URL says: the decoded path, where it leads, and the pairs of a query. Pure.

use crate::v1::{Dialect, Version, reference};
use std::borrow::Cow;

/// What the first segment of a path leads to.
pub(crate) enum Target<'a> {
    Versions,
    Description,
    V1(Version, &'a str),
    Nowhere,
}

/// Where a path leads. In the original's dialect everything outside the versions is the list.
pub(crate) fn target(path: &str, dialect: Dialect) -> Target<'_> {
    let Some(name) = path.strip_prefix('/') else { return Target::Nowhere };
    for version in Version::ALL {
        match name.strip_prefix(version.id()) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => return Target::V1(version, rest),
            _ => {}
        }
    }
    // The suffix rule holds for the list too: `/.json`.
    let is_root = (name.is_empty() || name.starts_with('.')) && !name.contains('/');
    let is_list = is_root || dialect == Dialect::StrictEssex;
    match path {
        _ if is_list => Target::Versions,
        reference::DESCRIPTION_PATH => Target::Description,
        _ => Target::Nowhere,
    }
}

/// A path as it is looked at: decoded, and every run of slashes made one, as the original's border had it before anything
/// else; and whether it is UTF-8. What is not stands as U+FFFD.
pub(crate) fn decoded_path(path: &str) -> (String, bool) {
    let decoded = percent_decoded(path);
    let decoded = String::from_utf8_lossy(&decoded);
    let mut path = String::with_capacity(decoded.len());
    for c in decoded.chars() {
        if c != '/' || !path.ends_with('/') {
            path.push(c);
        }
    }
    // Lossy text is borrowed if nothing was lost.
    (path, matches!(decoded, Cow::Borrowed(_)))
}

/// The pairs of a query or a form, decoded; one without `=` has an empty value. As the original's, `;` is as good as `&`.
pub(crate) fn query_pairs(query: &str) -> Vec<(String, String)> {
    let text = |part: &str| String::from_utf8_lossy(&percent_decoded(&part.replace('+', " "))).into_owned();
    let pairs = query.split(['&', ';']).filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(key, value)| (text(key), text(value))).collect()
}

/// Decodes `%41` to `A`; a `%` without two hexadecimal digits stays.
fn percent_decoded(path: &str) -> Vec<u8> {
    let hex = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let pair = if first == b'%' { tail.first().and_then(hex).zip(tail.get(1).and_then(hex)) } else { None };
        match pair {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding_keeps_what_is_no_escape_and_knows_what_is_no_text() {
        for (path, wanted, is_text) in [
            ("/a%20b%2Fc%c3%a9", "/a b/cé", true),
            ("/%/%4/%zz%", "/%/%4/%zz%", true),
            ("/%00", "/\0", true),
            ("/%ef%bf%bd", "/\u{fffd}", true),
            ("/%ff.xml", "/\u{fffd}.xml", false),
        ] {
            assert_eq!(decoded_path(path), (wanted.to_owned(), is_text), "{path}");
        }
    }

    #[test]
    fn a_query_is_split_at_both_signs_and_every_part_is_decoded() {
        let pairs = query_pairs("a=b+c&&d;e=%C3%A9%zz;=f&g=h=i&%26=%3B");
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "b c"), ("d", ""), ("e", "é%zz"), ("", "f"), ("g", "h=i"), ("&", ";")]);
        assert!(query_pairs("").is_empty());
    }

    #[test]
    fn slashes_in_a_row_are_one_however_they_are_written() {
        assert_eq!(decoded_path("//a///b%2F%2fc/").0, "/a/b/c/");
        assert_eq!(decoded_path("///").0, "/");
    }

    #[test]
    fn only_the_root_lists_versions_and_only_a_whole_segment_is_a_version() {
        for path in ["/", "/.json", "/.xml"] {
            assert!(matches!(target(path, Dialect::Plain), Target::Versions), "{path}");
        }
        for (path, version, rest) in [
            ("/v1.1", Version::V1_1, ""),
            ("/v1.1/", Version::V1_1, "/"),
            ("/v1.0", Version::V1_0, ""),
            ("/v1.0/tenants", Version::V1_0, "/tenants"),
        ] {
            for dialect in [Dialect::Plain, Dialect::StrictEssex] {
                let found = target(path, dialect);
                assert!(matches!(found, Target::V1(which, found) if (which, found) == (version, rest)), "{path}");
            }
        }
        for path in ["", "*", "/v1.1.json", "/v1.10", "/v1.0x", "/v1", "/v2.0", "/foo", "/./x"] {
            assert!(matches!(target(path, Dialect::Plain), Target::Nowhere), "{path}");
            let is_path = path.starts_with('/');
            assert_eq!(matches!(target(path, Dialect::StrictEssex), Target::Versions), is_path, "{path}");
        }
    }
}
