//! The picture: a function of what is known and what the user looks at.

mod help;
mod lists;
mod text;

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use self::text::{counted, fit};
use super::bar::{FREE, OTHERS, OURS, Palette, sparkline};
use super::input::{Extent, Extents, Section};
use super::rows::{self, HostRow, WorkerRow};
use super::state::SAMPLES;
use super::{Link, Watch};
use crate::render;

/// Lines besides the two lists: the head, the lists' titles, the space between, and the keys.
const FRAME_LINES: usize = 7;

/// What is shown in the two lists.
struct Content {
    hosts: Vec<HostRow>,
    workers: Vec<WorkerRow>,
}

impl Content {
    fn of(watch: &Watch, now: Duration) -> Self {
        let mut workers = rows::workers(&watch.fleet, now);
        watch.ui.sort.apply(&mut workers);
        Self {
            hosts: rows::hosts(&watch.fleet, now),
            workers,
        }
    }

    /// The room of the two lists: as much as each needs, else no less than half for the hosts.
    fn extents(&self, height: u16, is_doubted: bool) -> Extents {
        let hosts = self.hosts.iter().map(lists::host_lines).sum::<usize>().max(1);
        let workers = self.workers.len().max(1);
        let room = usize::from(height).saturating_sub(FRAME_LINES + usize::from(is_doubted));
        let for_hosts = hosts.min((room / 2).max(room.saturating_sub(workers)));
        Extents {
            hosts: Extent {
                lines: hosts,
                room: for_hosts,
            },
            workers: Extent {
                lines: workers,
                room: room - for_hosts,
            },
        }
    }
}

/// How far the lists can be scrolled on a terminal of this height.
pub(super) fn extents(watch: &Watch, height: u16, now: Duration) -> Extents {
    Content::of(watch, now).extents(height, doubt(watch).is_some())
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, watch: &Watch, palette: Palette, now: Duration) {
    let area = frame.area();
    let content = Content::of(watch, now);
    let doubt = doubt(watch);
    let extents = content.extents(area.height, doubt.is_some());
    let rows = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let parts = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(rows(usize::from(doubt.is_some()))),
        Constraint::Length(1),
        Constraint::Length(rows(1 + extents.hosts.room)),
        Constraint::Length(1),
        Constraint::Length(rows(1 + extents.workers.room)),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [head, doubtful, _, hosts, _, workers, _, keys] = parts.areas(area);
    frame.render_widget(Paragraph::new(self::head(watch, palette, head, now)), head);
    if let Some(doubt) = doubt {
        let text = fit(&format!(" {doubt}"), usize::from(doubtful.width));
        frame.render_widget(
            Paragraph::new(Span::styled(text, palette.style(Color::Yellow))),
            doubtful,
        );
    }
    let ui = &watch.ui;
    let list = lists::hosts(&content.hosts, palette, hosts.width);
    let title = lists::hosts_title(hosts.width);
    let is_ours = ui.section == Section::Hosts;
    paint(frame, hosts, (title, is_ours), list, extents.hosts, ui.hosts_at);
    let list = lists::workers(&content.workers, &watch.fleet, palette, workers.width);
    let title = lists::workers_title(workers.width);
    let is_ours = ui.section == Section::Workers;
    paint(frame, workers, (title, is_ours), list, extents.workers, ui.workers_at);
    frame.render_widget(Paragraph::new(self::keys(watch, palette, keys)), keys);
    if ui.help {
        help::draw(frame, palette);
    }
}

/// A title, and as much of a list as there is room for.
fn paint(
    frame: &mut Frame<'_>,
    area: Rect,
    (title, is_ours): (String, bool),
    list: Vec<Line<'static>>,
    extent: Extent,
    at: usize,
) {
    let at = at.min(extent.last());
    let seen = if extent.last() > 0 {
        format!(" {}-{} of {} ", at + 1, at + extent.room, extent.lines)
    } else {
        String::new()
    };
    let width = usize::from(area.width);
    let title = fit(&title, width.saturating_sub(seen.chars().count()));
    let mark = if is_ours { "▸" } else { " " };
    let style = if is_ours { Style::new().bold() } else { Style::new() };
    let title = Line::from(vec![
        Span::styled(format!("{mark}{}", title.get(1..).unwrap_or("")), style),
        Span::raw(seen),
    ]);
    let lines = std::iter::once(title).chain(list.into_iter().skip(at).take(extent.room));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

fn doubt(watch: &Watch) -> Option<String> {
    let queen = &watch.fleet.queen.as_ref()?.queen;
    let reason = queen.degraded_reason.as_deref().map(render::clean);
    queen
        .degraded_view
        .then(|| format!("the queen doubts what she sees: {}", reason.unwrap_or_default()))
}

fn head(watch: &Watch, palette: Palette, area: Rect, now: Duration) -> Vec<Line<'static>> {
    let width = usize::from(area.width);
    let fleet = &watch.fleet;
    let (link, tone) = match &watch.link {
        Link::Live => ("● live ".to_owned(), palette.style(Color::Green)),
        Link::Broken { since, why } => {
            let span = now.saturating_sub(*since).as_secs();
            (
                format!("○ reconnecting for {span} s: {} ", render::clean(why)),
                palette.style(Color::Red),
            )
        }
    };
    let queen = fleet.queen.as_ref().map_or_else(
        || "waiting for the queen".to_owned(),
        |beat| {
            let queen = &beat.queen;
            format!("{} {}, up {}", queen.id, queen.version, render::age(queen.uptime_ms))
        },
    );
    let name = " rbee top";
    let link = fit(&link, link.chars().count().min(width.saturating_sub(name.len() + 1)));
    let room = width.saturating_sub(name.len() + link.chars().count());
    let first = Line::from(vec![
        Span::styled(name, Style::new().bold()),
        Span::raw(fit(&format!("  {queen}"), room)),
        Span::styled(link, tone),
    ]);
    let beat = fleet.queen.as_ref();
    let (hosts, workers) = beat.map_or_else(Default::default, |beat| (beat.hives, beat.workers));
    let text = format!(
        " hosts {}   workers {}   in flight {}   waiting {}   {:.1} tokens/s ",
        counted(hosts.ready, hosts.total),
        counted(workers.ready, workers.total),
        beat.map_or(0, |beat| beat.inflight_requests),
        beat.map_or(0, |beat| beat.waiting_requests),
        fleet.tokens_per_second(),
    );
    let room = width.saturating_sub(text.chars().count() + 1).min(SAMPLES);
    let line = sparkline(fleet.total().newest(room), room);
    let second = Line::from(vec![Span::raw(text), Span::styled(line, palette.ours())]);
    vec![first, second]
}

fn keys(watch: &Watch, palette: Palette, area: Rect) -> Line<'static> {
    let other = match watch.ui.section {
        Section::Hosts => "workers",
        Section::Workers => "hosts",
    };
    let keys = format!(" q quit   ? help   Tab {other}   s sort: {}", watch.ui.sort.word());
    let legend = [
        (OURS, "ours", palette.ours()),
        (OTHERS, "others", palette.others()),
        (FREE, "free", palette.free()),
    ];
    let legend_width: usize = legend.iter().map(|(_, word, _)| word.len() + 4).sum();
    let room = usize::from(area.width).saturating_sub(legend_width);
    let mut spans = vec![Span::raw(fit(&keys, room))];
    for (cell, word, style) in legend {
        spans.push(Span::styled(cell.to_string(), style));
        spans.push(Span::raw(format!(" {word}  ")));
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests;
