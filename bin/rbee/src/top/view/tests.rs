use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use serde_json::{Value, json};

use super::*;
use crate::fleet::tests::worker;
use crate::top::feed::Update;
use crate::top::rows::tests::gpu_host;
use crate::top::state::Event;
use crate::top::state::tests::snapshot;

const PLAIN: Palette = Palette { colour: false };

fn watch(hives: &[Value], workers: &[Value]) -> Watch {
    let mut watch = Watch::new();
    watch.take(Update::Event(snapshot(hives, workers)), Duration::ZERO);
    let counts = |all: usize| json!({"total": all, "online": all, "suspect": 0, "unreachable": 0, "lost": 0, "ready": all, "contended": 0});
    let beat = json!({
        "queen": {"id": "queen-1", "version": "0.1.0", "uptime_ms": 185_000, "degraded_view": false},
        "workers": counts(workers.len()), "hives": counts(hives.len()), "inflight_requests": 3, "waiting_requests": 2,
    });
    let beat = Event::parse("queen", &beat.to_string()).unwrap().unwrap();
    watch.take(Update::Event(beat), Duration::ZERO);
    watch
}

fn buffer(watch: &Watch, (width, height): (u16, u16), palette: Palette, now: Duration) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, watch, palette, now)).unwrap();
    terminal.backend().buffer().clone()
}

/// The picture at 80 by 24 as lines without their trailing spaces.
fn lines(watch: &Watch) -> Vec<String> {
    sized(watch, (80, 24), Duration::ZERO)
}

fn sized(watch: &Watch, size: (u16, u16), now: Duration) -> Vec<String> {
    let buffer = buffer(watch, size, PLAIN, now);
    let rows = buffer.content.chunks(usize::from(size.0));
    rows.map(|row| {
        row.iter()
            .map(|cell| cell.symbol())
            .collect::<String>()
            .trim_end()
            .to_owned()
    })
    .collect()
}

fn many(count: usize) -> Vec<Value> {
    (0..count)
        .map(|number| worker(&format!("worker-{number:02}")))
        .collect()
}

#[test]
fn a_fleet_fits_eighty_columns() {
    let mut watch = watch(&[gpu_host("gpu-box")], &[worker("worker-1a2b3c4d")]);
    watch.fleet.sample();
    assert_eq!(
        lines(&watch)[..9],
        [
            " rbee top  queen-1 0.1.0, up 3 min                                       ● live",
            " hosts 1/1   workers 1/1   in flight 3   waiting 2   51.3 tokens/s            █",
            "",
            "  HOST            STATE      CPU              RAM                           BEAT",
            "  gpu-box         online     █░░░░░░░░  12 %  ▒░░░░░░░░░░░░░  1.5/64.0 GB    now",
            "    cuda:0   NVIDIA RTX 40… ████████▒▒▒░░░░ 18.0/24.0 GB  97 %  71 °C  320/450 W",
            "",
            "▸ WORKER       MODEL          WHERE      STATE      BUSY     TOK/S        MEMORY",
            "  worker-1a2b… m              cpu gpu-b… ready      1/4 +2    51.3     █       -",
        ]
    );
}

#[test]
fn an_empty_fleet_says_how_to_fill_it() {
    let lines = lines(&watch(&[], &[]));
    assert!(lines[4].contains("rbee join"), "{lines:#?}");
    assert!(lines[7].contains("rbee spawn"), "{lines:#?}");
}

#[test]
fn a_list_that_is_too_long_scrolls_and_says_what_is_seen() {
    let mut watch = watch(&[gpu_host("box")], &many(40));
    let seen = |watch: &Watch| {
        lines(watch)
            .into_iter()
            .filter(|line| line.contains("worker-"))
            .collect::<Vec<_>>()
    };
    assert_eq!(seen(&watch).len(), 15);
    assert!(lines(&watch)[7].ends_with("1-15 of 40"), "{:#?}", lines(&watch));
    watch.ui.workers_at = 1_000;
    let rows = seen(&watch);
    assert!(
        rows[0].contains("worker-25") && rows[14].contains("worker-39"),
        "{rows:#?}"
    );
}

#[test]
fn many_hosts_leave_half_of_the_screen_to_the_workers() {
    let hosts: Vec<_> = (0..30).map(|number| gpu_host(&format!("box-{number:02}"))).collect();
    let watch = watch(&hosts, &many(30));
    let extents = extents(&watch, 24, Duration::ZERO);
    assert_eq!((extents.hosts.room, extents.workers.room), (8, 9));
    assert_eq!(extents.hosts.lines, 60, "each with its device");
}

#[test]
fn a_broken_stream_is_told_with_its_reason_and_the_last_picture_stays() {
    let mut watch = watch(&[gpu_host("box")], &[worker("w")]);
    watch.take(Update::Broken("connection refused".into()), Duration::from_secs(2));
    let lines = sized(&watch, (80, 24), Duration::from_secs(5));
    assert!(
        lines[0].ends_with("reconnecting for 3 s: connection refused"),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("box")), "{lines:#?}");
}

#[test]
fn a_host_in_trouble_says_why_below_its_line() {
    let mut host = gpu_host("box");
    host["health_status"] = "degraded".into();
    let lines = lines(&watch(&[host], &[]));
    assert!(
        lines[4].contains("degraded") && lines[5].contains("the disk is nearly full"),
        "{lines:#?}"
    );
}

#[test]
fn every_size_can_be_drawn() {
    let hosts: Vec<_> = (0..5).map(|number| gpu_host(&format!("box-{number}"))).collect();
    let mut watch = watch(&hosts, &many(9));
    watch.ui.help = true;
    for size in [
        (1, 1),
        (10, 3),
        (20, 8),
        (40, 12),
        (80, 24),
        (81, 23),
        (132, 43),
        (300, 100),
    ] {
        assert_eq!(
            sized(&watch, size, Duration::ZERO).len(),
            usize::from(size.1),
            "{size:?}"
        );
    }
}

#[test]
fn the_help_names_the_keys() {
    let mut watch = watch(&[], &[]);
    watch.ui.help = true;
    let text = lines(&watch).join("\n");
    for key in ["q, Esc", "arrows", "Tab", "sorts the workers"] {
        assert!(text.contains(key), "{text}");
    }
}

#[test]
fn without_colours_the_picture_is_made_of_characters_only() {
    let watch = watch(&[gpu_host("box")], &[worker("w")]);
    let coloured = |palette| {
        let buffer = buffer(&watch, (80, 24), palette, Duration::ZERO);
        buffer
            .content
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(Palette { colour: true }));
    assert!(!coloured(PLAIN));
}
