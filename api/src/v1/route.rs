//! Which row of the route tables a method and a path are (specification section 2). Pure.
//!
//! A table is a list of rows in one module: the operations of one resource, or an extension. Harder than a router: every
//! path also exists with a suffix, whose dot is the last of the last segment, so that ids there may hold dots that ids
//! elsewhere may not; and whatever matches no row is 404, never 405.

/// One operation: what asks for it and what answers it.
pub(super) struct Row<H> {
    /// The method.
    pub(super) method: &'static str,
    /// The path after the version. A segment in braces is an id, anything without `.`; only `{tenant}` may be one of
    /// [`NOT_IDS`].
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

/// The words that other rows have, or had, in the place of an id.
const NOT_IDS: [&str; 2] = ["detail", "new"];
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

/// The path without its suffix.
pub(super) fn stem(path: &str) -> &str {
    suffix(path).map_or(path, |suffix| &path[..path.len() - suffix.len() - 1])
}

/// The row of this method and this decoded path after the version; `None`: nothing is there.
pub(super) fn find<'a, H: 'static>(tables: &[&'static [Row<H>]], method: &str, path: &'a str) -> Option<Found<'a, H>> {
    let path = path.strip_prefix('/')?;
    // One doubled slash after the version is accepted, as in the original.
    let path = path.strip_prefix('/').unwrap_or(path);
    let stem = stem(path);
    let rows = tables.iter().flat_map(|table| table.iter()).filter(|row| row.method == method);
    rows.into_iter().find_map(|row| ids_of(row.path, stem).map(|ids| Found { row, ids }))
}

/// The ids in `path` if it is like `pattern`.
fn ids_of<'a>(pattern: &str, path: &'a str) -> Option<[&'a str; IDS_MAX]> {
    let mut ids = [""; IDS_MAX];
    let mut count = 0;
    let (mut patterns, mut segments) = (pattern[1..].split('/'), path.split('/').peekable());
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return Some(ids),
            (Some(pattern), Some(segment)) if pattern.starts_with('{') => {
                // Only the last segment may have a dot: it had two.
                let is_last = segments.peek().is_none();
                let is_word = pattern != "{tenant}" && NOT_IDS.contains(&segment);
                if segment.is_empty() || is_word || (segment.contains('.') && !is_last) {
                    return None;
                }
                *ids.get_mut(count)? = segment;
                count += 1;
            }
            (Some(pattern), Some(segment)) if pattern == segment => {}
            _ => return None,
        }
    }
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
    ];

    fn get(path: &str) -> Option<(u8, &str)> {
        find(&[ROWS], "GET", path).map(|found| (found.row.handler, found.ids[1]))
    }

    #[test]
    fn a_path_is_found_with_any_suffix_and_after_one_doubled_slash() {
        for (path, wanted) in [
            ("/tenants/t/networks", (1, "")),
            ("/tenants/t/networks/detail", (2, "")),
            ("/tenants/t/networks/n", (3, "n")),
            ("/tenants/t/networks/n/ports", (5, "n")),
        ] {
            for dot in ["", ".json", ".xml", ".XML", "."] {
                assert_eq!(get(&format!("{path}{dot}")), Some(wanted), "{path}{dot}");
                assert_eq!(get(&format!("/{path}{dot}")), Some(wanted), "/{path}{dot}");
            }
        }
        assert_eq!(suffix("/tenants/t.u/networks"), None);
        assert_eq!(suffix("/tenants/t/networks.xml"), Some("xml"));
        assert_eq!(suffix("/tenants/t/networks/a.xml.json"), Some("json"));
    }

    #[test]
    fn only_the_last_dot_of_the_last_segment_is_a_suffix() {
        assert_eq!(get("/tenants/t/networks/a.b"), Some((3, "a")));
        assert_eq!(get("/tenants/t/networks/a.xml.json"), Some((3, "a.xml")));
        assert_eq!(get("/tenants/t/networks/a.b/ports"), None);
        assert_eq!(get("/tenants/t.u/networks"), None);
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
            "/tenants/t/networks/.json",
            "/tenants/t/networks/new",
            "/tenants/t/networks/new.json",
            "/tenants/t/networks/detail/ports",
            "/tenants/t/networks/new/ports",
            "/tenants/t/networks/n/ports/",
            "///tenants/t/networks",
            "tenants/t/networks",
            "/é/t/networks",
        ] {
            assert_eq!(get(path), None, "{path}");
        }
        assert!(find(&[ROWS], "PUT", "/tenants/t/networks/detail").is_none());
        assert!(find(&[ROWS], "get", "/tenants/t/networks").is_none());
        assert_eq!(find(&[ROWS], "GET", "/tenants/new/networks").unwrap().ids[0], "new");
    }
}
