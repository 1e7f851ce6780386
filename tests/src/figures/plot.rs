//! The plots, as SVG.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use imsvisor_boot::machine::Kind;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Figure, peer, table};

const OURS: RGBColor = RGBColor(0x2a, 0x6f, 0xb5);
const PEERS: RGBColor = RGBColor(0xb8, 0xb8, 0xb8);
const LINES: [RGBColor; 6] = [
    OURS,
    RGBColor(0xd9, 0x6c, 0x1e),
    RGBColor(0x3a, 0x8f, 0x5c),
    RGBColor(0x8e, 0x4f, 0xa8),
    RGBColor(0xb0, 0x30, 0x40),
    RGBColor(0x60, 0x60, 0x60),
];
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Each mark of the scale of slots is so many times the one before.
const SCALE: f64 = 4.0;

/// Medians by scenario and variant, at each number of live slots.
type Series<'f> = BTreeMap<(&'f str, &'f str), Vec<(f64, f64)>>;

fn series(figures: &[Figure]) -> Series<'_> {
    let mut series = Series::new();
    // What several processors do at a time is measured at one number of slots, and on another machine.
    for figure in figures.iter().filter(|figure| figure.vcpus == 1) {
        let points = series.entry((&figure.scenario, &figure.variant)).or_default();
        points.push((figure.slots as f64, figure.median));
    }
    series.retain(|_, points| points.iter().any(|(slots, _)| *slots != points[0].0));
    series
}

/// Cost by number of live slots. `None` when nothing was measured at several numbers.
pub fn slots(figures: &[Figure], kind: Kind) -> Result<Option<String>> {
    let series = series(figures);
    if series.is_empty() {
        return Ok(None);
    }
    let points = || series.values().flatten();
    let most = points().map(|point| point.0).fold(2.0, f64::max);
    // A little beyond the next mark of the scale, so that the last points stand in the picture.
    let most = SCALE.powf(most.log(SCALE).ceil()) * 1.3;
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.4;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (800, 440)).into_drawing_area();
        draw_slots(&root, &series, (most, top), kind).map_err(|error| anyhow!("a plot: {error}"))?;
    }
    Ok(Some(svg))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_slots(root: &Area<'_>, series: &Series<'_>, (most, top): (f64, f64), kind: Kind) -> Drawn {
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(root)
        .caption(format!("An operation by number of live slots: {} (median)", kind.unit()), (FONT, 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((1f64..most).log_scale().base(SCALE), 0f64..top)?;
    chart
        .configure_mesh()
        .x_desc("live slots")
        .y_desc(kind.unit())
        .x_label_formatter(&|slots| table::grouped(*slots))
        .y_label_formatter(&|count| table::grouped(*count))
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (((scenario, variant), points), color) in series.iter().zip(LINES.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(format!("{scenario}, {variant}"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    let labels = &mut chart.configure_series_labels();
    labels
        .label_font((FONT, 14))
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(PEERS)
        .draw()?;
    root.present()?;
    Ok(())
}

/// A bar: its name, its instructions, its exits, and whether it is ours.
struct Bar {
    name: String,
    instructions: f64,
    exits: f64,
    ours: bool,
}

/// Ours, each once (at the fewest slots), then the peer's, whose figures are of the emulated machine.
fn bars(figures: &[Figure], kind: Kind) -> Vec<Bar> {
    let mut bars: Vec<Bar> = Vec::new();
    for figure in figures {
        let name = format!("{}, {}", figure.scenario, figure.variant);
        if !bars.iter().any(|bar| bar.name == name) {
            bars.push(Bar { name, instructions: figure.median, exits: figure.exits_per_op, ours: true });
        }
    }
    let peer = |peer: &peer::Peer| Bar {
        name: format!("KVM: {}", peer.what),
        instructions: peer.instructions,
        exits: 1.0,
        ours: false,
    };
    if kind == Kind::Bochs {
        bars.extend(peer::KVM.iter().map(peer));
    }
    bars
}

/// Instructions and exits by scenario, beside the peer's.
pub fn scenarios(figures: &[Figure], kind: Kind) -> Result<Option<String>> {
    let bars = bars(figures, kind);
    let mut svg = String::new();
    {
        let height = HEAD as u32 + ROW as u32 * bars.len() as u32 + 40;
        let root = SVGBackend::with_string(&mut svg, (1140, height)).into_drawing_area();
        draw_bars(&root, &bars, kind).map_err(|error| anyhow!("a plot: {error}"))?;
    }
    Ok(Some(svg))
}

/// Pixels of the plot's head, and of a row.
const HEAD: i32 = 60;
const ROW: i32 = 22;
/// Where the bars of each panel begin, and how long the longest one is.
const INSTRUCTIONS: (i32, f64) = (450, 330.0);
const EXITS: (i32, f64) = (890, 160.0);

fn draw_bars(root: &Area<'_>, bars: &[Bar], kind: Kind) -> Drawn {
    root.fill(&WHITE)?;
    let style = |size: i32, anchor| (FONT, size).into_font().color(&BLACK).pos(anchor);
    let left = Pos::new(HPos::Left, VPos::Center);
    root.draw_text(&format!("An operation: {} and VM exits (median)", kind.unit()), &style(18, left), (12, 18))?;
    root.draw_text(kind.unit(), &style(15, left), (INSTRUCTIONS.0, 46))?;
    root.draw_text("VM exits", &style(15, left), (EXITS.0, 46))?;
    let most = |of: fn(&Bar) -> f64| bars.iter().map(of).fold(1.0, f64::max);
    let (instructions, exits) = (most(|bar| bar.instructions), most(|bar| bar.exits));
    for (n, bar) in (0..).zip(bars) {
        let y = HEAD + n * ROW + ROW / 2;
        root.draw_text(&bar.name, &style(14, Pos::new(HPos::Right, VPos::Center)), (INSTRUCTIONS.0 - 8, y))?;
        let panels = [
            (INSTRUCTIONS, bar.instructions / instructions, table::grouped(bar.instructions)),
            (EXITS, bar.exits / exits, table::exits(bar.exits)),
        ];
        for ((x, longest), share, text) in panels {
            let end = x + (share * longest).round() as i32;
            let color = if bar.ours { OURS } else { PEERS };
            root.draw(&Rectangle::new([(x, y - 7), (end, y + 7)], color.filled()))?;
            root.draw_text(&text, &style(14, left), (end + 5, y))?;
        }
    }
    let note = if bars.iter().all(|bar| bar.ours) { String::new() } else { format!("Grey: {}.", peer::SOURCE) };
    root.draw_text(&note, &style(14, left), (12, HEAD + ROW * bars.len() as i32 + 20))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figure;
    use super::*;

    #[test]
    fn a_line_needs_two_numbers_of_slots() {
        let one = [figure("mask", "trapped", 16, 100.0)];
        assert_eq!(slots(&one, Kind::Bochs).unwrap(), None);
        let svg = slots(&[figure("mask", "trapped", 16, 100.0), figure("mask", "trapped", 4096, 110.0)], Kind::Bochs)
            .unwrap();
        let svg = svg.unwrap();
        assert!(svg.contains("mask, trapped") && svg.trim_end().ends_with("</svg>"), "{svg}");
    }

    #[test]
    fn each_scenario_has_one_bar_beside_the_peer_s_and_their_source() {
        let svg =
            scenarios(&[figure("mask", "trapped", 1, 100.0), figure("mask", "trapped", 4096, 110.0)], Kind::Bochs)
                .unwrap();
        let svg = svg.unwrap();
        assert_eq!(svg.matches("mask, trapped").count(), 1);
        assert!(svg.contains(peer::SOURCE));
        assert!(peer::KVM.iter().all(|peer| svg.contains(peer.what)));
    }

    #[test]
    fn another_machine_s_figures_stand_alone_with_their_unit() {
        let svg = scenarios(&[figure("mask", "trapped", 1, 100.0)], Kind::Kvm).unwrap().unwrap();
        assert!(svg.contains("TSC ticks") && !svg.contains("instructions") && !svg.contains(peer::SOURCE), "{svg}");
    }
}
