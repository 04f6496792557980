//! JSON bodies, read within bounds. Pure.
//!
//! A body is at most 64 KiB, but what it becomes is not: an object of six bytes takes several hundred in memory, and hundreds
//! of clients may send such bodies at the same time. So values are counted before anything is built, as XML's elements are
//! ([`crate::xml`]); how deep they are is bounded by serde_json.

use serde::de::DeserializeOwned;

/// Values of a body, nothing left out: the most that anybody sends is a port's 64 pairs.
pub const VALUES_MAX: usize = 2048;

/// What a body says; `None` if it is no JSON, not of this shape, or more than is read here.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    if count(body) > VALUES_MAX { None } else { serde_json::from_slice(body).ok() }
}

/// As many values as a text can have at most: each but the first is behind a bracket, a brace or a comma.
fn count(body: &[u8]) -> usize {
    let (mut count, mut is_string, mut is_escaped) = (1, false, false);
    for &byte in body {
        if is_string {
            is_string = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
        } else {
            is_string = byte == b'"';
            count += usize::from(matches!(byte, b'[' | b'{' | b','));
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// All values in a value, itself included.
    fn values(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(values).sum(),
            Value::Object(fields) => fields.values().map(values).sum::<usize>(),
            _ => 0,
        }
    }

    #[test]
    fn as_many_values_as_may_be_are_read_and_one_more_is_not() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 2));
        assert!(read::<Value>(list(VALUES_MAX).as_bytes()).is_some());
        assert!(read::<Value>(list(VALUES_MAX + 1).as_bytes()).is_none());
        assert!(read::<Value>("[".repeat(VALUES_MAX).as_bytes()).is_none());
        assert!(read::<Value>(format!("{}{}", "[".repeat(200), "]".repeat(200)).as_bytes()).is_none(), "too deep");
    }

    #[test]
    fn what_stands_in_a_text_is_no_value() {
        let text = r#"{"a,[{\"": "[[[[,,,,\\", "b": ",\"{"}"#;
        assert_eq!(count(text.as_bytes()), 3);
        let long = Value::String(",".repeat(VALUES_MAX));
        assert_eq!(read::<Value>(long.to_string().as_bytes()), Some(long));
    }

    proptest! {
        #[test]
        fn no_text_has_more_values_than_are_counted(texts in prop::collection::vec("[\\[\\]{}:,\"a\\\\ ]{0,6}", 0..12)) {
            let object: serde_json::Map<String, Value> =
                texts.iter().map(|text| (text.clone(), serde_json::json!([text, {"k": text}, 7, []]))).collect();
            let text = Value::Object(object);
            prop_assert!(values(&text) <= count(text.to_string().as_bytes()) + 1);
            let any = texts.concat();
            if let Ok(value) = serde_json::from_str::<Value>(&any) {
                prop_assert!(values(&value) <= count(any.as_bytes()));
            }
        }
    }
}
