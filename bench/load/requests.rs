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
    orders: Option<Orders>,
}

/// Makes orders that nobody has seen yet.
struct Orders {
    path: String,
    /// Unsigned, in canonical form, with `{}` for the number.
    query: String,
    key: Hmac<Sha256>,
    /// How many are enough for a slice.
    count: usize,
    number: u64,
}

impl Requests {
    /// `--targets FILE`: one target on a line, taken in turn, again and again.
    /// `--orders N --first N --key KEY`: in the file stands one target without a signature, with
    /// `ord-{}` for the order's number; N are signed before each slice, and each is used once.
    pub(crate) fn new(options: &Options<'_>) -> Self {
        let file = options.get("targets").expect("--targets FILE");
        let text = std::fs::read_to_string(file).unwrap();
        let bytes: Vec<_> = text.lines().map(request).collect();
        assert!(!bytes.is_empty(), "{file} is empty");
        let Some(orders) = options.get("orders") else { return Self { bytes, next: 0, orders: None } };
        let (path, query) = text.trim_end().split_once('?').unwrap();
        let orders = Orders {
            path: path.to_owned(),
            query: query.to_owned(),
            key: Hmac::new_from_slice(options.get("key").expect("--key KEY").as_bytes()).unwrap(),
            count: orders.parse().unwrap(),
            number: options.number("first", 1),
        };
        Self { bytes: Vec::new(), next: 0, orders: Some(orders) }
    }

    /// Before the clock of a slice runs.
    pub(crate) fn prepare(&mut self) {
        if let Some(orders) = &mut self.orders {
            self.bytes.drain(..self.next);
            self.next = 0;
            while self.bytes.len() < orders.count {
                self.bytes.push(orders.sign());
            }
        }
    }

    /// The next one's place, or nothing when all are used.
    pub(crate) fn take(&mut self) -> Option<usize> {
        if self.next == self.bytes.len() {
            if self.orders.is_some() {
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

impl Orders {
    fn sign(&mut self) -> Vec<u8> {
        let query = self.query.replace("{}", &format!("{:0DIGITS$}", self.number));
        self.number += 1;
        let mut mac = self.key.clone();
        mac.update(format!("GET\n{query}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        request(&format!("{}?{query}&signature={}", self.path, utf8_percent_encode(&signature, UNRESERVED)))
    }
}

fn request(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").into_bytes()
}
