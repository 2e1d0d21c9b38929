//! What the backend answers: the success of a create that names the order it is for, so that an
//! answer that reaches the wrong caller is seen.

/// How many digits an order's number has.
pub(crate) const DIGITS: usize = 12;
/// What stands before them in a request.
pub(crate) const MARK: &[u8] = b"ord-";
/// The number of a request that has none.
pub(crate) const NO_ORDER: [u8; DIGITS] = [b'0'; DIGITS];

/// A reply body with a gap for the order's number.
pub(crate) struct Template {
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
}

impl Template {
    /// A body of so many bytes, or the least that it can have.
    pub(crate) fn new(bytes: usize) -> Self {
        let before = b"{\"success\":true,\"instanceId\":\"i-".to_vec();
        let whole = b"\",\"appInfo\":{\"frontEnd\":{\"url\":\"https://crm.example.com/login\",\"username\":\"admin\",\
            \"password\":\"xxxxxxxxxxxxxxxxxxxxxxxx\"},\"admin\":{\"url\":\"https://crm.example.com/admin\",\
            \"username\":\"root\",\"password\":\"yyyyyyyyyyyyyyyyyyyyyyyy\"},\"authUrl\":\"https://crm.example.com/sso/"
            .as_slice();
        let small = b"\",\"message\":\"".as_slice();
        let (middle, end) = if before.len() + DIGITS + whole.len() + 3 <= bytes {
            (whole, b"\"}}".as_slice())
        } else {
            (small, b"\"}".as_slice())
        };
        let mut after = middle.to_vec();
        let length = before.len() + DIGITS + middle.len() + end.len();
        after.resize(after.len() + bytes.saturating_sub(length), b'z');
        after.extend_from_slice(end);
        Self { before, after }
    }

    pub(crate) fn len(&self) -> usize {
        self.before.len() + DIGITS + self.after.len()
    }

    pub(crate) fn is(&self, order: &[u8; DIGITS], body: &[u8]) -> bool {
        body.len() == self.len()
            && body.starts_with(&self.before)
            && body[self.before.len()..].starts_with(order)
            && body.ends_with(&self.after)
    }
}

/// The number of the order that these bytes are about.
pub(crate) fn order_in(bytes: &[u8]) -> [u8; DIGITS] {
    memchr::memmem::find(bytes, MARK)
        .and_then(|at| bytes.get(at + MARK.len()..at + MARK.len() + DIGITS)?.try_into().ok())
        .unwrap_or(NO_ORDER)
}
