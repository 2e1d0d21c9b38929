//! OTLP's messages, as far as the tests look into them, read from the wire by hand: the library
//! that wrote them has no say in what they mean.

use std::collections::BTreeMap;

/// A span, ids as hex digits.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    /// 1 internal, 2 server, 3 client.
    pub(crate) kind: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Ids of traces and spans.
    pub(crate) links: Vec<(String, String)>,
    /// 2 is an error.
    pub(crate) status: u64,
    pub(crate) events: usize,
    pub(crate) resource: BTreeMap<String, String>,
}

/// A field's value.
enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

/// The fields of a message by number.
struct Message<'b>(Vec<(u64, Value<'b>)>);

impl<'b> Message<'b> {
    fn read(mut bytes: &'b [u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let value = match tag & 7 {
                0 => Value::Number(varint(&mut bytes)),
                1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    Value::Bytes(take(&mut bytes, length))
                }
                5 => Value::Number(u64::from(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()))),
                wire => panic!("wire type {wire}"),
            };
            fields.push((tag >> 3, value));
        }
        Self(fields)
    }

    fn all(&self, number: u64) -> impl Iterator<Item = &'b [u8]> {
        self.0.iter().filter_map(move |(field, value)| match value {
            Value::Bytes(bytes) if *field == number => Some(*bytes),
            _ => None,
        })
    }

    fn bytes(&self, number: u64) -> &'b [u8] {
        self.all(number).next().unwrap_or_default()
    }

    fn text(&self, number: u64) -> String {
        String::from_utf8(self.bytes(number).to_vec()).unwrap()
    }

    fn hex(&self, number: u64) -> String {
        self.bytes(number).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn number(&self, number: u64) -> Option<u64> {
        self.0.iter().find_map(|(field, value)| match value {
            Value::Number(value) if *field == number => Some(*value),
            _ => None,
        })
    }

    /// Attributes, values as texts.
    fn attributes(&self, number: u64) -> BTreeMap<String, String> {
        let pairs = self.all(number).map(Message::read).map(|pair| {
            let value = Message::read(pair.bytes(2));
            // A text, a boolean or a whole number.
            let number = value.number(2).or(value.number(3)).map(|number| number.to_string());
            (pair.text(1), number.unwrap_or_else(|| value.text(1)))
        });
        pairs.collect()
    }
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The spans of an `ExportTraceServiceRequest`.
pub(crate) fn spans(body: &[u8]) -> Vec<Span> {
    let mut found = Vec::new();
    for group in Message::read(body).all(1).map(Message::read) {
        let resource = Message::read(group.bytes(1)).attributes(1);
        for scope in group.all(2).map(Message::read) {
            found.extend(scope.all(2).map(Message::read).map(|span| Span {
                trace: span.hex(1),
                id: span.hex(2),
                parent: span.hex(4),
                name: span.text(5),
                kind: span.number(6).unwrap_or_default(),
                attributes: span.attributes(9),
                links: span.all(13).map(Message::read).map(|link| (link.hex(1), link.hex(2))).collect(),
                status: Message::read(span.bytes(15)).number(3).unwrap_or_default(),
                events: span.all(11).count(),
                resource: resource.clone(),
            }));
        }
    }
    found
}
