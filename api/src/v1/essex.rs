//! What only `api.strict_essex` does: the original's recorded oddities that a client could be hurt by (specification
//! sections 2, 5 and 9). Pure. Here are those of requests; [`super::version`] has the fault that is no XML, and plugins
//! have [`Plugin::overwrite_network`](crate::plugin::Plugin::overwrite_network).

use super::Request;
use super::body::BadRequest;
use crate::model::{OpStatus, Text};
use crate::plugin::NetworkRow;
use axum::extract::Query;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The key that replaces a request's method.
const METHOD_KEY: &str = "_method";
/// Attributes of an updated network that the original took for parameters of its own.
const NETWORK_CLASHES: [&str; 2] = ["tenant_id", "net_id"];
/// The same of an updated port.
const PORT_CLASHES: [&str; 3] = ["tenant_id", "net_id", "port_id"];

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
        let uri = format!("/?{text}").parse().ok()?;
        named(&Query::<Vec<(String, String)>>::try_from_uri(&uri).ok()?.0)
    };
    named(&request.query).or_else(form).unwrap_or(Cow::Borrowed(&request.method))
}

/// A value that is no text as the text that the original stored for it: of what is false nothing, `true` as SQL has it.
/// Arrays and objects with something in them were its failure and stay refused.
pub(super) fn stored(value: &Value) -> Option<Cow<'static, str>> {
    match value {
        Value::Bool(true) => Some("1".into()),
        Value::Number(number) if number.as_f64() != Some(0.0) => Some(number.to_string().into()),
        Value::Null | Value::Bool(false) | Value::Number(_) => Some("".into()),
        Value::Array(items) if items.is_empty() => Some("".into()),
        Value::Object(fields) if fields.is_empty() => Some("".into()),
        Value::Array(_) | Value::Object(_) | Value::String(_) => None,
    }
}

/// The same as a port state, which is looked at before it is stored, as Python would write it.
pub(super) fn as_state(value: &Value) -> Option<Cow<'static, str>> {
    if value == &Value::Bool(true) { Some("True".into()) } else { stored(value) }
}

/// Refuses attributes of an updated network that the original could not take.
pub(super) fn check_network_attributes(network: &Map<String, Value>) -> Result<(), BadRequest> {
    refuse(network, &NETWORK_CLASHES)
}

/// Refuses attributes of an updated port that the original could not take.
pub(super) fn check_port_attributes(port: &Map<String, Value>) -> Result<(), BadRequest> {
    refuse(port, &PORT_CLASHES)
}

fn refuse(object: &Map<String, Value>, keys: &[&str]) -> Result<(), BadRequest> {
    if keys.iter().any(|key| object.contains_key(*key)) { Err(BadRequest::Unusable) } else { Ok(()) }
}

/// What an update writes over a network's row. `name` was checked.
pub(super) fn network_row(network: &Map<String, Value>, name: Option<Text>) -> NetworkRow {
    let text = |key| network.get(key).and_then(Value::as_str);
    let op_status = text("op_status").and_then(OpStatus::from_name);
    let is_usable = |id: &&str| !id.is_empty() && id.len() <= crate::model::TEXT_BYTES_MAX && !id.contains('\0');
    NetworkRow { name, id: text("uuid").filter(is_usable).map(Text::from), op_status }
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
            (json!(0), Some("")),
            (json!(false), Some("")),
            (json!({}), Some("")),
            (json!([]), Some("")),
            (json!(["a"]), None),
            (json!({"a": 1}), None),
        ] {
            assert_eq!(stored(&value).as_deref(), wanted, "{value}");
        }
        assert_eq!(as_state(&json!(true)).as_deref(), Some("True"));
        assert_eq!(as_state(&json!(1)).as_deref(), Some("1"));
    }

    #[test]
    fn an_update_writes_over_id_and_op_status_what_a_row_can_hold() {
        let row = |network: Value| network_row(network.as_object().unwrap(), Some("n".into()));
        let all = row(json!({"name": "n", "uuid": "x", "op_status": "DOWN", "tenant": "y"}));
        assert_eq!(all, NetworkRow { name: Some("n".into()), id: Some("x".into()), op_status: Some(OpStatus::Down) });
        let none = NetworkRow { name: Some("n".into()), id: None, op_status: None };
        assert_eq!(row(json!({"uuid": "", "op_status": "BROKEN"})), none);
        assert_eq!(row(json!({"uuid": 1, "op_status": null})), none);
        assert_eq!(row(json!({"uuid": "a\0"})), none);
    }
}
