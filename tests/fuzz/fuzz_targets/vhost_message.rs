//! Any bytes as a vhost-user message: an error or a request that survives the way back to bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost::message::{HEADER_LEN, Header, Request, parse};

fuzz_target!(|input: (&[u8], u8)| {
    let (bytes, fd_count) = input;
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(head) else { return };
    let Ok(request) = parse(&header, payload, usize::from(fd_count)) else { return };
    let again = request.to_bytes(header.needs_reply());
    let (head, body) = again.split_first_chunk::<HEADER_LEN>().expect("a message has a header");
    let header = Header::parse(head).expect("our own header is good");
    assert_eq!(parse(&header, body, usize::from(fd_count)), Ok(request.clone()));
    // Padding carries no meaning; all other bytes do.
    if !matches!(request, Request::SendRarp(_) | Request::GetVringBase(_) | Request::SetMemTable(_)) {
        assert_eq!(body, payload);
    }
});
