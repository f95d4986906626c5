// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What `bmc top` looks like: a state drawn, nothing else.

use std::cmp::Reverse;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Style;
use ratatui::style::Stylize as _;
use ratatui::text::Line;
use ratatui::text::Span;
use ratatui::widgets::Paragraph;
use ratatui::widgets::RenderDirection;
use ratatui::widgets::Sparkline;

use super::sample::FIGURES;
use super::sample::HotKey;
use super::sample::State;
use crate::instance;
use crate::instance::Activity;
use crate::output::MEASURE;
use crate::output::escaped;
use crate::output::grouped;
use crate::output::mebibytes;
use crate::output::span;
use crate::stats::Rates;

/// What the keys change.
pub struct Controls {
    /// From refresh to refresh.
    pub interval: Duration,
    /// The figures are held.
    pub paused: bool,
    /// The order of the hottest keys.
    pub sort: Sort,
    /// The help is shown.
    pub help: bool,
}

impl Controls {
    /// As they are at first.
    pub fn new(interval: Duration) -> Self {
        Self { interval, paused: false, sort: Sort::Rate, help: false }
    }
}

/// The column that the hottest keys are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Requests a second, most first.
    Rate,
    /// The cache's own count, most first.
    Heat,
    /// Length of the value, longest first.
    Bytes,
    /// Time until it is fetched anew, shortest first.
    Left,
    /// Alphabetically.
    Key,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Rate, Self::Heat, Self::Bytes, Self::Left, Self::Key];

    /// The column to the right, or the first.
    #[must_use]
    pub fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    /// The column to the left, or the last.
    #[must_use]
    pub fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }

    /// Those that are equal stay the hottest first.
    fn sort(self, keys: &mut [&HotKey]) {
        match self {
            Self::Rate => keys.sort_by(|a, b| b.rate.total_cmp(&a.rate)),
            Self::Heat => keys.sort_by_key(|hot| Reverse(hot.entry.heat)),
            Self::Bytes => keys.sort_by_key(|hot| Reverse(hot.entry.bytes)),
            Self::Left => keys.sort_by_key(|hot| hot.entry.left),
            Self::Key => keys.sort_by(|a, b| a.entry.key.cmp(&b.entry.key)),
        }
    }
}

const HELP: &str = "\
q  Esc  Ctrl-C   leave
p  space         hold the figures, or go on
s  right  left   sort the keys by another column
+  -             longer or shorter intervals
?  h             this help; any key leaves it

Rates are those of the last interval, a second. Of keys they are estimates, from
samples of the last ten seconds or so; of a GET with several keys, the last
stands for it.
heat    requests as the cache counts them to choose what stays, up to 7
left    until the entry is fetched anew
used    slots that hold, or once held, an entry";

/// Columns of the tables, and rows.
const CPU: u16 = 23;
const PROGRAM: u16 = 34;
const SLOTS: u16 = 23;
const TABLE: usize = 8;

/// Draws everything, or as much as there is room for.
pub fn draw(frame: &mut Frame<'_>, state: &State, controls: &Controls) {
    let area = frame.area();
    let tall = area.height >= 20;
    let rows = state.programs.len() + 1;
    let rows = rows.max(state.classes.len()).max(state.cpus.len()) + 1;
    let rows = rows.min(TABLE.max(usize::from(area.height) / 3)) as u16;
    let [head, figures, tables, keys, foot] = Layout::vertical([
        Constraint::Length(if tall { 2 } else { 1 }),
        Constraint::Length(FIGURES.len() as u16 + 1),
        Constraint::Length(if tall { rows } else { 0 }),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, head, state, controls);
    if controls.help {
        let body = area.intersection(Rect { y: head.bottom(), ..area });
        frame.render_widget(Paragraph::new(HELP), body);
        return;
    }
    draw_figures(frame, figures, state);
    draw_tables(frame, tables, state);
    draw_keys(frame, keys, state, controls.sort);
    let keys = "q quit  p pause  s sort  + - interval  ? help";
    frame.render_widget(keys.dim(), foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, state: &State, controls: &Controls) {
    let mut line = vec![format!("bmc {}", state.instance).bold(), ": ".into()];
    line.push(match state.activity {
        Activity::Caching => "caching".into(),
        Activity::Asleep => "asleep".into(),
        Activity::Idle => "idle (bmc flush ends that)".yellow(),
    });
    if let Some(up) = state.up {
        line.push(format!(", up {}", span(Duration::from_secs(up.as_secs()))).into());
    }
    let right = if controls.paused {
        Line::from(" paused ".reversed())
    } else {
        Line::from(format!(" every {}", span(controls.interval)))
    };
    let width = if area.width >= 36 { right.width() as u16 } else { 0 };
    let columns = Layout::horizontal([Constraint::Min(0), Constraint::Length(width)]);
    let lines = Layout::vertical([Constraint::Length(1); 2]).split(area);
    let [first, second] = [lines[0], lines[1]];
    let [left_side, right_side] = columns.areas(first);
    frame.render_widget(Line::from(line), left_side);
    frame.render_widget(right, right_side);

    let memory = format!("{} of {} locked", mebibytes(state.locked), mebibytes(state.memory));
    let mut line = Vec::new();
    for iface in &state.interfaces {
        line.push(format!("{} {} ", iface.name, iface.mode).into());
        line.push(match iface.state {
            instance::State::Up => "up".green(),
            other => other.to_string().red(),
        });
        line.push(", ".into());
    }
    line.push(Span::from(if state.loopback { "lo watched, " } else { "lo not watched, " }));
    line.push(memory.into());
    frame.render_widget(Line::from(line), second);
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, state: &State) {
    const TITLE: u16 = 14;
    const NUMBER: u16 = 14;
    const PASSES: u16 = 26;

    let passes = if area.width >= 72 { PASSES } else { 0 };
    let columns = [
        Constraint::Length(TITLE.min(area.width.saturating_sub(NUMBER + 1))),
        Constraint::Length(NUMBER),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(passes.min(2)),
        Constraint::Length(passes),
    ];
    let [titles, numbers, _, graphs, _, passes] = Layout::horizontal(columns).areas(area);
    let rate =
        |counter| state.rates.as_ref().map_or("-".into(), |r| per_second(r.of(counter)) + "/s");
    let figures = FIGURES
        .iter()
        .zip(&state.history)
        .map(|((title, counter), history)| (*title, rate(counter), history, None));
    let ratio = state.rates.as_ref().and_then(Rates::hit_ratio);
    let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.1} %"));
    let figures = figures.chain([("hit ratio", ratio, &state.ratios, Some(100))]);
    for (row, (title, number, history, most)) in area.rows().zip(figures) {
        frame.render_widget(title.bold(), row.intersection(titles));
        frame.render_widget(Line::from(number).right_aligned(), row.intersection(numbers));
        let latest = history.iter().rev().take(graphs.width.into()).copied();
        let mut graph = Sparkline::default()
            .data(latest.collect::<Vec<_>>())
            .direction(RenderDirection::RightToLeft)
            .style(Style::new().fg(Color::Cyan));
        if let Some(most) = most {
            graph = graph.max(most);
        }
        frame.render_widget(graph, row.intersection(graphs));
    }

    let reasons = state.rates.as_ref().map(Rates::passes).unwrap_or_default();
    let mut lines = vec![Line::from("passes/s, by reason".bold())];
    if reasons.is_empty() {
        lines.push("none".dim().into());
    }
    let row =
        |(reason, rate): &(&str, f64)| format!("{reason:<11}{:>13}", per_second(*rate)).into();
    lines.extend(fitting(&reasons, usize::from(passes.height).saturating_sub(1), row));
    frame.render_widget(Paragraph::new(lines), passes);
}

fn draw_tables(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let width = area.width;
    let has_slots = width >= CPU + PROGRAM + SLOTS;
    let has_cpus = width >= CPU + PROGRAM;
    let [cpus, programs, slots] = Layout::horizontal([
        Constraint::Length(if has_cpus { CPU } else { 0 }),
        Constraint::Length(PROGRAM),
        Constraint::Length(if has_slots { SLOTS } else { 0 }),
    ])
    .areas(area);
    let room = usize::from(area.height).saturating_sub(1);

    let mut lines = vec![Line::from(format!("{:>4}{:>10}{:>7}", "cpu", "gets/s", "share").bold())];
    let all: f64 = state.cpus.iter().map(|cpu| cpu.of("get_requests")).sum();
    let mut rates: Vec<_> =
        state.cpus.iter().map(|cpu| cpu.of("get_requests")).enumerate().collect();
    if rates.len() > room {
        // The busiest, if not all.
        rates.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    }
    lines.extend(fitting(&rates, room, |(cpu, rate)| {
        let share = if all > 0.0 { format!("{:.0} %", rate * 100.0 / all) } else { "-".into() };
        format!("{cpu:>4}{:>10}{share:>7}", per_second(*rate)).into()
    }));
    frame.render_widget(Paragraph::new(lines), cpus);

    let title = format!("{:<10}{:>11}{:>10}", "program", "runs/s", "ns/run");
    let mut lines = vec![Line::from(title.bold())];
    for program in &state.programs {
        let runs = program.runs.map_or("-".into(), per_second);
        let ns = program.ns.map_or("-".into(), grouped);
        lines.push(format!("{:<10}{runs:>11}{ns:>10}", program.name).into());
    }
    if !state.is_measured {
        lines.push(MEASURE.dim().into());
    }
    frame.render_widget(Paragraph::new(lines), programs);

    let mut lines = vec![Line::from(format!("{:>6}{:>8}{:>8}", "slot B", "used", "MiB").bold())];
    let mut classes: Vec<_> = state.classes.iter().collect();
    if classes.len() > room {
        // Those that most memory went to, if not all.
        classes.sort_by_key(|class| Reverse(class.slabs));
    }
    lines.extend(fitting(&classes, room, |class| {
        let used = class.used as f64 * 100.0 / class.slots.max(1) as f64;
        let memory = class.bytes() as f64 / f64::from(1 << 20);
        format!("{:>6}{:>8}{memory:>8.1}", class.size, format!("{used:.1} %")).into()
    }));
    frame.render_widget(Paragraph::new(lines), slots);
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, state: &State, sort: Sort) {
    /// Column, title and width.
    const COLUMNS: [(Option<Sort>, &str, usize); 5] = [
        (Some(Sort::Rate), "gets/s", 10),
        (None, "share", 8),
        (Some(Sort::Heat), "heat", 6),
        (Some(Sort::Bytes), "bytes", 9),
        (Some(Sort::Left), "left", 10),
    ];
    const MEMCACHED: usize = 23;

    let width = usize::from(area.width);
    let columns = if width >= 60 { &COLUMNS[..] } else { &COLUMNS[..1] };
    let marked = |column: Option<Sort>, title: &str| {
        if column == Some(sort) { format!("▾{title}") } else { title.into() }
    };
    let has_memcached = width >= 110;
    let mut title = String::new();
    for (column, name, width) in columns {
        title += &format!("{:>width$}", marked(*column, name));
    }
    if has_memcached {
        title += &format!("  {:<MEMCACHED$}", "memcached");
    }
    title += &format!("  {}", marked(Some(Sort::Key), "hottest key"));
    title += &format!(" (of {} samples)", grouped(state.samples));

    let mut keys: Vec<_> = state.keys.iter().collect();
    sort.sort(&mut keys);
    let mut lines = vec![Line::from(title.bold())];
    if keys.is_empty() {
        lines.push("no key in the cache was asked for of late".dim().into());
    }
    lines.extend(keys.iter().map(|hot| {
        let entry = &hot.entry;
        let cells = [
            per_second(hot.rate),
            format!("{:.1} %", hot.share),
            entry.heat.to_string(),
            grouped(entry.bytes.into()),
            span(entry.left),
        ];
        let mut row = String::new();
        for ((_, _, width), cell) in columns.iter().zip(cells) {
            row += &format!("{cell:>width$}");
        }
        if has_memcached {
            row += &format!("  {:<MEMCACHED$}", entry.memcached());
        }
        row += "  ";
        let room = width.saturating_sub(row.chars().count());
        Line::from(row + &cut(escaped(&entry.key), room))
    }));
    frame.render_widget(Paragraph::new(lines), area);
}

/// Lines for as many things as there is room for; the last one says how many more
/// there are.
fn fitting<T>(things: &[T], room: usize, line: impl Fn(&T) -> Line<'static>) -> Vec<Line<'static>> {
    let shown = if things.len() > room { room.saturating_sub(1) } else { things.len() };
    let mut lines: Vec<_> = things[..shown].iter().map(line).collect();
    if shown < things.len() {
        lines.push(format!("  and {} more", things.len() - shown).dim().into());
    }
    lines
}

fn per_second(rate: f64) -> String {
    grouped(rate.round() as u64)
}

/// A text of ASCII that fits.
fn cut(mut text: String, room: usize) -> String {
    if text.len() > room {
        text.truncate(room.saturating_sub(1));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::Cost;
    use super::*;
    use crate::entries::Entry;
    use crate::instance::Class;
    use crate::instance::Interface;

    fn hot(key: &[u8], rate: f64, heat: u8, bytes: u32, seconds: u64) -> HotKey {
        let entry = Entry {
            key: key.to_vec(),
            address: [10, 0, 0, 1].into(),
            port: 11211,
            vlan: 0,
            flags: 0,
            bytes,
            left: Duration::from_secs(seconds),
            heat,
        };
        HotKey { entry, rate, share: rate / 25.0 }
    }

    fn state() -> State {
        let cpu = |gets| Rates::of_counts(&[("get_requests", gets)], 2.0);
        State {
            instance: "web".into(),
            activity: Activity::Caching,
            up: Some(Duration::from_millis(3_785_250)),
            interfaces: vec![
                Interface { name: "eth0".into(), mode: "native", state: instance::State::Up },
                Interface { name: "eth1".into(), mode: "tc", state: instance::State::Gone },
            ],
            loopback: true,
            locked: 267_000_000,
            memory: 256 << 20,
            classes: [64, 96, 128]
                .map(|size| Class { size, slabs: 5, slots: 200, used: 50 })
                .into(),
            rates: Some(Rates::of_counts(
                &[
                    ("get_requests", 2_469_134),
                    ("hits", 2000),
                    ("misses", 6000),
                    ("fills", 30),
                    ("invalidations", 8),
                    ("pass_size", 10),
                    ("pass_command", 90),
                ],
                2.0,
            )),
            ratios: [0, 50, 25].into(),
            history: [[1, 8], [0, 4], [8, 0], [1, 1], [0, 0]].map(Into::into),
            cpus: vec![cpu(30), cpu(10)],
            programs: ["bmc_rx", "bmc_rx_tc", "bmc_tx", "bmc_now", "bmc_flush", "bmc_gone"]
                .map(|name| Cost { name: name.into(), runs: Some(12345.4), ns: Some(119) })
                .into(),
            is_measured: true,
            keys: vec![
                hot(b"first", 1500.0, 3, 5, 59),
                hot(b"a b", 900.0, 7, 10, 7),
                hot(&[b'k'; 250], 100.0, 1, 1200, 90),
            ],
            samples: 1842,
        }
    }

    fn controls() -> Controls {
        Controls::new(Duration::from_secs(1))
    }

    /// The rows of a screen of that size.
    fn screen(columns: u16, rows: u16, state: &State, controls: &Controls) -> Vec<String> {
        let mut terminal =
            Terminal::new(TestBackend::new(columns, rows)).expect("a buffer has no errors");
        terminal.draw(|frame| draw(frame, state, controls)).expect("likewise");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..rows).map(|y| row(y).trim_end().to_string()).collect()
    }

    #[test]
    fn fits_80_columns_and_24_rows() {
        let screen = screen(80, 24, &state(), &controls());
        let expected = "\
bmc web: caching, up 1h 3m                                              every 1s
eth0 native up, eth1 tc gone, lo watched, 254.6 MiB of 256.0 MiB locked
requests         1,234,567/s                      ▁█  passes/s, by reason
hits                 1,000/s                       █  command               45
misses               3,000/s                      █   size                   5
fills                   15/s                      ██
invalidations            4/s
hit ratio             25.0 %                      ▄▂
 cpu    gets/s  share  program        runs/s    ns/run   slot B    used     MiB
   0        15   75 %  bmc_rx         12,345       119       64  25.0 %     1.2
   1         5   25 %  bmc_rx_tc      12,345       119       96  25.0 %     1.2
                       bmc_tx         12,345       119      128  25.0 %     1.2
                       bmc_now        12,345       119
                       bmc_flush      12,345       119
                       bmc_gone       12,345       119

   ▾gets/s   share  heat    bytes      left  hottest key (of 1,842 samples)
     1,500  60.0 %     3        5       59s  first
       900  36.0 %     7       10        7s  a\\x20b
       100   4.0 %     1    1,200    1m 30s  kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…



q quit  p pause  s sort  + - interval  ? help";
        assert_eq!(screen.join("\n"), expected, "\n{}", screen.join("\n"));
    }

    #[test]
    fn shows_the_most_important_in_40_columns_and_10_rows() {
        let screen = screen(40, 10, &state(), &controls());
        assert_eq!(screen[0], "bmc web: caching, up 1h 3m      every 1s");
        assert!(screen[1].starts_with("requests         1,234,567/s "), "{screen:#?}");
        assert_eq!(screen[1].chars().last(), Some('█'), "{screen:#?}");
        assert!(screen[6].starts_with("hit ratio             25.0 %"), "{screen:#?}");
        assert_eq!(screen[7], "   ▾gets/s  hottest key (of 1,842 sample");
        assert_eq!(screen[8], "     1,500  first");
        assert!(screen[9].starts_with("q quit"), "{screen:#?}");
    }

    #[test]
    fn cuts_titles_rather_than_numbers() {
        let screen = screen(16, 8, &state(), &controls());
        assert_eq!(screen[0], "bmc web: caching");
        assert_eq!(screen[1], "r   1,234,567/s");
    }

    #[test]
    fn uses_the_room_that_there_is() {
        let screen = screen(140, 50, &state(), &controls());
        let all = screen.join("\n");
        assert!(all.contains("10.0.0.1:11211"), "{all}");
        // Whole: there is room for more than half of it, which is cut.
        let long = screen.iter().find(|row| row.contains("kkkk")).expect("the third key");
        assert_eq!(long.chars().count(), 140, "{long}");
        assert!(long.ends_with("k…"), "{long}");
    }

    #[test]
    fn draws_any_size() {
        let mut crowded = state();
        crowded.cpus = vec![Rates::of_counts(&[("get_requests", 7)], 1.0); 300];
        crowded.instance = "n".repeat(128);
        for (columns, rows) in (0..90).flat_map(|n| [(n, 1), (1, n), (n, n), (n, 24), (80, n)]) {
            screen(columns, rows, &crowded, &controls());
            screen(columns, rows, &state(), &Controls { help: true, ..controls() });
        }
    }

    #[test]
    fn says_how_many_cpus_and_classes_have_no_room() {
        let mut state = state();
        state.cpus = (1..=64).map(|n| Rates::of_counts(&[("get_requests", n)], 1.0)).collect();
        state.classes =
            (1..=16).map(|n| Class { size: n * 32, slabs: n, slots: 10, used: 5 }).collect();
        let screen = screen(80, 24, &state, &controls());
        let first = screen.iter().position(|row| row.starts_with(" cpu")).expect("the title") + 1;
        assert!(screen[first].starts_with("  63        64"), "the busiest: {screen:#?}");
        assert!(screen[first].ends_with("   512  50.0 %     4.0"), "the largest: {screen:#?}");
        let last = &screen[first + 6];
        assert!(last.starts_with("  and 58 more"), "{screen:#?}");
        assert!(last.ends_with("  and 10 more"), "{screen:#?}");
    }

    #[test]
    fn sorts_by_each_column_and_marks_it() {
        for (sort, mark, keys) in [
            (Sort::Rate, "▾gets/s", ["first", "a\\x20b", "kkkk"]),
            (Sort::Heat, "▾heat", ["a\\x20b", "first", "kkkk"]),
            (Sort::Bytes, "▾bytes", ["kkkk", "a\\x20b", "first"]),
            (Sort::Left, "▾left", ["a\\x20b", "first", "kkkk"]),
            (Sort::Key, "▾hottest key", ["a\\x20b", "first", "kkkk"]),
        ] {
            let screen = screen(80, 24, &state(), &Controls { sort, ..controls() });
            let title = screen.iter().position(|row| row.contains(mark)).expect(mark);
            for (row, key) in screen[title + 1..].iter().zip(keys) {
                assert!(row[45..].starts_with(key), "{sort:?}: {key}: {screen:#?}");
            }
        }
    }

    #[test]
    fn goes_round_the_columns_either_way() {
        let mut sort = Sort::Rate;
        for expected in [Sort::Heat, Sort::Bytes, Sort::Left, Sort::Key, Sort::Rate] {
            assert_eq!(sort.next(), expected);
            assert_eq!(expected.previous(), sort);
            sort = expected;
        }
    }

    #[test]
    fn says_how_to_have_costs_measured() {
        let mut state = state();
        state.is_measured = false;
        for program in &mut state.programs {
            program.runs = None;
            program.ns = None;
        }
        let screen = screen(80, 24, &state, &controls());
        assert!(screen.iter().any(|row| row.contains(MEASURE)), "{screen:#?}");
        let row = screen.iter().find(|row| row.contains("bmc_tx")).expect("its row");
        assert!(row.contains("bmc_tx              -         -"), "{row}");
    }

    #[test]
    fn tells_nothing_from_zero() {
        let mut state = state();
        state.rates = None;
        state.keys.clear();
        let before = screen(80, 24, &state, &controls());
        assert_eq!(before[3].split_whitespace().nth(1), Some("-"), "{before:#?}");
        assert!(before.iter().any(|row| row.contains("no key in the cache")), "{before:#?}");
        state.rates = Some(Rates::of_counts(&[], 1.0));
        let quiet = screen(80, 24, &state, &controls());
        assert!(quiet[3].starts_with("hits                     0/s"), "{quiet:#?}");
        assert_eq!(quiet[7].split_whitespace().nth(2), Some("-"), "{quiet:#?}");
        assert!(quiet[3].ends_with("none"), "{quiet:#?}");
    }

    #[test]
    fn shows_what_is_out_of_the_ordinary() {
        let state = State { activity: Activity::Idle, loopback: false, ..state() };
        let screen = screen(80, 24, &state, &Controls { paused: true, ..controls() });
        assert!(screen[0].starts_with("bmc web: idle (bmc flush ends that)"), "{screen:#?}");
        assert!(screen[0].ends_with("  paused"), "{screen:#?}");
        assert!(screen[1].contains("lo not watched"), "{screen:#?}");
    }

    #[test]
    fn the_help_names_every_column_that_needs_it_and_fits() {
        let screen = screen(80, 24, &state(), &Controls { help: true, ..controls() });
        assert_eq!(screen[2..2 + HELP.lines().count()], HELP.lines().collect::<Vec<_>>());
        assert!(screen[0].starts_with("bmc web"), "{screen:#?}");
        for title in ["heat", "left", "used"] {
            assert!(HELP.lines().any(|line| line.starts_with(title)), "{title}");
        }
    }
}
