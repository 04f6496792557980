//! Which row of the route tables a method and a path are. Pure.
//!
//! A table is a list of rows in one module: the operations of one resource, or an extension. Harder than a router: every
//! path also exists with a suffix, and a dot in the last segment is a suffix's wherever it can be one, so that ids there
//! lose what ids elsewhere keep; and whatever matches no row is 404, never 405. Doubled slashes were made one before.

/// One operation: what asks for it and what answers it.
pub(super) struct Row<H> {
    /// The method.
    pub(super) method: &'static str,
    /// The path after the version. A segment in braces is an id, any text.
    pub(super) path: &'static str,
    /// What answers.
    pub(super) handler: H,
}

impl<H> Row<H> {
    /// A row.
    pub(super) const fn new(method: &'static str, path: &'static str, handler: H) -> Row<H> {
        Row { method, path, handler }
    }
}

/// The word that another row had in the place of the last id, for GET alone.
const NO_ID: &str = "new";
/// The word whose suffix has no dot.
const ATTACHMENT: &str = "attachment";
/// Ids of the path with the most: a tenant, a network, a port.
pub(super) const IDS_MAX: usize = 4;

/// A row found.
pub(super) struct Found<'a, H: 'static> {
    /// The row.
    pub(super) row: &'static Row<H>,
    /// The ids in the path, in order; empty texts behind them.
    pub(super) ids: [&'a str; IDS_MAX],
}

/// The last segment's suffix: what follows the last dot of the path, if no slash follows it.
pub(crate) fn suffix(path: &str) -> Option<&str> {
    path.rsplit_once('.').map(|(_, suffix)| suffix).filter(|suffix| !suffix.contains('/'))
}

/// The row of this method and this decoded path after the version; `None`: nothing is there.
pub(super) fn find<'a, H: 'static>(tables: &[&'static [Row<H>]], method: &str, path: &'a str) -> Option<Found<'a, H>> {
    let path = path.strip_prefix('/')?;
    let rows = tables.iter().flat_map(|table| table.iter()).filter(|row| row.method == method);
    rows.into_iter().find_map(|row| ids_of(row, path).map(|ids| Found { row, ids }))
}

/// The ids in `path` if it is one of the row's.
fn ids_of<'a, H>(row: &Row<H>, path: &'a str) -> Option<[&'a str; IDS_MAX]> {
    let mut ids = [""; IDS_MAX];
    let mut count = 0;
    let (mut patterns, mut segments) = (row.path[1..].split('/'), path.split('/').peekable());
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return Some(ids),
            (Some(pattern), Some(segment)) if pattern.starts_with('{') => {
                let is_last = segments.peek().is_none();
                let id = if is_last { without_suffix(segment) } else { segment };
                if id.is_empty() || (is_last && row.method == "GET" && is_last_word(segment, NO_ID)) {
                    return None;
                }
                *ids.get_mut(count)? = id;
                count += 1;
            }
            (Some(word), Some(segment)) if word == segment => {}
            (Some(word), Some(segment)) if segments.peek().is_none() && is_last_word(segment, word) => {}
            _ => return None,
        }
    }
}

/// An id without the suffix, which is what follows the last dot that has something on both sides.
fn without_suffix(segment: &str) -> &str {
    let mut dots = segment.char_indices().rev().filter(|(_, c)| *c == '.').map(|(at, _)| at);
    dots.find(|&at| at > 0 && at + 1 < segment.len()).map_or(segment, |at| &segment[..at])
}

/// Whether a last segment is this word, with a suffix or without: after a word its first dot begins it.
pub(super) fn is_last_word(segment: &str, word: &str) -> bool {
    let is_suffix = |suffix: &str| !suffix.is_empty() && (word != ATTACHMENT || !suffix.contains('.'));
    segment == word || segment.strip_prefix(word).and_then(|rest| rest.strip_prefix('.')).is_some_and(is_suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &[Row<u8>] = &[
        Row::new("GET", "/tenants/{tenant}/networks", 1),
        Row::new("GET", "/tenants/{tenant}/networks/detail", 2),
        Row::new("GET", "/tenants/{tenant}/networks/{network}", 3),
        Row::new("PUT", "/tenants/{tenant}/networks/{network}", 4),
        Row::new("GET", "/tenants/{tenant}/networks/{network}/ports", 5),
        Row::new("GET", "/tenants/{tenant}/networks/{network}/ports/{port}/attachment", 6),
    ];

    fn get(path: &str) -> Option<(u8, &str)> {
        find(&[ROWS], "GET", path).map(|found| (found.row.handler, found.ids[1]))
    }

    #[test]
    fn a_path_is_found_with_any_suffix() {
        for (path, wanted) in [
            ("/tenants/t/networks", (1, "")),
            ("/tenants/t/networks/detail", (2, "")),
            ("/tenants/t/networks/n", (3, "n")),
            ("/tenants/t/networks/n/ports", (5, "n")),
        ] {
            for dot in ["", ".json", ".xml", ".XML"] {
                assert_eq!(get(&format!("{path}{dot}")), Some(wanted), "{path}{dot}");
            }
        }
        assert_eq!(suffix("/tenants/t.u/networks"), None);
        assert_eq!(suffix("/tenants/t/networks.xml"), Some("xml"));
        assert_eq!(suffix("/tenants/t/networks/a.xml.json"), Some("json"));
    }

    #[test]
    fn a_last_id_loses_its_suffix_and_ids_before_it_keep_their_dots() {
        for (path, id) in [
            ("a.b", "a"),
            ("a.xml.json", "a.xml"),
            ("a.json.", "a"),
            ("a..", "a"),
            ("a.", "a."),
            (".json", ".json"),
            ("..", ".."),
            ("...", "."),
            ("new.", "new."),
            ("edit", "edit"),
            ("é.é", "é"),
        ] {
            assert_eq!(get(&format!("/tenants/t/networks/{path}")), Some((3, id)), "{path}");
        }
        assert_eq!(get("/tenants/t/networks/a.b/ports"), Some((5, "a.b")));
        assert_eq!(find(&[ROWS], "GET", "/tenants/t.u/networks").unwrap().ids[0], "t.u");
    }

    #[test]
    fn a_last_word_may_have_a_suffix_with_dots_but_not_an_empty_one() {
        for (path, wanted) in [
            ("networks.json.foo", Some(1)),
            ("networks..", Some(1)),
            ("networks.", None),
            ("networks/detail.a.b", Some(2)),
            ("networks/detail.", Some(3)),
            ("networks/n/ports.a.b", Some(5)),
            ("networks/n/ports.", None),
            ("networks/n/ports/p/attachment.json", Some(6)),
            ("networks/n/ports/p/attachment.a.b", None),
            ("networks/n/ports/p/attachment.", None),
        ] {
            assert_eq!(get(&format!("/tenants/t/{path}")).map(|found| found.0), wanted, "{path}");
        }
    }

    #[test]
    fn the_word_of_a_row_that_was_is_no_last_id_of_get_and_any_other() {
        for path in ["/tenants/t/networks/new", "/tenants/t/networks/new.json", "/tenants/t/networks/new.a.b"] {
            assert!(get(path).is_none(), "{path}");
        }
        assert_eq!(get("/tenants/t/networks/new/ports"), Some((5, "new")));
        for id in ["new", "detail"] {
            let path = format!("/tenants/t/networks/{id}.json");
            assert_eq!(find(&[ROWS], "PUT", &path).unwrap().ids[1], id);
        }
    }

    #[test]
    fn whatever_is_not_in_the_table_is_nowhere() {
        for path in [
            "",
            "/",
            "//",
            "/tenants",
            "/tenants/t",
            "/tenants/t/",
            "/networks",
            "/tenants//networks",
            "/tenants/t/networks/",
            "/tenants/t/networks/n/",
            "/tenants/t/networks/n/ports/",
            "/tenants/t/networks.json/",
            "/tenants/t/networks;x",
            "//tenants/t/networks",
            "tenants/t/networks",
            "/é/t/networks",
        ] {
            assert_eq!(get(path), None, "{path}");
        }
        assert!(find(&[ROWS], "get", "/tenants/t/networks").is_none());
    }
}
