//! A bar chart as SVG: a bar for the median, a line across its end for the middle half.
//!
//! The scale is logarithmic where the bars differ by more than [`LINEAR`], and says so.

use std::fmt::Write as _;

/// One bar.
pub struct Bar {
    /// Its name.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// Where the line across its end begins.
    pub low: f64,
    /// Where that line ends.
    pub high: f64,
    /// The value, written out.
    pub text: String,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 34.0;
const STEP: f64 = 24.0;
/// Bars that differ by more than this factor are drawn on a logarithmic scale.
const LINEAR: f64 = 50.0;

/// The chart.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let positive = |v: &f64| v.is_finite() && *v > 0.0;
    let most = bars
        .iter()
        .map(|b| b.high.max(b.value))
        .filter(positive)
        .fold(0.0, f64::max);
    let least = bars
        .iter()
        .map(|b| b.low.min(b.value))
        .filter(positive)
        .fold(most, f64::min);
    let logarithmic = most > least * LINEAR;
    let from = least / 2.0;
    let length = |value: f64| {
        let share = if logarithmic {
            (value.max(from) / from).ln() / (most / from).ln()
        } else {
            value / most
        };
        // Without a positive value there is nothing to draw.
        if share.is_finite() {
            share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
        } else {
            0.0
        }
    };
    let height = TOP + STEP * bars.len() as f64 + 8.0;
    let scale = if logarithmic { ", logarithmic" } else { "" };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-weight=\"bold\">{}{scale}</text>\n",
        escaped(title)
    );
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let colour = if bar.name.contains("rum") {
            "#c2571a"
        } else {
            "#8a94a6"
        };
        let (end, low, high) = (length(bar.value), length(bar.low), length(bar.high));
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{end:.1}\" height=\"16\" fill=\"{colour}\"/>\
             <path d=\"M{:.1} {:.1}H{:.1}\" stroke=\"#000\" stroke-width=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 13.0,
            escaped(&bar.name),
            y,
            LEFT + low,
            y + 8.0,
            LEFT + high,
            LEFT + end.max(high) + 6.0,
            y + 13.0,
            escaped(&bar.text),
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
