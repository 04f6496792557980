//! What changes below a prefix, from a revision on, as etcd tells it.
//!
//! A watch is an answer without end: a line of JSON for each piece of news. Harder than it looks is its end, which may come
//! without a word: so connections are probed by the kernel ([`crate::http_client`]), members without a leader are told to end it,
//! and whoever follows it compares now and then what it told with what there is. News of one transaction come together;
//! where etcd cuts them they are put together here. A line has at most [`LINE_BYTES_MAX`] bytes, what was put together
//! [`GATHERED_MAX`] events and [`GATHERED_BYTES_MAX`] bytes: who falls behind by more reads everything anew.

use super::message::{
    Blob, EventKind, Number, Revision, Streamed, WatchCreate, WatchEvent, WatchRequest, WatchResponse,
};
use super::{ANSWER_BYTES_MAX, ANSWER_MAX, Etcd, EtcdError};
use crate::http_client::{self, Connection, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, timeout_at};

/// Bytes of one line: etcd cuts what is longer than its largest request and some (1.5 MiB + 512 KiB), in Base64.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Events put together: some times those of the largest transaction of ours, from each of which etcd may have cut one.
const GATHERED_MAX: usize = 65_536;
/// Bytes that told them: some times what the largest transaction takes.
const GATHERED_BYTES_MAX: usize = 4 * LINE_BYTES_MAX;

/// Something that happened to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The key.
    pub key: Blob,
    /// What it was written with; `None`: it is gone.
    pub value: Option<Vec<u8>>,
    /// The revision of that.
    pub revision: Revision,
}

/// News.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// All that happened up to this revision is told.
    pub revision: Revision,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Bytes that told it.
    pub bytes: usize,
}

/// A watch under way. It ends with the first error.
pub struct Watch {
    body: Incoming,
    /// Held so that the connection is.
    _connection: Connection,
    lines: Lines,
    gathered: News,
    /// Whose it is.
    member: usize,
}

impl Etcd {
    /// Watches all keys that begin with `prefix`, from the news of revision `from` on. Answers when its member says that it has
    /// begun.
    ///
    /// # Errors
    /// [`EtcdError`]; what is too old is told by [`Watch::next`].
    pub async fn watch(&self, prefix: &Blob, from: Revision) -> Result<Watch, EtcdError> {
        let create_request = WatchCreate {
            key: prefix,
            range_end: &prefix.end_of_prefix(),
            start_revision: Number(from),
            progress_notify: true,
            fragment: true,
        };
        let body = serde_json::to_vec(&WatchRequest { create_request }).expect("messages have only text keys");
        let deadline = Instant::now() + ANSWER_MAX;
        let token = self.token(deadline).await?;
        let member = self.current.load(Ordering::Relaxed);
        let mut request = self.request(member, "/v3/watch", body, token.as_deref())?;
        // To the gateway a header, to etcd what ends a watch of a member that has lost the others.
        request.headers_mut().insert("grpc-metadata-hasleader", HeaderValue::from_static("true"));
        match self.begin(member, request, deadline).await {
            Ok((connection, answer)) if answer.status().is_success() => {
                let (lines, gathered) = (Lines::default(), News::default());
                let mut watch = Watch { body: answer.into_body(), _connection: connection, lines, gathered, member };
                let silent = || EtcdError::Unanswered(format!("no watch within {ANSWER_MAX:?}"));
                let begun = timeout_at(deadline, watch.begin()).await.map_err(|_| silent()).flatten();
                begun.inspect_err(|_| self.turn(member))?;
                Ok(watch)
            }
            Ok((_, answer)) => {
                let status = answer.status();
                self.turn(member);
                let answer = timeout_at(deadline, http_client::read(answer, ANSWER_BYTES_MAX)).await;
                let body = answer.ok().and_then(Result::ok).map(axum::http::Response::into_body);
                Err(super::refusal(&body.unwrap_or_default(), status.as_u16()))
            }
            Err(error) => {
                self.turn_from(member);
                Err(error)
            }
        }
    }

    /// A watch of this member has ended, whatever was said of why: the next one is another's, and by a new token. One that is
    /// none any more is refused as one whose user lacks the right.
    pub(crate) fn turn(&self, member: usize) {
        *super::lock(&self.token) = None;
        self.turn_from(member);
    }
}

impl Watch {
    /// Waits for news. Safe to give up and to call again.
    ///
    /// # Errors
    /// [`EtcdError::Compacted`]: etcd has forgotten what comes next; anything else: the watch has ended.
    pub async fn next(&mut self) -> Result<News, EtcdError> {
        loop {
            if let Said::News(news) = self.hear().await? {
                return Ok(news);
            }
        }
    }

    /// Whose it is.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    async fn begin(&mut self) -> Result<(), EtcdError> {
        while self.hear().await? != Said::Begun {}
        Ok(())
    }

    /// Waits for what is said next.
    async fn hear(&mut self) -> Result<Said, EtcdError> {
        loop {
            if let Some(line) = self.lines.next()? {
                return read_line(&line, &mut self.gathered);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.lines.take(&bytes);
                    }
                }
                Some(Err(error)) => return Err(EtcdError::Unanswered(error.to_string())),
                None => return Err(EtcdError::Unanswered("the watch has ended".to_owned())),
            }
        }
    }
}

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Said {
    /// The watch has begun.
    Begun,
    /// News, whole.
    News(News),
    /// A part of news.
    Part,
}

/// Reads a line; news that are not whole yet are kept in `gathered`.
///
/// # Errors
/// [`EtcdError`]; the watch is over.
fn read_line(line: &[u8], gathered: &mut News) -> Result<Said, EtcdError> {
    let said: Streamed<WatchResponse> =
        serde_json::from_slice(line).map_err(|error| EtcdError::Nonsense(error.to_string()))?;
    let Some(said) = said.result else {
        return Err(EtcdError::Unanswered(said.error.map(|error| error.to_string()).unwrap_or_default()));
    };
    if said.compact_revision.0 > 0 {
        return Err(EtcdError::Compacted);
    }
    if said.canceled {
        return Err(EtcdError::Unanswered(said.cancel_reason));
    }
    gathered.bytes += line.len();
    let is_too_much = gathered.events.len() + said.events.len() > GATHERED_MAX || gathered.bytes > GATHERED_BYTES_MAX;
    if is_too_much && said.fragment {
        return Err(EtcdError::Compacted);
    }
    gathered.events.extend(said.events.into_iter().map(|WatchEvent { kind, kv }| Event {
        revision: kv.mod_revision(),
        value: (kind == EventKind::Put).then_some(kv.value.0),
        key: kv.key,
    }));
    if said.created {
        return Ok(Said::Begun);
    }
    if said.fragment {
        return Ok(Said::Part);
    }
    let mut news = std::mem::take(gathered);
    // Where a watch catches up, the header tells of the newest revision, and what comes is of older ones.
    news.revision = news.events.last().map_or(said.header.revision.0, |event| event.revision);
    Ok(Said::News(news))
}

/// Bytes that come in pieces, cut into lines.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Up to here there is no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn take(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// The next line, without its end; lines of nothing are none.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, EtcdError> {
        while let Some(at) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
            let rest = self.bytes.split_off(self.searched + at + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.searched = 0;
            line.pop();
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        self.searched = self.bytes.len();
        let is_endless = self.bytes.len() > LINE_BYTES_MAX;
        if is_endless { Err(EtcdError::Nonsense("a line without end".to_owned())) } else { Ok(None) }
    }
}

/// What a fuzzer throws at a watch: these bytes, in pieces of this many.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_noise(bytes: &[u8], piece: usize) {
    let (mut lines, mut gathered) = (Lines::default(), News::default());
    for piece in bytes.chunks(piece.max(1)) {
        lines.take(piece);
        while let Ok(Some(line)) = lines.next() {
            if let Ok(Said::News(news)) = read_line(&line, &mut gathered) {
                assert!(news.events.last().is_none_or(|last| last.revision == news.revision));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUT: &str =
        r#"{"result":{"header":{"revision":"9"},"events":[{"kv":{"key":"YQ==","mod_revision":"7","value":"Yg=="}}]}}"#;

    fn told(text: &str) -> Vec<Result<Said, String>> {
        let (mut lines, mut gathered) = (Lines::default(), News::default());
        lines.take(text.as_bytes());
        let mut told = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            told.push(read_line(&line, &mut gathered).map_err(|error| error.to_string()));
        }
        told
    }

    #[test]
    fn news_are_told_up_to_their_own_revision_and_progress_up_to_the_header() {
        let created = r#"{"result":{"header":{"revision":"9"},"created":true}}"#;
        let progress = r#"{"result":{"header":{"revision":"9"}}}"#;
        let told = told(&format!("{created}\n\n{PUT}\n{progress}\n"));
        let empty = News { revision: 9, bytes: progress.len(), ..News::default() };
        let event = Event { key: Blob(b"a".to_vec()), value: Some(b"b".to_vec()), revision: 7 };
        let news = News { revision: 7, events: vec![event], bytes: created.len() + PUT.len() };
        assert_eq!(told, [Ok(Said::Begun), Ok(Said::News(news)), Ok(Said::News(empty))]);
    }

    #[test]
    fn what_etcd_cut_is_put_together() {
        let cut = PUT.replace("\"events\"", "\"fragment\":true,\"events\"");
        let gone = r#"{"result":{"header":{"revision":"9"},"events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"8"}}]}}"#;
        let told = told(&format!("{cut}\n{gone}\n"));
        assert_eq!(told[0], Ok(Said::Part));
        let Ok(Said::News(news)) = &told[1] else { panic!("{told:?}") };
        assert_eq!((news.revision, news.events.len(), news.events[1].value.clone()), (8, 2, None));
    }

    #[test]
    fn who_falls_behind_by_more_bytes_than_are_gathered_reads_everything_anew() {
        let part = PUT.replace("\"events\"", "\"fragment\":true,\"events\"");
        let mut gathered = News { bytes: GATHERED_BYTES_MAX - part.len(), ..News::default() };
        assert_eq!(read_line(part.as_bytes(), &mut gathered).unwrap(), Said::Part);
        assert!(matches!(read_line(part.as_bytes(), &mut gathered), Err(EtcdError::Compacted)));
    }

    #[test]
    fn every_end_is_told() {
        for (line, why) in [
            (r#"{"result":{"header":{},"canceled":true,"compact_revision":"4"}}"#, "forgotten"),
            (r#"{"result":{"header":{},"canceled":true,"cancel_reason":"etcdserver: no leader"}}"#, "no leader"),
            (r#"{"error":{"grpc_code":14,"message":"transport is closing"}}"#, "transport is closing"),
            (r#"{"result":{"events":[{"type":"RENAME"}]}}"#, "cannot be read"),
            ("[]", "cannot be read"),
        ] {
            let told = told(&format!("{line}\n"));
            assert!(told[0].as_ref().is_err_and(|error| error.contains(why)), "{told:?}");
        }
        let mut lines = Lines::default();
        lines.take(&vec![b' '; LINE_BYTES_MAX + 1]);
        assert!(lines.next().is_err());
    }

    proptest! {
        #[test]
        fn no_noise_is_more_than_refused(cuts in prop::collection::vec(any::<(u16, u8)>(), 0..8), piece in 1usize..64) {
            let mut bytes = format!("{PUT}\n{PUT}\n").into_bytes();
            for (at, byte) in cuts {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            read_noise(&bytes, piece);
        }
    }
}
