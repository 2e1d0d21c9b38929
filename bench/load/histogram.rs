//! Latencies, in buckets that are at most 1.6 % wide: 64 for each doubling of nanoseconds.

use std::time::Duration;

const PER_DOUBLING: u32 = 6;

pub(crate) struct Histogram {
    counts: Vec<u64>,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; 64 << PER_DOUBLING], max: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1 << PER_DOUBLING);
        let exponent = nanos.ilog2();
        let bucket = (u64::from(exponent) << PER_DOUBLING) + (nanos >> (exponent - PER_DOUBLING)) - (1 << PER_DOUBLING);
        self.counts[usize::try_from(bucket).unwrap()] += 1;
        self.max = self.max.max(latency);
    }

    /// In microseconds: what so many of a thousand do not exceed.
    pub(crate) fn micros(&self, permille: u64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total * permille).div_ceil(1000);
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count >= left && left > 0 {
                let bucket = bucket as u64;
                let exponent = bucket >> PER_DOUBLING;
                let step = (bucket & ((1 << PER_DOUBLING) - 1)) + (1 << PER_DOUBLING);
                // The upper edge of the bucket.
                return ((step + 1) << (exponent - u64::from(PER_DOUBLING))) as f64 / 1000.0;
            }
            left -= count;
        }
        0.0
    }

    pub(crate) fn max_micros(&self) -> f64 {
        self.max.as_secs_f64() * 1e6
    }
}
