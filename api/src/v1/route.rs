//! Which operation a method and a path are (specification section 2). Pure; one match is the whole table.
//!
//! Harder than a router: every path also exists with a suffix, whose dot is the last of the last segment, so that ids
//! there may hold dots that ids elsewhere may not; and whatever matches no row is 404, never 405.

/// One row of the table, with the ids in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation<'a> {
    /// `bool`s here and below: with detail.
    ListNetworks(bool),
    CreateNetwork,
    ShowNetwork(&'a str, bool),
    UpdateNetwork(&'a str),
    DeleteNetwork(&'a str),
    ListPorts(&'a str, bool),
    CreatePort(&'a str),
    ShowPort(&'a str, &'a str, bool),
    UpdatePort(&'a str, &'a str),
    DeletePort(&'a str, &'a str),
    GetAttachment(&'a str, &'a str),
    Plug(&'a str, &'a str),
    Unplug(&'a str, &'a str),
}

/// A path understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Routed<'a> {
    /// The tenant in it.
    pub(super) tenant: &'a str,
    /// The operation.
    pub(super) operation: Operation<'a>,
    /// What follows the last dot of the last segment, if there is one.
    pub(super) suffix: Option<&'a str>,
}

/// Segments of the longest path: tenants, T, networks, N, ports, P, attachment.
const SEGMENTS_MAX: usize = 7;

/// The operation of this method and this decoded path after the version; `None`: nothing is there.
pub(super) fn parse<'a>(method: &str, path: &'a str) -> Option<Routed<'a>> {
    use Operation::*;
    let path = path.strip_prefix('/')?;
    // One doubled slash after the version is accepted, as in the original.
    let path = path.strip_prefix('/').unwrap_or(path);
    let (parents, last) = path.rsplit_once('/')?;
    let (last, suffix) = match last.rsplit_once('.') {
        Some((stem, suffix)) => (stem, Some(suffix)),
        None => (last, None),
    };
    if last.is_empty() || parents.split('/').any(|segment| segment.is_empty() || segment.contains('.')) {
        return None;
    }
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    for segment in parents.split('/').chain([last]) {
        *segments.get_mut(count)? = segment;
        count += 1;
    }
    let ["tenants", tenant, "networks", rest @ ..] = &segments[..count] else { return None };
    // Not ids: the words that other rows have in the place of one.
    if [0, 2].into_iter().filter_map(|at| rest.get(at)).any(|id| *id == "new") {
        return None;
    }
    let operation = match (method, rest) {
        ("GET", []) => ListNetworks(false),
        ("GET", ["detail"]) => ListNetworks(true),
        ("POST", []) => CreateNetwork,
        (_, ["detail", ..]) => return None,
        ("GET", [network]) => ShowNetwork(network, false),
        ("GET", [network, "detail"]) => ShowNetwork(network, true),
        ("PUT", [network]) => UpdateNetwork(network),
        ("DELETE", [network]) => DeleteNetwork(network),
        ("GET", [network, "ports"]) => ListPorts(network, false),
        ("GET", [network, "ports", "detail"]) => ListPorts(network, true),
        ("POST", [network, "ports"]) => CreatePort(network),
        (_, [_, "ports", "detail", ..]) => return None,
        ("GET", [network, "ports", port]) => ShowPort(network, port, false),
        ("GET", [network, "ports", port, "detail"]) => ShowPort(network, port, true),
        ("PUT", [network, "ports", port]) => UpdatePort(network, port),
        ("DELETE", [network, "ports", port]) => DeletePort(network, port),
        ("GET", [network, "ports", port, "attachment"]) => GetAttachment(network, port),
        ("PUT", [network, "ports", port, "attachment"]) => Plug(network, port),
        ("DELETE", [network, "ports", port, "attachment"]) => Unplug(network, port),
        _ => return None,
    };
    Some(Routed { tenant, operation, suffix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation<'a>(method: &str, path: &'a str) -> Option<Operation<'a>> {
        parse(method, path).map(|routed| routed.operation)
    }

    #[test]
    fn every_row_of_the_table_is_there_with_and_without_suffix() {
        use Operation::*;
        let rows = [
            ("GET", "", ListNetworks(false)),
            ("GET", "/detail", ListNetworks(true)),
            ("POST", "", CreateNetwork),
            ("GET", "/n", ShowNetwork("n", false)),
            ("GET", "/n/detail", ShowNetwork("n", true)),
            ("PUT", "/n", UpdateNetwork("n")),
            ("DELETE", "/n", DeleteNetwork("n")),
            ("GET", "/n/ports", ListPorts("n", false)),
            ("GET", "/n/ports/detail", ListPorts("n", true)),
            ("POST", "/n/ports", CreatePort("n")),
            ("GET", "/n/ports/p", ShowPort("n", "p", false)),
            ("GET", "/n/ports/p/detail", ShowPort("n", "p", true)),
            ("PUT", "/n/ports/p", UpdatePort("n", "p")),
            ("DELETE", "/n/ports/p", DeletePort("n", "p")),
            ("GET", "/n/ports/p/attachment", GetAttachment("n", "p")),
            ("PUT", "/n/ports/p/attachment", Plug("n", "p")),
            ("DELETE", "/n/ports/p/attachment", Unplug("n", "p")),
        ];
        for (method, rest, wanted) in rows {
            for suffix in [None, Some("json"), Some("xml"), Some("XML"), Some("")] {
                let dot = suffix.map(|suffix| format!(".{suffix}")).unwrap_or_default();
                let path = format!("/tenants/t/networks{rest}{dot}");
                assert_eq!(parse(method, &path), Some(Routed { tenant: "t", operation: wanted, suffix }), "{path}");
                assert_eq!(operation(method, &format!("/{path}")), Some(wanted), "doubled slash: {path}");
            }
        }
    }

    #[test]
    fn only_the_last_dot_of_the_last_segment_is_a_suffix() {
        assert_eq!(operation("GET", "/tenants/t/networks/a.b"), Some(Operation::ShowNetwork("a", false)));
        assert_eq!(operation("GET", "/tenants/t/networks/a.xml.json"), Some(Operation::ShowNetwork("a.xml", false)));
        assert_eq!(operation("GET", "/tenants/t/networks/a.b/ports"), None);
        assert_eq!(operation("GET", "/tenants/t.u/networks"), None);
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
            "/tenants/t/foo",
            "/tenants//networks",
            "/tenants/t/networks/",
            "/tenants/t/networks/n/",
            "/tenants/t/networks/.json",
            "/tenants/t/networks/new",
            "/tenants/t/networks/new.json",
            "/tenants/t/networks/n/edit",
            "/tenants/t/networks/n/ports/new",
            "/tenants/t/networks/n/ports/p/edit",
            "/tenants/t/networks/detail/ports",
            "/tenants/t/networks/new/ports",
            "/tenants/t/networks/n/ports/detail/attachment",
            "/tenants/t/networks/n/ports/new/attachment",
            "/tenants/t/networks/n/ports/p/attachment/",
            "/tenants/t/networks/n/ports/p/attachment/detail",
            "/tenants/t/networks/n/ports/p/attachment/a/b",
            "///tenants/t/networks",
            "tenants/t/networks",
        ] {
            assert_eq!(parse("GET", path), None, "{path}");
        }
        for (method, path) in [
            ("PUT", ""),
            ("DELETE", ""),
            ("POST", "/n"),
            ("PATCH", "/n"),
            ("HEAD", ""),
            ("OPTIONS", ""),
            ("get", ""),
            ("PUT", "/detail"),
            ("DELETE", "/detail"),
            ("PUT", "/n/detail"),
            ("PUT", "/n/ports/detail"),
            ("DELETE", "/n/ports/new"),
            ("POST", "/n/ports/p/attachment"),
        ] {
            assert_eq!(parse(method, &format!("/tenants/t/networks{path}")), None, "{method} {path}");
        }
    }
}
