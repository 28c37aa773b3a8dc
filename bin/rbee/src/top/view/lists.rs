//! The lines of the two lists.

use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

use super::text::{fit, fit_right, gb};
use crate::render::{self, Tone};
use crate::top::bar::{self, Palette};
use crate::top::rows::{DeviceRow, HostRow, Memory, State, WorkerRow};
use crate::top::state::Fleet;

/// Columns of a host's line that never change: state, per cent, gigabytes, age, and the gaps.
const HOST_FIXED: usize = 2 + 1 + STATE + 1 + 6 + 2 + 13 + 1 + 6;
/// Columns of a device's line that never change: gigabytes, per cent, degrees, watts, and the gaps.
const DEVICE_FIXED: usize = 4 + 8 + 1 + 1 + 13 + 6 + 7 + 11;
/// Columns of a worker's line that never change: state, slots, tokens a second, memory, and the gaps.
const WORKER_FIXED: usize = 2 + 3 + STATE + 1 + 7 + 7 + 1 + 8;
/// Columns of a state's word.
const STATE: usize = 10;

/// Widths of what grows with the terminal.
struct HostColumns {
    name: usize,
    cpu: usize,
    ram: usize,
}

impl HostColumns {
    fn of(width: u16) -> Self {
        let room = usize::from(width).saturating_sub(HOST_FIXED);
        let name = (room * 2 / 5).clamp(8, 32);
        let cpu = (room.saturating_sub(name) * 2 / 5).clamp(4, 24);
        let ram = room.saturating_sub(name + cpu).clamp(4, 48);
        Self { name, cpu, ram }
    }
}

/// The names of a host's columns.
pub(super) fn hosts_title(width: u16) -> String {
    let HostColumns { name, cpu, ram } = HostColumns::of(width);
    format!(
        "  {} {} {}  {} {}",
        fit("HOST", name),
        fit("STATE", STATE),
        fit("CPU", cpu + 6),
        fit("RAM", ram + 13),
        fit_right("BEAT", 6)
    )
}

/// Lines that a host takes.
pub(super) fn host_lines(host: &HostRow) -> usize {
    1 + usize::from(reason(host).is_some()) + host.devices.len()
}

/// Hosts, each with what is to be said of it and with its devices below.
pub(super) fn hosts(rows: &[HostRow], palette: Palette, width: u16) -> Vec<Line<'static>> {
    if rows.is_empty() {
        return vec![Line::from(
            "  no hosts: `rbee up` starts one here, `rbee join URL` on another machine",
        )];
    }
    let mut lines = Vec::new();
    for row in rows {
        lines.push(host(row, palette, width));
        if let Some(reason) = reason(row) {
            let text = fit(&format!("    {reason}"), usize::from(width));
            lines.push(Line::from(Span::styled(text, tone(palette, row.state.tone))));
        }
        lines.extend(row.devices.iter().map(|row| device(row, palette, width)));
    }
    lines
}

/// What is to be said of a host that is not as it should be.
fn reason(host: &HostRow) -> Option<&str> {
    host.reason.as_deref().filter(|_| host.state.tone != Tone::Good)
}

fn host(row: &HostRow, palette: Palette, width: u16) -> Line<'static> {
    let HostColumns { name, cpu, ram } = HostColumns::of(width);
    let mut spans = vec![
        Span::raw(format!("  {} ", fit(&row.id, name))),
        state(palette, row.state),
        Span::raw(" "),
    ];
    spans.extend(bar::share(palette, row.cpu_percent, cpu));
    spans.push(Span::raw(format!(
        "{}  ",
        fit_right(&format!("{:.0} %", row.cpu_percent), 6)
    )));
    spans.extend(memory(row.ram, palette, ram));
    let age = render::age(row.beat_age_ms);
    spans.push(Span::raw(format!(" {}", fit_right(&age, 6))));
    Line::from(spans)
}

/// A bar and its figures, or as much blank space.
fn memory(memory: Option<Memory>, palette: Palette, width: usize) -> Vec<Span<'static>> {
    let Some(memory) = memory else {
        return vec![Span::raw(fit("memory is not told", width + 13))];
    };
    let mut spans = bar::memory(palette, memory, width);
    let figures = format!("{}/{} GB", gb(memory.used_mb()), gb(memory.total_mb));
    spans.push(Span::raw(fit_right(&figures, 13)));
    spans
}

fn device(row: &DeviceRow, palette: Palette, width: u16) -> Line<'static> {
    let room = usize::from(width).saturating_sub(DEVICE_FIXED);
    let name = (room / 2).clamp(4, 32);
    let cells = room.saturating_sub(name).clamp(4, 48);
    let mut spans = vec![Span::raw(format!("    {} {} ", fit(&row.id, 8), fit(&row.name, name)))];
    spans.extend(memory(row.memory, palette, cells));
    let figure =
        |value: Option<f32>, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} {unit}"));
    let power = match (row.power_watts, row.power_limit_watts) {
        (Some(power), Some(limit)) => format!("{power:.0}/{limit:.0} W"),
        (power, _) => figure(power, "W"),
    };
    let utilisation = fit_right(&figure(row.utilisation_percent, "%"), 6);
    let temperature = fit_right(&figure(row.temperature_celsius, "°C"), 7);
    spans.push(Span::raw(format!(
        "{utilisation}{temperature}{}",
        fit_right(&power, 11)
    )));
    Line::from(spans)
}

/// Widths of what grows with the terminal.
struct WorkerColumns {
    id: usize,
    model: usize,
    place: usize,
    line: usize,
}

impl WorkerColumns {
    fn of(width: u16) -> Self {
        let room = usize::from(width).saturating_sub(WORKER_FIXED);
        let id = (room * 3 / 10).min(15);
        let line = (room / 8).min(30);
        let place = (room / 4).min(28);
        let model = room.saturating_sub(id + line + place);
        Self { id, model, place, line }
    }
}

/// The names of a worker's columns.
pub(super) fn workers_title(width: u16) -> String {
    let WorkerColumns { id, model, place, line } = WorkerColumns::of(width);
    format!(
        "  {} {} {} {} {}{} {}{}",
        fit("WORKER", id),
        fit("MODEL", model),
        fit("WHERE", place),
        fit("STATE", STATE),
        fit("BUSY", 7),
        fit_right("TOK/S", 7),
        fit("", line),
        fit_right("MEMORY", 8)
    )
}

/// Workers, a line each.
pub(super) fn workers(rows: &[WorkerRow], fleet: &Fleet, palette: Palette, width: u16) -> Vec<Line<'static>> {
    if rows.is_empty() {
        return vec![Line::from(
            "  no workers: a request for a model starts one, or `rbee spawn MODEL`",
        )];
    }
    rows.iter().map(|row| worker(row, fleet, palette, width)).collect()
}

fn worker(row: &WorkerRow, fleet: &Fleet, palette: Palette, width: u16) -> Line<'static> {
    let WorkerColumns { id, model, place, line } = WorkerColumns::of(width);
    let mut busy = format!("{}/{}", row.busy, row.slots);
    if row.waiting > 0 {
        busy.push_str(&format!(" +{}", row.waiting));
    }
    let whereabouts = match &row.host {
        Some(host) => format!("{} {host}", row.device),
        None => row.device.clone(),
    };
    let held = row
        .vram_mb
        .or(row.ram_mb)
        .map_or_else(|| "-".to_owned(), |mb| format!("{} GB", gb(mb)));
    let rates = fleet.rates(&row.id);
    let rates = bar::sparkline(rates.into_iter().flat_map(|rates| rates.newest(line)), line);
    Line::from(vec![
        Span::raw(format!(
            "  {} {} {} ",
            fit(&row.id, id),
            fit(&row.model, model),
            fit(&whereabouts, place)
        )),
        state(palette, row.state),
        Span::raw(format!(
            " {}{} ",
            fit(&busy, 7),
            fit_right(&format!("{:.1}", row.tokens_per_second), 7)
        )),
        Span::styled(rates, palette.ours()),
        Span::raw(fit_right(&held, 8)),
    ])
}

fn state(palette: Palette, state: State) -> Span<'static> {
    Span::styled(fit(state.word, STATE), tone(palette, state.tone))
}

fn tone(palette: Palette, tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => palette.style(Color::Green),
        Tone::Warn => palette.style(Color::Yellow),
        Tone::Bad => palette.style(Color::Red),
    }
}
