//! The language of the admin socket: one JSON object a line each way, with a version number.
//!
//! A line has at most [`LINE_MAX`] bytes, so that a client cannot make the daemon keep more. A request of another version is
//! refused by name rather than misunderstood. The same socket answers `GET /metrics` in HTTP, told apart by its first
//! bytes: no request in JSON begins with `G`.

use crate::capture::serve::CaptureRequest;
use crate::cli::What;
use crate::plugs::PlugRequest;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::marker::PhantomData;

/// The version of this language.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a request or of the headers of an HTTP request: a whole frame of 64 KiB in hexadecimal fits.
pub(crate) const LINE_MAX: usize = 256 * 1024;
/// Bytes of an answer that a client takes at once. Lists have no bound: both ends take them row by row ([`Rows`], [`each_row`]).
pub(crate) const ANSWER_MAX: usize = 32 * 1024 * 1024;

/// A request with its version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    /// [`VERSION`]
    pub(crate) version: u32,
    /// What is asked.
    pub(crate) request: Request,
}

/// What a client may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Plug an interface.
    Plug(PlugRequest),
    /// Unplug one.
    Unplug {
        /// Its id.
        interface: String,
    },
    /// Show something.
    Show {
        /// What.
        what: What,
    },
    /// Trace a frame.
    Trace {
        /// Interface id or logical port id.
        port: String,
        /// The frame, hexadecimal.
        frame: String,
    },
    /// Even out the workers' load.
    Rebalance {
        /// Only tell what would be moved.
        dry_run: bool,
    },
    /// Capture frames. The answer is followed by pcapng until the end of the connection; the client closes its side to
    /// end it.
    Capture(CaptureRequest),
}

impl Request {
    /// Whether those may ask it who may only look.
    pub(crate) fn is_look(&self) -> bool {
        match self {
            Request::Show { .. } | Request::Trace { .. } => true,
            Request::Capture(capture) => capture.snaplen == 0,
            Request::Plug(_) | Request::Unplug { .. } | Request::Rebalance { .. } => false,
        }
    }

    /// Whether it changes something.
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Request::Plug(_) | Request::Unplug { .. } => true,
            Request::Rebalance { dry_run } => !dry_run,
            Request::Show { .. } | Request::Trace { .. } | Request::Capture(_) => false,
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Done; what was asked for.
    Ok(serde_json::Value),
    /// Refused or failed: one line saying why.
    Error(String),
}

/// The answer that is a list, written as its rows are found, so that nobody has all of it in memory.
pub(crate) struct Rows<'a> {
    to: &'a mut dyn Write,
    is_first: bool,
}

impl<'a> Rows<'a> {
    /// Begins the answer.
    ///
    /// # Errors
    /// What the writer said.
    pub(crate) fn begin(to: &'a mut dyn Write) -> io::Result<Rows<'a>> {
        to.write_all(br#"{"ok":["#)?;
        Ok(Rows { to, is_first: true })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// What the writer said.
    pub(crate) fn row(&mut self, row: &impl Serialize) -> io::Result<()> {
        if !std::mem::take(&mut self.is_first) {
            self.to.write_all(b",")?;
        }
        Ok(serde_json::to_writer(&mut *self.to, row)?)
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the writer said.
    pub(crate) fn end(self) -> io::Result<()> {
        self.to.write_all(b"]}\n")?;
        self.to.flush()
    }
}

/// Reads an answer that is a list and hands on its rows; `visit` says whether it wants more. The refusal, if it is one.
///
/// # Errors
/// What the reader said, or how it is no such answer; also if `visit` wanted no more.
pub(crate) fn each_row<T: DeserializeOwned>(
    from: impl BufRead,
    visit: &mut dyn FnMut(T) -> bool,
) -> Result<Option<String>, serde_json::Error> {
    Answering(visit).deserialize(&mut serde_json::Deserializer::from_reader(from))
}

/// The answer, around its rows.
struct Answering<'a, T>(&'a mut dyn FnMut(T) -> bool);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Answering<'_, T> {
    type Value = Option<String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Option<String>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Answering<'_, T> {
    type Value = Option<String>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an answer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<String>, A::Error> {
        let refusal = match map.next_key::<String>()?.as_deref() {
            Some("ok") => map.next_value_seed(List(self.0, PhantomData)).map(|()| None)?,
            Some("error") => Some(map.next_value()?),
            _ => return Err(A::Error::custom("it is neither ok nor an error")),
        };
        match map.next_key::<String>()? {
            None => Ok(refusal),
            Some(key) => Err(A::Error::custom(format!("{key:?} comes after the answer"))),
        }
    }
}

/// The rows of an answer.
struct List<'a, T>(&'a mut dyn FnMut(T) -> bool, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for List<'_, T> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for List<'_, T> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element()? {
            if !(self.0)(row) {
                return Err(A::Error::custom("no more is wanted"));
            }
        }
        Ok(())
    }
}

/// Reads one line of at most `max` bytes, without its newline; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` if the line is longer, `UnexpectedEof` if the stream ends within it.
pub(crate) fn read_line(from: &mut impl BufRead, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(max as u64 + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() >= max => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line is longer than {max} bytes")))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads hexadecimal digits, spaces and colons between them ignored.
///
/// # Errors
/// One line saying what is wrong.
pub(crate) fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b':');
    let digits = digits
        .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<Vec<u8>>>()
        .ok_or("the frame must be hexadecimal digits")?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("the frame has an odd number of hexadecimal digits".into());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(answer: &[u8], most: usize) -> Result<(Option<String>, Vec<u32>), serde_json::Error> {
        let mut rows = Vec::new();
        let refusal = each_row(answer, &mut |row: u32| {
            rows.push(row);
            rows.len() < most
        });
        refusal.map(|refusal| (refusal, rows))
    }

    #[test]
    fn a_list_is_read_row_by_row_as_it_was_written() {
        for list in [vec![], vec![7], (0..1000).collect::<Vec<u32>>()] {
            let mut text = Vec::new();
            let mut writing = Rows::begin(&mut text).unwrap();
            for row in &list {
                writing.row(row).unwrap();
            }
            writing.end().unwrap();
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["ok"], serde_json::json!(list));
            assert_eq!(rows(&text, usize::MAX).unwrap(), (None, list));
        }
        assert_eq!(rows(br#"{"error":"no"}"#, 9).unwrap(), (Some("no".into()), Vec::new()));
        for wrong in
            ["", "{}", "[]", r#"{"ok":{}}"#, r#"{"ok":["a"]}"#, r#"{"ok":[1"#, r#"{"yes":[]}"#, r#"{"ok":[],"x":1}"#]
        {
            assert!(rows(wrong.as_bytes(), 9).is_err(), "{wrong}");
        }
        assert!(rows(br#"{"ok":[1,2,3]}"#, 2).is_err());
    }

    #[test]
    fn lines_are_bounded_and_must_be_whole() {
        let mut stream: &[u8] = b"one\n\nthree";
        assert_eq!(read_line(&mut stream, 8).unwrap().unwrap(), b"one");
        assert_eq!(read_line(&mut stream, 8).unwrap().unwrap(), b"");
        assert_eq!(read_line(&mut stream, 8).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_line(&mut stream, 8).unwrap().is_none());
        let mut long: &[u8] = b"123456789\n";
        assert_eq!(read_line(&mut long, 8).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut exact: &[u8] = b"12345678\n";
        assert_eq!(read_line(&mut exact, 8).unwrap().unwrap(), b"12345678");
    }

    #[test]
    fn requests_have_one_form() {
        let text = r#"{"version":1,"request":{"show":{"what":"ports"}}}"#;
        let envelope: Envelope = serde_json::from_str(text).unwrap();
        assert!(matches!(envelope.request, Request::Show { what: What::Ports }));
        assert_eq!(serde_json::to_string(&envelope).unwrap(), text);
        for wrong in [
            r#"{"request":{"show":{"what":"ports"}}}"#,
            r#"{"version":1,"request":{"show":{"what":"ports","x":1}}}"#,
            r#"{"version":1,"request":{"reboot":{}}}"#,
            r#"{"version":1,"request":{"unplug":{"interface":"a"}},"x":1}"#,
        ] {
            assert!(serde_json::from_str::<Envelope>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_are_read_from_hexadecimal() {
        assert_eq!(parse_hex("ff:00 0a\n0B").unwrap(), [0xff, 0, 0x0a, 0x0b]);
        assert!(parse_hex("f").is_err());
        assert!(parse_hex("0x00").is_err());
        assert!(parse_hex("éé").is_err());
        assert!(parse_hex("").unwrap().is_empty());
    }
}
