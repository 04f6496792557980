//! XML bodies, as values like JSON's. Pure.
//!
//! An attribute and a child element of the same name mean the same, and the child wins; namespaces are not interpreted,
//! but a name keeps its prefix. Clients are hostile, so what XML can do beyond that is refused before it costs anything:
//! document types and with them all entities of one's own, encodings other than UTF-8, deep and wide trees.

use crate::document::is_xml_char;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesDecl, BytesRef, BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, XmlVersion};
use serde_json::{Map, Value};

/// Elements inside each other. The deepest that anybody sends is 3.
pub const DEPTH_MAX: usize = 16;
/// Attributes of one element, declarations of namespaces included: their check for doubles is quadratic.
pub const ATTRIBUTES_MAX: usize = 64;
/// Elements of a body.
pub const ELEMENTS_MAX: usize = 1024;

/// Elements that hold a list: their children, whatever each is called.
const LISTS: [&str; 1] = ["allowed_address_pairs"];

/// The name of the root element and what is in it: a text if that is all there is, else an object. `None` if the body is
/// no XML or more than is read here.
pub fn read(body: &[u8]) -> Option<(String, Value)> {
    let text = std::str::from_utf8(body).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.chars().all(is_xml_char) {
        return None;
    }
    let mut reader = NsReader::from_str(text);
    reader.config_mut().check_comments = true;
    let mut tree = Tree::default();
    let mut is_first = true;
    loop {
        let event = reader.read_event().ok()?;
        let is_inside = !tree.open.is_empty();
        match &event {
            Event::Eof => return if is_inside { None } else { tree.root },
            Event::Decl(declaration) if is_first => check_declaration(declaration, text.is_ascii())?,
            // Before the root the original stumbles over them.
            Event::Comment(_) | Event::PI(_) if tree.root.is_none() && !is_inside => return None,
            Event::Comment(_) | Event::PI(_) => {}
            Event::Text(text) if text.contains("]]>") => return None,
            Event::Text(text) if is_inside => tree.add_text(&text.xml10_content()),
            Event::Text(text) if text.chars().all(|c| c.is_ascii_whitespace()) => {}
            Event::CData(text) if is_inside => tree.add_text(&text.xml10_content()),
            Event::GeneralRef(reference) if is_inside => tree.add_text(resolve(reference)?.encode_utf8(&mut [0; 4])),
            Event::Start(start) => tree.start(start, &reader)?,
            Event::Empty(start) => {
                tree.start(start, &reader)?;
                tree.end();
            }
            Event::End(_) => tree.end(),
            // Document types anywhere; text, references and declarations where none may be.
            Event::DocType(_) | Event::Decl(_) | Event::Text(_) | Event::CData(_) | Event::GeneralRef(_) => {
                return None;
            }
        }
        is_first = false;
    }
}

/// The elements being read.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    element_count: usize,
    root: Option<(String, Value)>,
}

/// An element whose end is still to come.
struct Open {
    name: String,
    fields: Map<String, Value>,
    has_children: bool,
    text: String,
    /// The children, of an element that holds a list.
    items: Option<Vec<Value>>,
}

impl Tree {
    fn start(&mut self, start: &BytesStart<'_>, reader: &NsReader<&[u8]>) -> Option<()> {
        self.element_count += 1;
        let is_second_root = self.open.is_empty() && self.root.is_some();
        if is_second_root || self.open.len() == DEPTH_MAX || self.element_count > ELEMENTS_MAX {
            return None;
        }
        let is_bound = |found| !matches!(found, ResolveResult::Unknown(_));
        let name = start.name();
        if !is_name(name.as_ref()) || !is_bound(reader.resolver().resolve_element(name).0) {
            return None;
        }
        let mut fields = Map::new();
        for (count, attribute) in start.attributes().enumerate() {
            let attribute = attribute.ok().filter(|_| count < ATTRIBUTES_MAX)?;
            let key = attribute.key;
            if !is_name(key.as_ref()) || !is_bound(reader.resolver().resolve_attribute(key).0) {
                return None;
            }
            fields.insert(key.as_ref().to_owned(), Value::String(attribute_value(&attribute)?));
        }
        let name = name.as_ref().to_owned();
        let items = LISTS.contains(&name.as_str()).then(Vec::new);
        self.open.push(Open { name, fields, has_children: false, text: String::new(), items });
        Some(())
    }

    fn add_text(&mut self, text: &str) {
        if let Some(open) = self.open.last_mut() {
            open.text.push_str(text);
        }
    }

    fn end(&mut self) {
        let Some(done) = self.open.pop() else { return };
        // Text alone counts, between elements it does not.
        let is_text = !done.has_children && !done.text.is_empty();
        let is_empty = done.fields.is_empty() && !done.has_children && done.text.is_empty();
        match self.open.last_mut() {
            Some(parent) => {
                let value = match done.items {
                    Some(items) if !is_text && done.fields.is_empty() => Value::Array(items),
                    _ if is_text || is_empty => Value::String(done.text),
                    _ => Value::Object(done.fields),
                };
                parent.has_children = true;
                match &mut parent.items {
                    Some(items) => items.push(value),
                    None => drop(parent.fields.insert(done.name, value)),
                }
            }
            None => {
                let value = if is_text { Value::String(done.text) } else { Value::Object(done.fields) };
                self.root = Some((done.name, value));
            }
        }
    }
}

fn check_declaration(declaration: &BytesDecl<'_>, is_ascii: bool) -> Option<()> {
    let is_one_of = |name: &str, known: &[&str]| known.iter().any(|known| name.eq_ignore_ascii_case(known));
    let encoding = declaration.encoding().transpose().ok()?;
    let is_served = declaration.xml_version().ok()? == XmlVersion::Explicit1_0;
    let is_read = encoding.is_none_or(|name| {
        // In these ASCII is what it is in UTF-8.
        is_one_of(&name, &["utf-8", "us-ascii"]) || is_ascii && is_one_of(&name, &["iso-8859-1", "windows-1252"])
    });
    (is_served && is_read).then_some(())
}

/// The character of a reference: by number, or one of the five that need no declaration (XML 1.0 section 4.6).
fn resolve(reference: &BytesRef<'_>) -> Option<char> {
    match &**reference {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "apos" => Some('\''),
        "quot" => Some('"'),
        _ => reference.resolve_char_ref().ok()?.filter(|c| is_xml_char(*c)),
    }
}

fn attribute_value(attribute: &Attribute<'_>) -> Option<String> {
    if attribute.value.contains('<') {
        return None;
    }
    let value = attribute.normalized_value(XmlVersion::Explicit1_0).ok()?;
    value.chars().all(is_xml_char).then(|| value.into_owned())
}

/// Names of XML (XML 1.0 section 2.3), more liberal outside ASCII.
fn is_name(name: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':' || !c.is_ascii();
    let is_rest = |c: char| is_start(c) || c.is_ascii_digit() || c == '-' || c == '.';
    name.starts_with(is_start) && name.chars().all(is_rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn attributes_and_child_elements_are_two_spellings_of_one_thing() {
        let rows = [
            (r#"<network name="x"/>"#, json!({"name": "x"})),
            ("<network><name>x</name></network>", json!({"name": "x"})),
            (r#"<?xml version="1.0" ?><network><name>x</name></network>"#, json!({"name": "x"})),
            ("<?xml version='1.0' encoding='utf-8'?>\n<network>\n <name>x</name>\n</network>\n", json!({"name": "x"})),
            (r#"<network name="a"><name>b</name><name>c</name></network>"#, json!({"name": "c"})),
            ("<?xml version='1.0' encoding='ISO-8859-1'?><network name='x'/>", json!({"name": "x"})),
            (r#"<network xmlns="n" name="x"/>"#, json!({"xmlns": "n", "name": "x"})),
            (r#"<network xmlns:q="n"><q:name>x</q:name></network>"#, json!({"xmlns:q": "n", "q:name": "x"})),
            ("<network/>", json!({})),
            ("<network></network>", json!({})),
            ("<network><name/></network>", json!({"name": ""})),
            ("<network><name></name></network>", json!({"name": ""})),
            ("<network><name> </name></network>", json!({"name": " "})),
            (r#"<network><name a="1">x</name></network>"#, json!({"name": "x"})),
            (r#"<network><name a="1"/></network>"#, json!({"name": {"a": "1"}})),
            ("<network><name><b>x</b></name></network>", json!({"name": {"b": "x"}})),
            ("<network>text<name>x</name></network>", json!({"name": "x"})),
            ("<network>abc</network>", json!("abc")),
            ("<network><!-- c --><name>a<!-- c -->b<?p?></name></network><!-- c -->", json!({"name": "ab"})),
            (
                "<network name='&lt;&#65;&amp;&#x1F980;'><b>&gt;&quot;&apos;<![CDATA[<&]]></b></network>",
                json!({"name": "<A&\u{1f980}", "b": ">\"'<&"}),
            ),
            ("<network name='a\r\nb'><b>a\r\nb</b></network>", json!({"name": "a b", "b": "a\nb"})),
            ("\u{feff}<network name='réseau'/>", json!({"name": "réseau"})),
            (
                "<network><allowed_address_pairs><p a='1'/> <p><b>2</b></p><q/></allowed_address_pairs><c/></network>",
                json!({"allowed_address_pairs": [{"a": "1"}, {"b": "2"}, ""], "c": ""}),
            ),
            ("<network><allowed_address_pairs/></network>", json!({"allowed_address_pairs": []})),
            (
                "<network><allowed_address_pairs> x</allowed_address_pairs></network>",
                json!({"allowed_address_pairs": " x"}),
            ),
            (
                "<network><allowed_address_pairs a='b'><c/></allowed_address_pairs></network>",
                json!({"allowed_address_pairs": {"a": "b"}}),
            ),
        ];
        for (body, wanted) in rows {
            assert_eq!(read(body.as_bytes()), Some(("network".to_owned(), wanted)), "{body}");
        }
        let prefixed = read(br#"<q:network xmlns:q="n" name="p"/>"#).unwrap();
        assert_eq!(prefixed.0, "q:network");
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        for body in [
            "",
            " ",
            "abc",
            r#"{"network": {"name": "a"}}"#,
            "<network",
            "<network>",
            "<network></netwrk>",
            "</network>",
            "<network/><network/>",
            "<network/>abc",
            "abc<network/>",
            "<network/>&amp;",
            "<network/><![CDATA[ ]]>",
            "<network name=x/>",
            "<network name/>",
            r#"<network name="a" name="b"/>"#,
            r#"<network name="<"/>"#,
            r#"<network name="&"/>"#,
            r#"<network name="&#1;"/>"#,
            "<network>&#0;</network>",
            "<network>&#xd800;</network>",
            "<network>& </network>",
            "<network>]]></network>",
            "<network>\u{1}</network>",
            "<1/>",
            "<net work='&nbsp;'/>",
            "<q:network/>",
            "<network q:name='x'/>",
            "<!-- a -- b --><network/>",
            "<!-- c --><network/>",
            "<?p?><network/>",
            " <?xml version='1.0'?><network/>",
            "<network><?xml version='1.0'?></network>",
            "<?xml version='1.1'?><network/>",
            "<?xml version='2.0'?><network/>",
            "<?xml version='1.0' encoding='ISO-8859-1'?><network name='é'/>",
            "<?xml version='1.0' encoding='UTF-16'?><network/>",
            "<?xml encoding='utf-8'?><network/>",
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
        assert_eq!(read(b"<network name='\xe9'/>"), None);
        assert_eq!(read(b"\xff\xfe<\0n\0/\0>\0"), None);
    }

    #[test]
    fn entities_of_ones_own_and_document_types_are_refused() {
        for body in [
            "<!DOCTYPE network><network/>",
            "<!DOCTYPE network SYSTEM 'file:///etc/passwd'><network/>",
            "<!DOCTYPE n [<!ENTITY a 'x'><!ENTITY b '&a;&a;&a;&a;'>]><network><name>&b;</name></network>",
            "<!DOCTYPE n [<!ENTITY a SYSTEM 'http://localhost/'>]><network name='&a;'/>",
            "<network name='&a;'/>",
            "<network>&a;</network>",
            "<network><!DOCTYPE n></network>",
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn depth_width_and_attributes_have_their_bounds() {
        let deep = |depth: usize| "<a>".repeat(depth) + &"</a>".repeat(depth);
        assert!(read(deep(DEPTH_MAX).as_bytes()).is_some());
        assert!(read(deep(DEPTH_MAX + 1).as_bytes()).is_none());
        assert!(read("<a>".repeat(20_000).as_bytes()).is_none());
        let wide = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count - 1));
        assert!(read(wide(ELEMENTS_MAX).as_bytes()).is_some());
        assert!(read(wide(ELEMENTS_MAX + 1).as_bytes()).is_none());
        let many = |count: usize| {
            let attributes: String = (0..count).map(|at| format!(" a{at}=''")).collect();
            format!("<a{attributes}/>")
        };
        assert!(read(many(ATTRIBUTES_MAX).as_bytes()).is_some());
        assert!(read(many(ATTRIBUTES_MAX + 1).as_bytes()).is_none());
    }
}
