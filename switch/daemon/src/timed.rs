//! A stream to somebody who may be slow: what is said on it must be done by a time, however the single reads and writes go.
//!
//! A limit for each of them alone lets a peer that takes a byte now and then keep a place, and what is kept for it, for ever.

use rustix::fd::AsFd;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The stream.
pub(crate) struct Timed<'a, S> {
    stream: &'a S,
    end: Instant,
    idle_max: Duration,
}

impl<'a, S: AsFd> Timed<'a, S> {
    /// The stream from now on: `in_all` is for everything, `idle_max` for each read or write.
    pub(crate) fn over(stream: &'a S, in_all: Duration, idle_max: Duration) -> Timed<'a, S> {
        Timed { stream, end: Instant::now() + in_all, idle_max }
    }

    fn limit(&self, which: Timeout) -> io::Result<()> {
        let left = self.end.saturating_duration_since(Instant::now()).min(self.idle_max);
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(set_socket_timeout(self.stream, which, Some(left))?)
    }
}

impl<S: AsFd> Read for Timed<'_, S>
where
    for<'s> &'s S: Read,
{
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.limit(Timeout::Recv)?;
        (&mut &*self.stream).read(bytes)
    }
}

impl<S: AsFd> Write for Timed<'_, S>
where
    for<'s> &'s S: Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.limit(Timeout::Send)?;
        (&mut &*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn who_takes_a_little_now_and_then_is_left_when_the_time_for_all_is_over() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let slow = std::thread::spawn(move || {
            // It reads for as long as there is something, 64 KiB after each pause of the writer's.
            let mut bytes = [0; 1024];
            while client.read(&mut bytes).is_ok_and(|count| count > 0) {
                std::thread::yield_now();
            }
        });
        let begin = Instant::now();
        let mut timed = Timed::over(&server, Duration::from_millis(50), Duration::from_secs(60));
        let error = loop {
            if let Err(error) = timed.write_all(&[0; 4096]) {
                break error;
            }
        };
        // Which of the two depends on whether the kernel was waiting when the time was over.
        assert!([io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock].contains(&error.kind()), "{error}");
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert_eq!(timed.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(server);
        slow.join().unwrap();
    }

    #[test]
    fn who_takes_nothing_is_left_as_soon_as_a_single_write_takes_too_long() {
        let (_client, server) = UnixStream::pair().unwrap();
        let mut timed = Timed::over(&server, Duration::from_secs(60), Duration::from_millis(10));
        let error = timed.write_all(&vec![0; 16 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
