//! Two kinds of charts, as SVG without any library.

use std::fmt::Write as _;

const COLOURS: [&str; 8] =
    ["#9e9e9e", "#8d6e63", "#bcaaa4", "#5c6bc0", "#26a69a", "#ffa726", "#ab47bc", "#d32f2f"];
const WIDTH: f64 = 860.0;

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"16\" y=\"22\" \
         font-size=\"14\">{title}</text>\n"
    )
}

/// Lines over a linear axis, on a logarithmic one.
pub fn lines(title: &str, axis: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> String {
    const HEIGHT: f64 = 440.0;
    let (left, right, top, bottom) = (60.0, 600.0, 44.0, 390.0);
    let points = lines.iter().flat_map(|(_, points)| points);
    let (mut x0, mut x1, mut y0, mut y1) = (f64::INFINITY, 0.0f64, f64::INFINITY, 0.0f64);
    for (x, y) in points {
        (x0, x1, y0, y1) = (x0.min(*x), x1.max(*x), y0.min(*y), y1.max(*y));
    }
    let (low, high) = (y0.log10().floor(), y1.log10().ceil());
    let at = |x: f64, y: f64| {
        let across = left + (x - x0) / (x1 - x0).max(1e-9) * (right - left);
        (across, bottom - (y.log10() - low) / (high - low).max(1e-9) * (bottom - top))
    };
    let mut out = open(title, HEIGHT);
    for power in low as i32..=high as i32 {
        let value = 10f64.powi(power);
        let (_, y) = at(x0, value);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    for (x, _) in lines.first().map(|(_, points)| points.as_slice()).unwrap_or_default() {
        let (across, _) = at(*x, y0);
        let _ = writeln!(
            out,
            "<text x=\"{across:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(out, "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{axis}</text>", bottom + 38.0);
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| {
                let (x, y) = at(*x, *y);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let width = if index + 1 == lines.len() { 3 } else { 2 };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/><text x=\"{:.1}\" \
             y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            right + 20.0,
            top + 20.0 * index as f64
        );
    }
    out + "</svg>\n"
}

/// Bars around 1, those up to 1.05 in green.
pub fn bars(title: &str, bars: &[(&str, f64)]) -> String {
    let height = 60.0 + 18.0 * bars.len() as f64;
    let (left, scale) = (130.0, 300.0);
    let mut out = open(title, height);
    for (index, (name, value)) in bars.iter().enumerate() {
        let y = 40.0 + 18.0 * index as f64;
        let length = value.min(2.2) * scale;
        let colour = if *value <= 1.05 { "#66bb6a" } else { "#ef9a9a" };
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text><rect x=\"{left}\" y=\"{y:.1}\" \
             width=\"{length:.1}\" height=\"13\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.1}\">{value:.2}</text>",
            left - 8.0,
            y + 11.0,
            left + length + 6.0,
            y + 11.0
        );
    }
    let one = left + scale;
    let _ = writeln!(
        out,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"34\" y2=\"{:.0}\" stroke=\"#333\"/>",
        height - 16.0
    );
    out + "</svg>\n"
}
