//! JSON or XML, decided once for both directions (specification section 3). Pure.

/// Whether a request is in XML and wants XML. The suffix decides; else an exact Content-Type, on GET too; else it is
/// JSON. The Accept header, which the original asks third, can only choose between formats that are served; with JSON
/// alone it chooses nothing.
pub(crate) fn is_xml(suffix: Option<&str>, content_type: Option<&str>) -> bool {
    match suffix {
        Some("json") => return false,
        Some("xml") => return true,
        _ => {}
    }
    content_type.and_then(|value| value.split(';').next()).map(str::trim) == Some("application/xml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_beats_the_content_type_and_all_else_is_json() {
        assert!(!is_xml(Some("json"), Some("application/xml")));
        assert!(is_xml(Some("xml"), Some("application/json")));
        assert!(!is_xml(Some("XML"), None));
        assert!(is_xml(None, Some("application/xml; charset=UTF-8")));
        assert!(!is_xml(None, Some("text/xml")));
        assert!(!is_xml(None, Some("application/x-www-form-urlencoded")));
        assert!(!is_xml(None, None));
    }
}
