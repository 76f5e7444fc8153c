//! Order statistics of samples in nanoseconds.

/// Sorted samples.
pub struct Samples(Vec<u64>);

impl Samples {
    /// Takes samples in any order.
    pub fn new(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        Self(samples)
    }

    /// The value that a share `q` (0 to 1) of the samples does not exceed, in ns.
    pub fn quantile(&self, q: f64) -> u64 {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((last as f64 * q).round() as usize)
            .copied()
            .unwrap_or(0)
    }

    /// One table row: name, count, p50, p90, p99, max, in milliseconds.
    pub fn row(&self, name: &str) -> String {
        let ms = |q| self.quantile(q) as f64 / 1e6;
        format!(
            "| {name} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            self.0.len(),
            ms(0.0),
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0)
        )
    }

    /// The head of the table.
    pub const HEAD: &str = "| what (ms) | samples | min | p50 | p90 | p99 | max |\n\
                            |---|---|---|---|---|---|---|";
}
