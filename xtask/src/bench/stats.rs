//! Medians and quartiles.

use serde::Serialize;

/// The middle of some samples, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// A quarter of the samples lie below.
    pub(crate) lower: f64,
    /// A quarter of the samples lie above.
    pub(crate) upper: f64,
}

impl Summary {
    /// `None` for no samples.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Summary> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            median: quantile(&sorted, 0.5)?,
            lower: quantile(&sorted, 0.25)?,
            upper: quantile(&sorted, 0.75)?,
        })
    }
}

/// The value below which `share` of the sorted samples lie, between two of them by interpolation.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    let weight = place - below as f64;
    Some(sorted[below] * (1.0 - weight) + sorted[above] * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_samples_have_no_summary() {
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn one_sample_is_its_own_summary() {
        let summary = Summary::of([3.0]).unwrap();
        assert_eq!(
            (summary.lower, summary.median, summary.upper),
            (3.0, 3.0, 3.0)
        );
    }

    #[test]
    fn quartiles_are_interpolated_whatever_the_order_of_samples() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            (summary.lower, summary.median, summary.upper),
            (1.75, 2.5, 3.25)
        );
    }
}
