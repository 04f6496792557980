//! A TCP transfer between two members, with every byte compared.
//!
//! The kernels on both sides use what the TAPs offer them, checksum and segmentation offload included, so a switch that
//! spoils an offload shows here as wrong bytes, missing bytes or a stall.

use super::traffic::Member;
use anyhow::{Context, ensure};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long any step of the TCP transfer may hang.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one write. The pattern repeats after it, with a length that no packet size divides.
const CHUNK: usize = 64 * 1024 - 1;

/// How a TCP transfer went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    bytes: u64,
    took: Duration,
}

impl std::fmt::Display for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, "{megabytes:.0} MB in {seconds:.2} s, {:.2} Gbit/s, every byte right", megabytes * 8e-3 / seconds)
    }
}

/// Moves bytes by TCP from one member to another for about `length`, and compares every one.
pub(super) fn transfer(from: &Member, to: &Member, length: Duration) -> anyhow::Result<Transfer> {
    let listener = to.netns.run(|| TcpListener::bind((to.address, 0)))?.context("listening")?;
    let address = SocketAddr::from((to.address, listener.local_addr().context("listening")?.port()));
    let sender = from.netns.run(|| TcpStream::connect_timeout(&address, TCP_TIMEOUT))?.context("connecting")?;
    let (receiver, peer) = listener.accept().context("accepting")?;
    ensure!(peer.ip() == from.address, "{} came from {peer}", to.name);
    let pattern: Vec<u8> = (0..CHUNK).map(|i| (i % 251) as u8).collect();
    let begun = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_for(sender, &pattern, begun + length));
        let received = receive_all(receiver, &pattern);
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    let (sent, bytes) = (sent.context("sending")?, received.context("receiving")?);
    ensure!(sent == bytes, "{sent} bytes were sent and {bytes} arrived");
    Ok(Transfer { bytes, took: begun.elapsed() })
}

/// Writes the pattern again and again until the deadline; returns how many bytes.
fn send_for(mut stream: TcpStream, pattern: &[u8], deadline: Instant) -> io::Result<u64> {
    stream.set_write_timeout(Some(TCP_TIMEOUT))?;
    let mut sent = 0;
    while Instant::now() < deadline {
        stream.write_all(pattern)?;
        sent += pattern.len() as u64;
    }
    Ok(sent)
}

/// Reads to the end and compares with the pattern; returns how many bytes.
fn receive_all(mut stream: TcpStream, pattern: &[u8]) -> io::Result<u64> {
    stream.set_read_timeout(Some(TCP_TIMEOUT))?;
    let mut buffer = vec![0; pattern.len()];
    let mut offset = 0;
    let mut received = 0;
    loop {
        // Reading up to the end of the pattern keeps the comparison a single one.
        let len = stream.read(&mut buffer[offset..])?;
        if len == 0 {
            return Ok(received);
        }
        if buffer[offset..offset + len] != pattern[offset..offset + len] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("wrong bytes after {received}")));
        }
        received += len as u64;
        offset = (offset + len) % pattern.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        (sender, listener.accept().expect("it connected").0)
    }

    #[test]
    fn bytes_that_arrive_in_odd_pieces_are_compared_at_their_place() {
        let pattern: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        let (mut sender, receiver) = connected();
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive_all(receiver, &pattern));
            for piece in pattern.repeat(7).chunks(333) {
                sender.write_all(piece).expect("it reads");
            }
            drop(sender);
            assert_eq!(receiving.join().expect("no panic").expect("all bytes are right"), 7000);
        });
    }

    #[test]
    fn one_wrong_byte_is_noticed() {
        let pattern = [1, 2, 3, 4, 5, 6, 7, 8];
        let (mut sender, receiver) = connected();
        sender.write_all(&[1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 9]).expect("it reads");
        drop(sender);
        assert_eq!(receive_all(receiver, &pattern).expect_err("a 9 for a 3").kind(), io::ErrorKind::InvalidData);
    }
}
