//! When a certificate ends and whether it is an authority's: what we read of it ourselves (RFC 5280 section 4.1). Pure.
//!
//! The library reads certificates and does not tell this. The certificate is one that it could read; of bytes that are none
//! nothing is told all the same.

use crate::identity::wall::days_since_1970;

/// `BOOLEAN`, `SEQUENCE`, `UTCTime`, `GeneralizedTime` and the explicit tags of a version and of extensions (ITU-T X.690
/// section 8).
const BOOLEAN: u8 = 0x01;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.19, the extension of basic constraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// The end of a certificate's validity (DER), seconds since 1970 UTC.
pub(super) fn not_after(certificate: &[u8]) -> Option<i64> {
    let mut validity = after_issuer(certificate)?.sequence()?;
    validity.any()?;
    match validity.any()? {
        // Years from 50 on are of the century before (RFC 5280 section 4.1.2.5.1).
        (UTC_TIME, text) => {
            let year = number(text.get(..2)?)?;
            seconds(if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        (GENERALIZED_TIME, text) => seconds(number(text.get(..4)?)?, text.get(4..)?),
        _ => None,
    }
}

/// Whether a certificate (DER) says that it vouches for others: `cA` in its basic constraints (RFC 5280 section 4.2.1.9).
pub(super) fn is_authority(certificate: &[u8]) -> bool {
    let constraint = || {
        let mut fields = after_issuer(certificate)?;
        while fields.0.first()? != &EXTENSIONS {
            fields.any()?;
        }
        let mut extensions = Reader(fields.any()?.1).sequence()?;
        loop {
            let mut extension = extensions.sequence()?;
            if extension.any()?.1 == BASIC_CONSTRAINTS {
                if extension.0.first() == Some(&BOOLEAN) {
                    extension.any()?;
                }
                return Reader(extension.any()?.1).sequence()?.any();
            }
        }
    };
    constraint().is_some_and(|(tag, value)| tag == BOOLEAN && value != [0])
}

/// A certificate's fields from its validity on.
fn after_issuer(certificate: &[u8]) -> Option<Reader<'_>> {
    let mut fields = Reader(certificate).sequence()?.sequence()?;
    if fields.0.first() == Some(&VERSION) {
        fields.any()?;
    }
    // The serial number, the signature's algorithm, the issuer.
    (0..3).try_for_each(|_| fields.any().map(drop))?;
    Some(fields)
}

/// `MMDDHHMMSSZ` of a year.
fn seconds(year: i64, rest: &[u8]) -> Option<i64> {
    let two = |at: usize| number(rest.get(at..at + 2)?);
    let (month, day, hour, minute, second) = (two(0)?, two(2)?, two(4)?, two(6)?, two(8)?);
    let is_time = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    (is_time && rest.get(10..) == Some(b"Z"))
        .then(|| days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    let is_number = digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| 10 * number + i64::from(digit - b'0')))
}

/// What is left of some DER.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element's tag and contents.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            ..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |all, &byte| all << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    fn sequence(&mut self) -> Option<Reader<'a>> {
        self.any().filter(|(tag, _)| *tag == SEQUENCE).map(|(_, contents)| Reader(contents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::wall::parse_utc;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(1990, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_ways_of_writing_it() {
        for (year, month, day) in [(1999, 12, 31), (2026, 2, 28), (2049, 12, 31), (2050, 1, 1), (4096, 1, 1)] {
            let end = parse_utc(&format!("{year}-{month:02}-{day:02}T00:00:00Z"));
            assert_eq!(not_after(&certificate(year, month, day)), end, "{year}");
        }
    }

    #[test]
    fn who_vouches_for_others_is_told_from_who_does_not() {
        for (is_ca, wanted) in [
            (IsCa::NoCa, false),
            (IsCa::ExplicitNoCa, false),
            (IsCa::Ca(BasicConstraints::Unconstrained), true),
            (IsCa::Ca(BasicConstraints::Constrained(0)), true),
        ] {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(is_authority(certificate.der()), wanted, "{is_ca:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_not_a_certificate_has_no_end() {
        let whole = certificate(2030, 1, 1);
        for length in 0..whole.len() {
            assert_eq!((not_after(&whole[..length]), is_authority(&whole[..length])), (None, false));
        }
        for at in 0..whole.len() {
            for byte in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut other = whole.clone();
                other[at] = byte;
                let _ = (not_after(&other), is_authority(&other));
            }
        }
        assert_eq!(not_after(b"30 is no tag"), None);
    }
}
