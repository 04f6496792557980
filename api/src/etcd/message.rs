//! etcd's messages as its JSON gateway has them (etcd 3.4, `rpc.proto`): 64-bit numbers are texts, bytes are Base64, and what
//! has its default value is left out. Pure; what is read here is a stranger's until it is one of these types.

use crate::base64;
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A version of the whole store: it grows with each write.
pub type Revision = i64;
/// A lease's number.
pub type LeaseId = i64;

/// A key or value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&base64::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Blob, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        base64::decode(&text).map(Blob).ok_or_else(|| D::Error::custom("no Base64"))
    }
}

/// A 64-bit number, written as text, read as text or number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Number(pub(super) i64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Number;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a 64-bit number, as text or not")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map(Number).map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Number, E> {
                i64::try_from(number).map(Number).map_err(E::custom)
            }
        }
        from.deserialize_any(Either)
    }
}

/// What every answer begins with.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct Header {
    pub(super) revision: Number,
}

/// An answer. What has its default value is left out, so that any object could be one.
pub(super) trait Answer: DeserializeOwned {
    /// Whether it has what etcd always tells: whoever does not is no etcd, and what he does not have is not gone.
    fn is_etcds(&self) -> bool;
}

/// An answer that tells nothing but that it was done.
#[derive(Deserialize)]
pub(super) struct Done {
    header: Header,
}

impl Answer for Done {
    fn is_etcds(&self) -> bool {
        self.header.revision.0 > 0
    }
}

#[derive(Serialize)]
pub(super) struct CompactionRequest {
    pub(super) revision: Number,
}

/// A key as it was written last.
#[derive(Clone, PartialEq, Eq, Deserialize, Default, Debug)]
#[serde(default)]
pub struct KeyValue {
    /// The key.
    pub key: Blob,
    /// The value.
    pub value: Blob,
    mod_revision: Number,
}

impl KeyValue {
    /// The revision of the write.
    pub fn mod_revision(&self) -> Revision {
        self.mod_revision.0
    }
}

#[derive(Serialize)]
pub(super) struct RangeRequest<'a> {
    pub(super) key: &'a Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<&'a Blob>,
    pub(super) limit: Number,
    pub(super) revision: Number,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct RangeResponse {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) more: bool,
}

impl Answer for RangeResponse {
    fn is_etcds(&self) -> bool {
        self.header.revision.0 > 0
    }
}

/// What a transaction asks before it does anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compare {
    /// That this key was written last at this revision; 0: that it is not there.
    At(Blob, Revision),
    /// That this key has this value.
    Is(Blob, Blob),
}

impl Serialize for Compare {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            target: &'static str,
            result: &'static str,
            key: &'a Blob,
            #[serde(skip_serializing_if = "Option::is_none")]
            mod_revision: Option<Number>,
            #[serde(skip_serializing_if = "Option::is_none")]
            value: Option<&'a Blob>,
        }
        let result = "EQUAL";
        let written = match self {
            Compare::At(key, revision) => {
                Written { target: "MOD", result, key, mod_revision: Some(Number(*revision)), value: None }
            }
            Compare::Is(key, value) => Written { target: "VALUE", result, key, mod_revision: None, value: Some(value) },
        };
        written.serialize(to)
    }
}

/// A step of a transaction.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub enum Step {
    /// Writes a key.
    #[serde(rename = "request_put")]
    Put(Put),
    /// Removes a key.
    #[serde(rename = "request_delete_range")]
    Delete(Named),
    /// Reads a key.
    #[serde(rename = "request_range")]
    Read(Named),
    /// Does a transaction within.
    #[serde(rename = "request_txn")]
    Within(Txn),
}

/// A write of a key.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Put {
    /// The key.
    pub key: Blob,
    /// Its value.
    pub value: Blob,
    lease: Number,
}

/// A key alone.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Named {
    /// The key.
    pub key: Blob,
}

impl Step {
    /// Writes a key; with a lease it goes when that ends.
    pub fn put(key: Blob, value: Vec<u8>, lease: Option<LeaseId>) -> Step {
        Step::Put(Put { key, value: Blob(value), lease: Number(lease.unwrap_or_default()) })
    }

    /// Removes a key.
    pub fn delete(key: Blob) -> Step {
        Step::Delete(Named { key })
    }

    /// Reads a key.
    pub fn read(key: Blob) -> Step {
        Step::Read(Named { key })
    }
}

/// A transaction: if all that it asks is so, the steps of `success` are done as one, else those of `failure`.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, Default)]
pub struct Txn {
    /// What it asks.
    pub compare: Vec<Compare>,
    /// Steps if it is so.
    pub success: Vec<Step>,
    /// Steps if not.
    pub failure: Vec<Step>,
}

/// What a transaction answered.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub struct TxnResponse {
    header: Header,
    /// What it asked was so.
    pub succeeded: bool,
    responses: Vec<StepResponse>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct StepResponse {
    response_range: Option<RangeResponse>,
    response_txn: Option<TxnResponse>,
}

impl Answer for TxnResponse {
    fn is_etcds(&self) -> bool {
        self.header.revision.0 > 0
    }
}

impl TxnResponse {
    /// The revision of the store after it.
    pub fn revision(&self) -> Revision {
        self.header.revision.0
    }

    /// What the reading step at `at` found; nothing if it was no reading step.
    pub fn found(&self, at: usize) -> Option<&KeyValue> {
        self.responses.get(at)?.response_range.as_ref()?.kvs.first()
    }

    /// What the transaction that was the step at `at` answered. Its own revision is not told there.
    pub fn within(&self, at: usize) -> Option<&TxnResponse> {
        self.responses.get(at)?.response_txn.as_ref()
    }
}

#[derive(Serialize)]
pub(super) struct GrantRequest {
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

#[derive(Serialize)]
pub(super) struct LeaseRequest {
    #[serde(rename = "ID")]
    pub(super) id: Number,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct LeaseResponse {
    #[serde(rename = "ID")]
    pub(super) id: Number,
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

impl Answer for LeaseResponse {
    fn is_etcds(&self) -> bool {
        self.id.0 != 0
    }
}

#[derive(Serialize)]
pub(super) struct LoginRequest<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct LoginResponse {
    pub(super) token: String,
}

#[derive(Serialize)]
pub(super) struct WatchRequest<'a> {
    pub(super) create_request: WatchCreate<'a>,
}

#[derive(Serialize)]
pub(super) struct WatchCreate<'a> {
    pub(super) key: &'a Blob,
    pub(super) range_end: &'a Blob,
    pub(super) start_revision: Number,
    pub(super) progress_notify: bool,
    pub(super) fragment: bool,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct WatchResponse {
    pub(super) header: Header,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: Number,
    pub(super) cancel_reason: String,
    pub(super) fragment: bool,
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct WatchEvent {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    pub(super) kv: KeyValue,
}

#[derive(Deserialize, Default, PartialEq, Eq, Debug)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventKind {
    #[default]
    Put,
    Delete,
}

/// A part of an answer that comes in parts: what it is, or an error that ends it.
#[derive(Deserialize, Debug)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    #[serde(default)]
    pub(super) error: Option<serde_json::Value>,
}

impl<T: Answer> Answer for Streamed<T> {
    fn is_etcds(&self) -> bool {
        self.result.as_ref().is_none_or(T::is_etcds)
    }
}

/// What is said instead of an answer.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) error: String,
    pub(super) code: u32,
}

/// What a fuzzer throws at who asks: these bytes as an answer of each kind.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_noise(bytes: &[u8]) {
    if let Ok(range) = serde_json::from_slice::<RangeResponse>(bytes) {
        range.kvs.iter().for_each(|kv| drop(kv.key.end_of_prefix()));
    }
    if let Ok(answer) = serde_json::from_slice::<TxnResponse>(bytes) {
        for at in 0..=answer.responses.len() {
            let within = answer.within(at).map(|within| within.found(0));
            let _ = (answer.found(at), within);
        }
    }
    let _ = serde_json::from_slice::<Streamed<LeaseResponse>>(bytes);
    let _ = serde_json::from_slice::<LoginResponse>(bytes);
    let _ = serde_json::from_slice::<Refusal>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_as_the_gateway_writes_them() {
        let text = r#"{"header":{"cluster_id":"324952591200643719","revision":"3"},"succeeded":true,"responses":[
            {"response_txn":{"header":{},"responses":[{"response_range":{"header":{"revision":"3"},
            "kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"Yg=="}],"count":"1"}}]}},
            {"response_put":{"header":{"revision":"3"}}}]}"#;
        let answer: TxnResponse = serde_json::from_str(text).unwrap();
        assert_eq!((answer.revision(), answer.succeeded), (3, true));
        let within = answer.within(0).unwrap();
        assert!(!within.succeeded);
        let found = within.found(0).unwrap();
        assert_eq!((&*found.key.0, &*found.value.0, found.mod_revision()), (&b"a"[..], &b"b"[..], 2));
        assert!(answer.found(0).is_none() && answer.found(1).is_none() && answer.within(9).is_none());
    }

    proptest! {
        #[test]
        fn no_noise_is_more_than_refused(cuts in prop::collection::vec(any::<(u16, u8)>(), 0..8)) {
            for text in [
                r#"{"header":{"revision":"9"},"kvs":[{"key":"YQ==","mod_revision":"7","value":"Yg=="}],"more":true}"#,
                r#"{"succeeded":true,"responses":[{"response_range":{"kvs":[{}]}},{"response_txn":{"responses":[{}]}}]}"#,
                r#"{"result":{"ID":"7","TTL":"3"},"token":"x.1","error":"e","code":3,"message":"m"}"#,
            ] {
                let mut bytes = text.as_bytes().to_vec();
                for &(at, byte) in &cuts {
                    let at = usize::from(at) % bytes.len();
                    bytes[at] = byte;
                }
                read_noise(&bytes);
            }
        }
    }

    #[test]
    fn a_transaction_is_written_as_the_gateway_reads_it() {
        let blob = |text: &str| Blob(text.as_bytes().to_vec());
        let inner = Txn { compare: Vec::new(), success: vec![Step::delete(blob("c"))], failure: Vec::new() };
        let txn = Txn {
            compare: vec![Compare::At(blob("a"), i64::MAX), Compare::Is(blob("a"), blob("b"))],
            success: vec![Step::put(blob("b"), vec![0xff], Some(7)), Step::Within(inner)],
            failure: vec![Step::read(blob("a"))],
        };
        let written = serde_json::to_string(&txn).unwrap();
        assert_eq!(
            written,
            r#"{"compare":[{"target":"MOD","result":"EQUAL","key":"YQ==","mod_revision":"9223372036854775807"},{"target":"VALUE","result":"EQUAL","key":"YQ==","value":"Yg=="}],"success":[{"request_put":{"key":"Yg==","value":"/w==","lease":"7"}},{"request_txn":{"compare":[],"success":[{"request_delete_range":{"key":"Yw=="}}],"failure":[]}}],"failure":[{"request_range":{"key":"YQ=="}}]}"#
        );
    }

    #[test]
    fn numbers_out_of_range_and_texts_that_are_none_are_refused() {
        for text in [r#""9223372036854775808""#, r#""1x""#, "1.5", "null", "18446744073709551615", r#""""#] {
            assert!(serde_json::from_str::<Number>(text).is_err(), "{text}");
        }
        for text in [r#""7""#, "7"] {
            assert_eq!(serde_json::from_str::<Number>(text).unwrap(), Number(7));
        }
    }
}
