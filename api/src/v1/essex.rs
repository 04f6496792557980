//! What only `api.strict_essex` does: the original's recorded oddities that a client could be hurt by
//! (`api/DEVIATIONS.md`). Pure. Here are those of requests; [`super::version`] has the fault that is no XML, and plugins
//! have [`Plugin::overwrite_network`](crate::plugin::Plugin::overwrite_network).

use super::Request;
use crate::model::{OpStatus, TEXT_BYTES_MAX, Text};
use crate::plugin::{NetworkRow, PortRow};
use crate::url::query_pairs;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key that replaces a request's method.
const METHOD_KEY: &str = "_method";
/// Attributes of an updated network that the original took for parameters of its own.
pub(super) const NETWORK_CLASHES: [&str; 3] = ["tenant_id", "net_id", "self"];
/// The same of an updated port.
pub(super) const PORT_CLASHES: [&str; 4] = ["tenant_id", "net_id", "port_id", "self"];

/// The method a request is treated as: the last `_method` of its query, or of the form that a POST carries.
pub(super) fn method(request: &Request) -> Cow<'_, str> {
    let named = |pairs: &[(String, String)]| {
        let last = pairs.iter().rev().find(|(key, _)| key == METHOD_KEY)?;
        Some(Cow::Owned(last.1.to_ascii_uppercase()))
    };
    let is_form = request.method == "POST"
        && request.content_type.as_deref().and_then(|value| value.split(';').next()).map(str::trim)
            == Some("application/x-www-form-urlencoded");
    let form = || {
        let text = std::str::from_utf8(&request.body).ok().filter(|_| is_form)?;
        named(&query_pairs(text))
    };
    named(&request.query).or_else(form).unwrap_or(Cow::Borrowed(&request.method))
}

/// A value that is no text as the text that the original's database kept: of what is false nothing, `true` as SQL has it.
/// Arrays and objects with something in them were its failure and stay refused.
pub(super) fn stored(value: &Value) -> Option<Cow<'static, str>> {
    match value {
        Value::Bool(true) => Some("1".into()),
        Value::Number(number) if !is_empty(value) => Some(match number.as_f64().filter(|_| number.is_f64()) {
            Some(real) => pointed(real, &format!("{real:.14e}"), 15, true).into(),
            None => number.to_string().into(),
        }),
        _ if is_empty(value) => Some("".into()),
        _ => None,
    }
}

/// The same as a port state, which is looked at before it is kept, as Python would write it.
pub(super) fn as_state(value: &Value) -> Option<Cow<'static, str>> {
    Some(if is_empty(value) { "".into() } else { in_python(value, false).into() })
}

/// The same as a text that the original made of whatever came, before it kept it; of what is false it made none.
pub(super) fn as_text(value: &Value) -> String {
    if is_empty(value) { "None".to_owned() } else { in_python(value, false) }
}

/// What Python takes for false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A value as Python 2 writes it, alone or inside another. Of its order of keys only that of one key is known.
pub(super) fn in_python(value: &Value, is_inside: bool) -> String {
    let list = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(real) if is_inside => pointed(real, &format!("{real:e}"), 16, false),
            Some(real) => pointed(real, &format!("{real:.11e}"), 12, false),
            None => number.to_string(),
        },
        Value::String(text) if is_inside => quoted(text),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", list(items.iter().map(|item| in_python(item, true)).collect())),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| format!("{}: {}", quoted(key), in_python(value, true));
            format!("{{{}}}", list(fields.iter().map(field).collect()))
        }
    }
}

/// A text as Python 2 writes it inside a value.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = format!("u{quote}");
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
    out
}

/// A number with the digits that it has as `scientific`, without the zeros that end it: with an exponent below -4 and from
/// `exponent_max` on, else with a point. `is_always_pointed`: before an exponent too.
fn pointed(real: f64, scientific: &str, exponent_max: i32, is_always_pointed: bool) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    if exponent < -4 || exponent >= exponent_max {
        let point = if is_always_pointed && !mantissa.contains('.') { ".0" } else { "" };
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}{point}e{sign}{:02}", exponent.abs());
    }
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let places = i32::try_from(decimals).unwrap_or_default() - exponent;
    format!("{real:.*}", usize::try_from(places).unwrap_or_default().max(1))
}

/// What an update writes over a network's row. `name` was checked.
pub(super) fn network_row(network: &Map<String, Value>, name: Option<Text>) -> NetworkRow {
    NetworkRow { name, id: row_text(network, "uuid"), op_status: op_status(network) }
}

/// What an update writes over a port's row. `state` was checked.
pub(super) fn port_row(port: &Map<String, Value>, state: Text) -> PortRow {
    PortRow {
        id: row_text(port, "uuid"),
        network: row_text(port, "network_id"),
        attachment: port.get("interface_id").map(|_| row_text(port, "interface_id")),
        op_status: op_status(port),
        ..PortRow::of_state(state)
    }
}

fn op_status(row: &Map<String, Value>) -> Option<OpStatus> {
    row.get("op_status").and_then(Value::as_str).and_then(OpStatus::from_name)
}

/// A text of the row that can be one's id.
fn row_text(row: &Map<String, Value>, key: &str) -> Option<Text> {
    let is_usable = |id: &Cow<'_, str>| !id.is_empty() && id.len() <= TEXT_BYTES_MAX && !id.contains('\0');
    let text = match row.get(key)? {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        value => stored(value),
    };
    text.filter(is_usable).map(Text::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Dialect, Version};
    use serde_json::json;

    fn request(method: &str, query: &[(&str, &str)], content_type: &str, body: &str) -> Request {
        Request {
            version: Version::V1_1,
            dialect: Dialect::StrictEssex,
            method: method.into(),
            path: String::new(),
            query: query.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
            content_type: Some(content_type.into()),
            accept: None,
            body: body.into(),
        }
    }

    #[test]
    fn the_last_method_named_in_the_query_or_else_in_a_posted_form_counts() {
        const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
        let rows = [
            ("GET", &[][..], FORM, "_method=DELETE", "GET"),
            ("POST", &[], FORM, "_method=DELETE", "DELETE"),
            ("POST", &[], FORM, "a=b&_method=put&_method=delete", "DELETE"),
            ("POST", &[], FORM, r#"{"network": {"name": "_method=DELETE"}}"#, "POST"),
            ("POST", &[], "application/json", "_method=DELETE", "POST"),
            ("POST", &[("_method", "delete")], FORM, "_method=PUT", "DELETE"),
            ("GET", &[("_method", "PUT"), ("_method", "DELETE")], "", "", "DELETE"),
        ];
        for (method_sent, query, content_type, body, wanted) in rows {
            assert_eq!(method(&request(method_sent, query, content_type, body)), wanted, "{query:?} {body}");
        }
    }

    #[test]
    fn values_become_the_text_that_was_recorded() {
        for (value, wanted) in [
            (json!(12), Some("12")),
            (json!(true), Some("1")),
            (json!(1.5), Some("1.5")),
            (json!(-2.0), Some("-2.0")),
            (json!(123456.0), Some("123456.0")),
            (json!(0.00012), Some("0.00012")),
            (json!(0.1 + 0.2), Some("0.3")),
            (json!(1e20), Some("1.0e+20")),
            (json!(2.5e-7), Some("2.5e-07")),
            (json!(0), Some("")),
            (json!(0.0), Some("")),
            (json!(false), Some("")),
            (json!({}), Some("")),
            (json!([]), Some("")),
            (json!(["a"]), None),
            (json!({"a": 1}), None),
        ] {
            assert_eq!(stored(&value).as_deref(), wanted, "{value}");
        }
    }

    #[test]
    fn states_that_are_no_text_are_told_as_python_wrote_them() {
        for (value, wanted) in [
            (json!(true), "True"),
            (json!(1), "1"),
            (json!(1.5), "1.5"),
            (json!(1e20), "1e+20"),
            (json!(0.1 + 0.2), "0.3"),
            (json!([0.1 + 0.2]), "[0.30000000000000004]"),
            (json!([]), ""),
            (json!(["ACTIVE", 1, null, true, 1.5]), "[u'ACTIVE', 1, None, True, 1.5]"),
            (json!({"a": {"b": "c"}}), "{u'a': {u'b': u'c'}}"),
            (
                json!(["it's", "a\"'", "é\u{1f980}\u{20ac}\n\\"]),
                "[u\"it's\", u'a\"\\'', u'\\xe9\\U0001f980\\u20ac\\n\\\\']",
            ),
        ] {
            assert_eq!(as_state(&value).as_deref(), Some(wanted), "{value}");
        }
    }

    #[test]
    fn a_text_made_of_anything_is_as_python_wrote_it() {
        for (value, wanted) in [
            (json!({"PPS": 50, "TTL": 5}), "{u'PPS': 50, u'TTL': 5}"),
            (json!({"PPS": "50"}), "{u'PPS': u'50'}"),
            (json!(["a"]), "[u'a']"),
            (json!(true), "True"),
            (json!(7), "7"),
            (json!("d"), "d"),
            (json!(""), "None"),
            (json!(0), "None"),
            (json!(false), "None"),
            (json!([]), "None"),
            (json!({}), "None"),
        ] {
            assert_eq!(as_text(&value), wanted, "{value}");
        }
    }

    #[test]
    fn an_update_writes_over_id_and_op_status_what_a_row_can_hold() {
        let row = |network: Value| network_row(network.as_object().unwrap(), Some("n".into()));
        let all = row(json!({"name": "n", "uuid": "x", "op_status": "DOWN", "tenant": "y"}));
        assert_eq!(all, NetworkRow { name: Some("n".into()), id: Some("x".into()), op_status: Some(OpStatus::Down) });
        let none = NetworkRow { name: Some("n".into()), id: None, op_status: None };
        assert_eq!(row(json!({"uuid": "", "op_status": "BROKEN"})), none);
        assert_eq!(row(json!({"uuid": null, "op_status": null})), none);
        assert_eq!(row(json!({"uuid": "a\0"})), none);
        assert_eq!(row(json!({"uuid": 5})).id.as_deref(), Some("5"));
        let row = |port: Value| port_row(port.as_object().unwrap(), "DOWN".into());
        let all = row(json!({"uuid": "p", "network_id": "n", "interface_id": "v", "op_status": "UP"}));
        assert_eq!((all.id.as_deref(), all.network.as_deref()), (Some("p"), Some("n")));
        assert_eq!((all.attachment, all.op_status), (Some(Some("v".into())), Some(OpStatus::Up)));
        for nothing in [json!(null), json!(""), json!(false)] {
            assert_eq!(row(json!({"interface_id": nothing})).attachment, Some(None));
        }
        assert_eq!(row(json!({})), PortRow::of_state("DOWN".into()));
    }
}
