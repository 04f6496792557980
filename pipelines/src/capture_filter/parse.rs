//! From an expression's text to its tree: words, then a descent that remembers how many tags were named so far.

use super::{Carrier, DEPTH_MAX, Expression, FilterError, LENGTH_MAX, Side, TAGS_MAX, TERMS_MAX, Test, Version, What};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A word and where it begins.
type Word<'a> = (usize, &'a str);

/// Splits at white space; parentheses and `!` stand alone, and so do `&&` and `||`.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let len = match first {
            _ if first.is_whitespace() => {
                at += first.len_utf8();
                continue;
            }
            '(' | ')' | '!' => 1,
            '&' | '|' => rest.chars().take(2).take_while(|&c| c == first).count(),
            _ => rest.find(|c: char| c.is_whitespace() || "()!&|".contains(c)).unwrap_or(rest.len()),
        };
        words.push((at, &rest[..len]));
        at += len;
    }
    words
}

/// Reads a whole expression; `None` if it is empty.
pub(super) fn parse(text: &str) -> Result<Option<Expression>, FilterError> {
    if text.len() > LENGTH_MAX {
        return Err(FilterError { at: LENGTH_MAX, message: format!("longer than {LENGTH_MAX} bytes") });
    }
    let mut parser = Parser { words: words(text), next: 0, end: text.len(), tags: 0, terms: 0, depth: 0 };
    if parser.words.is_empty() {
        return Ok(None);
    }
    let expression = parser.expression()?;
    match parser.peek() {
        None => Ok(Some(expression)),
        Some(word) => Err(parser.fault(format!("{word:?} where `and` or `or` was expected"))),
    }
}

struct Parser<'a> {
    words: Vec<Word<'a>>,
    next: usize,
    /// Bytes of the text.
    end: usize,
    /// `vlan`s so far.
    tags: usize,
    terms: usize,
    depth: usize,
}

/// What may stand before `host`, `net` or `port`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Ether,
    Ip,
    Ip6,
    Arp,
    Rarp,
    /// TCP, UDP or SCTP, by its number.
    Transport(u8),
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|word| word.1)
    }

    fn peek_second(&self) -> Option<&'a str> {
        self.words.get(self.next + 1).map(|word| word.1)
    }

    /// Takes the next word if it is one of these.
    fn takes(&mut self, words: &[&str]) -> bool {
        let is_there = self.peek().is_some_and(|word| words.contains(&word));
        self.next += usize::from(is_there);
        is_there
    }

    /// Takes the next word; `what` says what it should be.
    fn take(&mut self, what: &str) -> Result<&'a str, FilterError> {
        let word = self.peek().ok_or_else(|| self.fault(format!("ends where {what} was expected")))?;
        self.next += 1;
        Ok(word)
    }

    /// A fault at the next word.
    fn fault(&self, message: String) -> FilterError {
        FilterError { at: self.words.get(self.next).map_or(self.end, |word| word.0), message }
    }

    /// A fault at the word just taken.
    fn fault_before(&self, message: String) -> FilterError {
        FilterError { at: self.words.get(self.next.saturating_sub(1)).map_or(self.end, |word| word.0), message }
    }

    fn expression(&mut self) -> Result<Expression, FilterError> {
        let mut left = self.term()?;
        loop {
            if self.takes(&["and", "&&"]) {
                left = Expression::And(Box::new(left), Box::new(self.term()?));
            } else if self.takes(&["or", "||"]) {
                left = Expression::Or(Box::new(left), Box::new(self.term()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn term(&mut self) -> Result<Expression, FilterError> {
        let is_not = self.takes(&["not", "!"]);
        if !is_not && !self.takes(&["("]) {
            return self.test();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.fault_before(format!("more than {DEPTH_MAX} levels")));
        }
        let inner = if is_not {
            Expression::Not(Box::new(self.term()?))
        } else {
            let inner = self.expression()?;
            if !self.takes(&[")"]) {
                return Err(self.fault("`)` was expected".into()));
            }
            inner
        };
        self.depth -= 1;
        Ok(inner)
    }

    fn test(&mut self) -> Result<Expression, FilterError> {
        self.terms += 1;
        if self.terms > TERMS_MAX {
            return Err(self.fault(format!("more than {TERMS_MAX} tests")));
        }
        let tags = self.tags;
        let what = self.what()?;
        if matches!(what, What::Vlan(_)) {
            self.tags += 1;
            if self.tags > TAGS_MAX {
                return Err(self.fault_before(format!("more than {TAGS_MAX} tags")));
            }
        }
        Ok(Expression::Test(Test { tags, what }))
    }

    fn what(&mut self) -> Result<What, FilterError> {
        let word = self.take("a test")?;
        let (before, alone) = match word {
            "less" => return Ok(What::Less(self.number("a length", u32::MAX)? as usize)),
            "greater" => return Ok(What::Greater(self.number("a length", u32::MAX)? as usize)),
            "broadcast" => return Ok(What::Mac(Side::Destination, [0xff; 6])),
            "multicast" => return Ok(What::Multicast),
            "proto" => return Ok(What::Protocol(Version::Any, self.protocol()?)),
            "icmp" => return Ok(What::Protocol(Version::V4, 1)),
            "igmp" => return Ok(What::Protocol(Version::V4, 2)),
            "icmp6" => return Ok(What::Protocol(Version::V6, 58)),
            "vlan" => {
                let has_id = self.peek().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()));
                let id = has_id.then(|| self.number("a VLAN id", 4095)).transpose()?;
                return Ok(What::Vlan(id.map(|id| id as u16)));
            }
            "ether" => return self.ether(),
            "ip" => (Before::Ip, What::EtherType(0x0800)),
            "ip6" => (Before::Ip6, What::EtherType(0x86dd)),
            "arp" => (Before::Arp, What::EtherType(0x0806)),
            "rarp" => (Before::Rarp, What::EtherType(0x8035)),
            "tcp" => (Before::Transport(6), What::Protocol(Version::Any, 6)),
            "udp" => (Before::Transport(17), What::Protocol(Version::Any, 17)),
            "sctp" => (Before::Transport(132), What::Protocol(Version::Any, 132)),
            _ => {
                self.next -= 1;
                return self.qualified(Before::Nothing);
            }
        };
        match (before, self.peek()) {
            (Before::Ip, Some("proto")) => {
                self.next += 1;
                Ok(What::Protocol(Version::V4, self.protocol()?))
            }
            (Before::Ip6, Some("proto")) => {
                self.next += 1;
                Ok(What::Protocol(Version::V6, self.protocol()?))
            }
            (_, Some("src" | "dst" | "host" | "net" | "port" | "portrange")) => self.qualified(before),
            _ => Ok(alone),
        }
    }

    fn ether(&mut self) -> Result<What, FilterError> {
        match self.peek() {
            Some("broadcast" | "multicast") => self.what(),
            Some("proto") => {
                self.next += 1;
                let named = [("ip", 0x0800), ("ip6", 0x86dd), ("arp", 0x0806), ("rarp", 0x8035)];
                let word = self.peek().unwrap_or_default().trim_start_matches('\\');
                if let Some(&(_, number)) = named.iter().find(|&&(name, _)| name == word) {
                    self.next += 1;
                    return Ok(What::EtherType(number));
                }
                let number = self.number("an EtherType", 0xffff)?;
                if number < 0x0600 {
                    return Err(self.fault_before("EtherTypes begin at 0x0600".into()));
                }
                Ok(What::EtherType(number as u16))
            }
            _ => self.qualified(Before::Ether),
        }
    }

    /// `[src|dst] [host|net|port|portrange] VALUE`, what stands before it having been read.
    fn qualified(&mut self, before: Before) -> Result<What, FilterError> {
        let side = self.side();
        let kind = self.peek().filter(|word| ["host", "net", "port", "portrange"].contains(word));
        self.next += usize::from(kind.is_some());
        if kind.is_none() && side.is_none() {
            let word = self.take("a test")?;
            return Err(self.fault_before(format!("{word:?} is no test this filter knows")));
        }
        let side = side.unwrap_or(Side::Either);
        match (before, kind) {
            (Before::Ether, None | Some("host")) => Ok(What::Mac(side, self.mac()?)),
            (Before::Ether, _) => Err(self.fault_before("`ether` takes `host`, `src`, `dst` and `proto`".into())),
            (Before::Nothing | Before::Transport(_), Some("port" | "portrange")) => {
                let protocol = if let Before::Transport(number) = before { Some(number) } else { None };
                let (first, last) = self.ports(kind == Some("portrange"))?;
                Ok(What::Ports(protocol, side, first, last))
            }
            (Before::Transport(_), _) => Err(self.fault("`port` or `portrange` was expected".into())),
            (_, Some("port" | "portrange")) => Err(self.fault_before("ports belong to tcp, udp or sctp".into())),
            _ => self.address(before, side, kind),
        }
    }

    fn side(&mut self) -> Option<Side> {
        let (other, side) = match self.peek() {
            Some("src") => ("dst", Side::Source),
            Some("dst") => ("src", Side::Destination),
            _ => return None,
        };
        self.next += 1;
        let joined = match self.peek() {
            Some("or") => Side::Either,
            Some("and") => Side::Both,
            _ => return Some(side),
        };
        // `src and dst host A` is one test; `src A and dst B` was two, with an address in between.
        if self.peek_second() != Some(other) {
            return Some(side);
        }
        self.next += 2;
        Some(joined)
    }

    fn address(&mut self, before: Before, side: Side, kind: Option<&str>) -> Result<What, FilterError> {
        let word = self.take("an address")?;
        let bad = |parser: &Self| parser.fault_before(format!("{word:?} is no address"));
        let (address, prefix) = match word.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(|_| bad(self))?)),
            None => (word, None),
        };
        if prefix.is_some() && kind != Some("net") {
            return Err(self.fault_before("a host has no prefix; write `net`".into()));
        }
        if address.contains(':') {
            let address = u128::from(address.parse::<Ipv6Addr>().map_err(|_| bad(self))?);
            if !matches!(before, Before::Nothing | Before::Ip6) {
                return Err(self.fault_before("an IPv6 address where an IPv4 address was expected".into()));
            }
            let prefix = prefix.unwrap_or(128);
            let mask = u128::MAX.checked_shl(128u32.checked_sub(prefix).ok_or_else(|| bad(self))?).unwrap_or(0);
            return match address & !mask {
                0 => Ok(What::Net6(side, address, mask)),
                _ => Err(self.fault_before(format!("{word:?} has bits beyond its prefix"))),
            };
        }
        let carrier = match before {
            Before::Ip => Carrier::Ip,
            Before::Arp => Carrier::Arp,
            Before::Rarp => Carrier::Rarp,
            Before::Ip6 => return Err(self.fault_before("an IPv4 address where an IPv6 address was expected".into())),
            _ => Carrier::Any,
        };
        let (address, bits) = quads(address).ok_or_else(|| bad(self))?;
        if bits < 32 && kind != Some("net") {
            return Err(bad(self));
        }
        let mask = if prefix.is_none() && kind == Some("net") && self.takes(&["mask"]) {
            let mask = self.take("a mask")?;
            mask.parse::<Ipv4Addr>().map(u32::from).map_err(|_| self.fault_before(format!("{mask:?} is no mask")))?
        } else {
            let prefix = prefix.unwrap_or(bits);
            u32::MAX.checked_shl(32u32.checked_sub(prefix).ok_or_else(|| bad(self))?).unwrap_or(0)
        };
        match address & !mask {
            0 => Ok(What::Net4(carrier, side, address, mask)),
            _ => Err(self.fault_before(format!("{word:?} has bits beyond its mask"))),
        }
    }

    fn mac(&mut self) -> Result<[u8; 6], FilterError> {
        let word = self.take("a MAC")?;
        let mut parts = word.split(':');
        let mut mac = [0; 6];
        let is_read = mac.iter_mut().all(|byte| {
            let part = parts.next().filter(|part| matches!(part.len(), 1 | 2) && !part.starts_with('+'));
            part.and_then(|part| u8::from_str_radix(part, 16).ok()).is_some_and(|value| {
                *byte = value;
                true
            })
        });
        match is_read && parts.next().is_none() {
            true => Ok(mac),
            false => Err(self.fault_before(format!("{word:?} is no MAC"))),
        }
    }

    fn ports(&mut self, is_range: bool) -> Result<(u16, u16), FilterError> {
        if !is_range {
            let port = self.number("a port", 65535)? as u16;
            return Ok((port, port));
        }
        let word = self.take("a range of ports")?;
        let range = word.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last): (u16, u16) =
            range.ok_or_else(|| self.fault_before(format!("{word:?} is no range like 1000-2000")))?;
        Ok((first.min(last), first.max(last)))
    }

    fn protocol(&mut self) -> Result<u8, FilterError> {
        let named = [("icmp", 1), ("igmp", 2), ("tcp", 6), ("udp", 17), ("icmp6", 58), ("sctp", 132)];
        let word = self.peek().unwrap_or_default().trim_start_matches('\\');
        if let Some(&(_, number)) = named.iter().find(|&&(name, _)| name == word) {
            self.next += 1;
            return Ok(number);
        }
        Ok(self.number("a protocol", 255)? as u8)
    }

    /// A decimal number, or one in hexadecimal behind `0x`, up to `max`.
    fn number(&mut self, what: &str, max: u32) -> Result<u32, FilterError> {
        let word = self.take(what)?;
        let number = match word.strip_prefix("0x") {
            Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
            None if word.starts_with(|c: char| c.is_ascii_digit()) => word.parse().ok(),
            _ => None,
        };
        let number = number.filter(|&number| number <= max);
        number.ok_or_else(|| self.fault_before(format!("{word:?} is not {what} from 0 to {max}")))
    }
}

/// An IPv4 address of one to four numbers, the missing ones 0; and how many bits were given.
fn quads(text: &str) -> Option<(u32, u32)> {
    let mut address = 0;
    let mut bits = 0;
    for part in text.split('.') {
        if bits == 32 || !part.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        address |= u32::from(part.parse::<u8>().ok()?) << (24 - bits);
        bits += 8;
    }
    Some((address, bits))
}
