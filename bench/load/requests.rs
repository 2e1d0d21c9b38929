//! What is asked: one target again and again, or orders of which each is another one, signed
//! before the clock runs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

use crate::Options;
use crate::reply::{DIGITS, order_in};

/// What the dialect's canonical form leaves as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(crate) struct Requests {
    bytes: Vec<Vec<u8>>,
    next: usize,
    /// Whether the first follows on the last.
    repeats: bool,
}

impl Requests {
    /// `--targets FILE`: one target on a line, taken in turn, again and again.
    /// `--orders N --first N --key KEY`: a target with `ord-{}` for the order's number and without a
    /// signature stands in the file; each number is used once.
    pub(crate) fn new(options: &Options<'_>) -> Self {
        let file = options.get("targets").expect("--targets FILE");
        let text = std::fs::read_to_string(file).unwrap();
        let headers = "Host: 127.0.0.1\r\n";
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes();
        let Some(orders) = options.get("orders") else {
            let bytes: Vec<_> = text.lines().map(request).collect();
            assert!(!bytes.is_empty(), "{file} is empty");
            return Self { bytes, next: 0, repeats: true };
        };
        let (orders, first) = (orders.parse::<u64>().unwrap(), options.number("first", 1));
        let key = Hmac::<Sha256>::new_from_slice(options.get("key").expect("--key KEY").as_bytes()).unwrap();
        let (path, query) = text.trim_end().split_once('?').unwrap();
        let bytes = (first..first + orders).map(|number| {
            let query = query.replace("{}", &format!("{number:0DIGITS$}"));
            let mut mac = key.clone();
            mac.update(format!("GET\n{query}").as_bytes());
            let signature = STANDARD.encode(mac.finalize().into_bytes());
            request(&format!("{path}?{query}&signature={}", utf8_percent_encode(&signature, UNRESERVED)))
        });
        Self { bytes: bytes.collect(), next: 0, repeats: false }
    }

    /// The next one's place, or nothing when all are used.
    pub(crate) fn take(&mut self) -> Option<usize> {
        if self.next == self.bytes.len() {
            if !self.repeats {
                return None;
            }
            self.next = 0;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    pub(crate) fn bytes(&self, place: usize) -> &[u8] {
        &self.bytes[place]
    }

    /// The order's number, as it stands in the request.
    pub(crate) fn order(&self, place: usize) -> [u8; DIGITS] {
        order_in(&self.bytes[place])
    }
}
