// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! `bmc top`: a live view of an instance. On a terminal it is a screen, else a line per interval.

pub mod sample;
pub mod view;

use std::io::{self, IsTerminal as _, Write};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;

use crate::command::stats::print_line;
use crate::instance::NotAttached;
use sample::{Snapshot, Watch};
use view::Controls;

/// The options of `bmc top`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The time from one refresh to the next.
    pub interval: Duration,
    /// Stop after this many intervals.
    pub count: Option<u64>,
    /// Print a JSON object after each interval, even on a terminal.
    pub json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), count: None, json: false }
    }
}

/// Shows an instance until a key, a signal or `--count` ends it.
pub fn run(options: &Options, name: &str, out: &mut impl Write) -> Result<()> {
    let mut watch = Watch::open(name)?;
    // Rates need an earlier reading.
    let first = watch.refresh()?;
    let done = if options.json || !io::stdout().is_terminal() {
        lines(options, &mut watch, out)
    } else {
        screen(options, &mut watch, first)
    };
    match done {
        Err(err) if err.is::<NotAttached>() => Err(err.context("it was detached meanwhile")),
        done => done,
    }
}

fn lines(options: &Options, watch: &mut Watch, out: &mut impl Write) -> Result<()> {
    // Nothing is sent here: signals end the process.
    let (_input, inputs) = mpsc::channel();
    for line in 0..options.count.unwrap_or(u64::MAX) {
        wait(watch, &inputs, Instant::now() + options.interval)?;
        let state = watch.refresh()?;
        if options.json {
            writeln!(out, "{}", state.to_json())?;
            out.flush()?;
        } else {
            print_line(line, &Snapshot::title(), &state.line(), out)?;
        }
    }
    Ok(())
}

/// What the screen reacts to.
enum Input {
    Event(Event),
    End,
}

/// Restores the terminal on drop. Errors are ignored: if the terminal is gone, there is nothing
/// to restore and nobody to tell.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), Show);
        // In a panic, ratatui's hook has done the rest before the message was printed; doing it
        // again would let the shell overwrite the message.
        if !thread::panicking() {
            let _ = ratatui::try_restore();
        }
    }
}

/// Runs `work` with the whole terminal, and restores the terminal however that ends.
pub fn on_terminal<T>(work: impl FnOnce(&mut DefaultTerminal) -> Result<T>) -> Result<T> {
    let _restore = Restore;
    // The terminal's own drop panics if the terminal is gone.
    work(&mut ManuallyDrop::new(ratatui::try_init().context("cannot use the terminal")?))
}

fn screen(options: &Options, watch: &mut Watch, first: Snapshot) -> Result<()> {
    let (input, inputs) = mpsc::channel();
    let end = input.clone();
    ctrlc::set_handler(move || _ = end.send(Input::End)).context("cannot wait for signals")?;
    on_terminal(|terminal| {
        // Both threads end with the process.
        let end = input.clone();
        thread::spawn(move || {
            wait_for_hangup();
            end.send(Input::End)
        });
        thread::spawn(move || {
            while let Ok(event) = event::read() {
                if input.send(Input::Event(event)).is_err() {
                    return;
                }
            }
            let _ = input.send(Input::End);
        });
        follow(options, watch, first, terminal, &inputs)
    })
}

/// Returns when the terminal is gone. crossterm does not notice that, and would read in vain for
/// ever; and not every process gets a signal.
fn wait_for_hangup() {
    let stdout = io::stdout();
    // Hangups and errors are always reported, so no event has to be requested.
    let mut terminal = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    while poll(&mut terminal, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

/// Shows one snapshot after another until a key, a signal or `--count` ends it.
fn follow(
    options: &Options,
    watch: &mut Watch,
    first: Snapshot,
    terminal: &mut DefaultTerminal,
    inputs: &Receiver<Input>,
) -> Result<()> {
    let mut controls = Controls::new(options.interval);
    let mut state = first;
    let mut held = None;
    let mut left = options.count;
    let mut since = Instant::now();
    loop {
        let shown = held.as_ref().unwrap_or(&state);
        terminal.draw(|frame| view::draw(frame, shown, &controls)).context("cannot draw")?;
        match wait(watch, inputs, since + controls.interval)? {
            None => {
                since = Instant::now();
                if left == Some(0) {
                    return Ok(());
                }
                state = watch.refresh()?;
                left = left.map(|left| left - 1);
            }
            Some(Input::End) => return Ok(()),
            Some(Input::Event(Event::Key(key))) if key.kind == KeyEventKind::Press => {
                if !press(&mut controls, key) {
                    return Ok(());
                }
                if controls.paused {
                    held.get_or_insert_with(|| state.clone());
                } else {
                    held = None;
                }
            }
            Some(Input::Event(_)) => {}
        }
    }
}

/// Takes samples until there is input, or until `end`: then `None`.
fn wait(watch: &mut Watch, inputs: &Receiver<Input>, end: Instant) -> Result<Option<Input>> {
    loop {
        let next = watch.next_sample().min(end);
        match inputs.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(input) => return Ok(Some(input)),
            Err(RecvTimeoutError::Disconnected) => return Ok(Some(Input::End)),
            Err(RecvTimeoutError::Timeout) => watch.sample()?,
        }
        if next == end {
            return Ok(None);
        }
    }
}

/// Handles a key. Returns false if it is to leave.
fn press(controls: &mut Controls, key: KeyEvent) -> bool {
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        return false;
    }
    if controls.help {
        controls.help = false;
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('p' | ' ') => controls.paused = !controls.paused,
        KeyCode::Char('s') | KeyCode::Right => controls.sort = controls.sort.next(),
        KeyCode::Left => controls.sort = controls.sort.previous(),
        KeyCode::Char('+' | '=') => controls.interval = longer(controls.interval),
        KeyCode::Char('-') => controls.interval = shorter(controls.interval),
        KeyCode::Char('?' | 'h') => controls.help = true,
        _ => {}
    }
    true
}

/// The intervals that `+` and `-` step through, in milliseconds.
const INTERVALS: [u64; 9] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

fn longer(than: Duration) -> Duration {
    let mut steps = INTERVALS.into_iter().map(Duration::from_millis);
    steps.find(|step| *step > than).unwrap_or(than)
}

fn shorter(than: Duration) -> Duration {
    let mut steps = INTERVALS.into_iter().rev().map(Duration::from_millis);
    steps.find(|step| *step < than).unwrap_or(than)
}

#[cfg(test)]
mod tests {
    use super::*;
    use view::Sort;

    fn controls() -> Controls {
        Controls::new(Duration::from_secs(1))
    }

    fn pressed(controls: &mut Controls, code: KeyCode) -> bool {
        press(controls, KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn three_keys_leave() {
        let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(!press(&mut controls(), end));
        assert!(!pressed(&mut controls(), KeyCode::Char('q')));
        assert!(!pressed(&mut controls(), KeyCode::Esc));
        assert!(pressed(&mut controls(), KeyCode::Char('c')));
        assert!(pressed(&mut controls(), KeyCode::Enter));
    }

    #[test]
    fn any_key_leaves_the_help_and_does_nothing_else() {
        for code in [KeyCode::Char('q'), KeyCode::Esc, KeyCode::Char('?'), KeyCode::Char('s')] {
            let mut controls = controls();
            assert!(pressed(&mut controls, KeyCode::Char('?')));
            assert!(controls.help);
            assert!(pressed(&mut controls, code));
            assert!(!controls.help);
            assert_eq!(controls.sort, Sort::Rate);
        }
        let mut controls = Controls { help: true, ..controls() };
        let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(!press(&mut controls, end));
    }

    #[test]
    fn intervals_go_up_and_down_in_steps_from_any_that_was_given() {
        let ms = Duration::from_millis;
        for (interval, plus, minus) in [
            (1000, 2000, 500),
            (1500, 2000, 1000),
            (10, 100, 10),
            (100, 200, 100),
            (60_000, 60_000, 30_000),
            (86_400_000, 86_400_000, 60_000),
        ] {
            let mut controls = Controls::new(ms(interval));
            pressed(&mut controls, KeyCode::Char('+'));
            assert_eq!(controls.interval, ms(plus));
            controls.interval = ms(interval);
            pressed(&mut controls, KeyCode::Char('-'));
            assert_eq!(controls.interval, ms(minus));
        }
    }
}
