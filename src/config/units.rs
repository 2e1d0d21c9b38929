//! Texts of the configuration that mean a quantity: `"13s"`, `"16KiB"`, `"10.0.0.0/8"`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

/// Reads a duration: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("is not a duration: write a whole number and ms, s, m, h or d, like \"13s\"".into()),
    };
    number
        .and_then(|number| number.checked_mul(factor))
        .map(Duration::from_millis)
        .ok_or_else(|| "is not a duration: write a whole number and ms, s, m, h or d, like \"13s\"".into())
}

/// Reads a size in bytes: a whole number, alone or with `KiB` or `MiB`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(1024 * 1024),
        _ => None,
    };
    number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| "is not a size: write a whole number, alone or with KiB or MiB, like \"16KiB\"".into())
}

/// Reads a network: an address, or an address and a prefix length.
pub fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map(canonical)
        .map_err(|_| "is not a network: write an address or a CIDR, like \"10.0.0.0/8\"".into())
}

/// `::ffff:10.0.0.0/104` as `10.0.0.0/8`: addresses are compared in this form.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let v4 = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(96));
    v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}

fn split(text: &str) -> (Option<u64>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (text[..digits].parse().ok(), &text[digits..])
}

/// Writes a duration in the largest unit that holds it whole.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis > 0 && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("13s"), Ok(Duration::from_secs(13)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in
            ["", "s", "13", "-1s", "1.5s", " 1s", "1 s", "1S", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for text in ["13s", "250ms", "5m", "30d", "0ms", "36h"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("64"), Ok(64));
        assert_eq!(bytes("16KiB"), Ok(16_384));
        assert_eq!(bytes("1MiB"), Ok(1_048_576));
        for wrong in ["", "KiB", "16KB", "16kib", "-1", "1.5MiB", "18446744073709551615MiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks() {
        assert!(network("10.0.0.0/8").unwrap().contains(&"10.1.2.3".parse::<IpAddr>().unwrap()));
        assert!(network("::1").unwrap().contains(&"::1".parse::<IpAddr>().unwrap()));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_eq!(network("::/0").unwrap().to_string(), "::/0");
        assert!(network("10.0.0.0/33").is_err());
        assert!(network("host").is_err());
    }
}
