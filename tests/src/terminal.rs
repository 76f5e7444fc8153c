//! A terminal for a program under test: a pseudo-terminal and what is to be seen on it.
//!
//! The screen understands what the live view writes: text, cursor moves, clearing, the alternate
//! screen, and whether the cursor is shown. All else is skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::wait::until;

/// What is on the screen.
#[derive(Debug, Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    /// Row and column of the next character, from 0.
    at: (usize, usize),
    /// What of the output is not understood yet.
    pending: Vec<u8>,
    alternate: bool,
    cursor_hidden: bool,
    /// Bytes so far.
    bytes: usize,
}

impl Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.pending.extend_from_slice(bytes);
        let text = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                String::from_utf8_lossy(&self.pending[..error.valid_up_to()]).into_owned()
            }
        };
        let mut rest = text.as_str();
        while let Some(used) = self.step(rest) {
            rest = &rest[used..];
        }
        let used = text.len() - rest.len();
        self.pending.drain(..used);
    }

    /// Takes one character or one sequence; None if it is not complete.
    fn step(&mut self, text: &str) -> Option<usize> {
        let c = text.chars().next()?;
        match c {
            '\u{1b}' => {
                let kind = *text.as_bytes().get(1)?;
                match kind {
                    b'[' => {
                        let end = 2 + text[2..].find(|c: char| ('@'..='~').contains(&c))?;
                        self.control(&text[2..end], text.as_bytes()[end]);
                        Some(end + 1)
                    }
                    b']' => text.find("\u{1b}\\").map(|end| end + 2),
                    _ => Some(2),
                }
            }
            '\r' => {
                self.at.1 = 0;
                Some(1)
            }
            '\n' => {
                self.at.0 += 1;
                Some(1)
            }
            c => {
                let (row, column) = self.at;
                if self.rows.len() <= row {
                    self.rows.resize(row + 1, Vec::new());
                }
                let line = &mut self.rows[row];
                if line.len() <= column {
                    line.resize(column + 1, ' ');
                }
                line[column] = c;
                self.at.1 += 1;
                Some(c.len_utf8())
            }
        }
    }

    fn control(&mut self, parameters: &str, kind: u8) {
        let numbers: Vec<usize> = parameters
            .split(';')
            .map(|n| n.parse().unwrap_or(1))
            .collect();
        match (kind, parameters) {
            (b'H', _) => {
                let get = |i: usize| numbers.get(i).copied().unwrap_or(1).saturating_sub(1);
                self.at = (get(0), get(1));
            }
            (b'J', "2") => self.rows.clear(),
            (b'h', "?1049") => {
                self.alternate = true;
                self.rows.clear();
            }
            (b'l', "?1049") => {
                self.alternate = false;
                self.rows.clear();
            }
            (b'h', "?25") => self.cursor_hidden = false,
            (b'l', "?25") => self.cursor_hidden = true,
            _ => {}
        }
    }
}

/// A pseudo-terminal.
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    screen: Arc<Mutex<Screen>>,
}

impl Terminal {
    /// A new one.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn new(columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a pseudo-terminal");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).expect("its other end");
        let screen = Arc::<Mutex<Screen>>::default();
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a file descriptor");
        let written = screen.clone();
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            // EIO when the last user of the other end is gone.
            while let Ok(n) = reader.read(&mut block) {
                written.lock().expect("nobody panics").write(&block[..n]);
            }
        });
        let terminal = Self {
            master,
            slave,
            screen,
        };
        terminal.resize(columns, rows);
        terminal
    }

    /// Starts `command` on it, in a session of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().expect("a file descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        let take = || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        };
        // SAFETY: two system calls, which may be made between fork and exec.
        unsafe { command.pre_exec(take) };
        command.spawn().expect("it starts")
    }

    /// Another size; who is in the foreground gets SIGWINCH.
    ///
    /// # Panics
    /// Never: it is ours.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("it is ours");
    }

    /// Types `keys`.
    ///
    /// # Panics
    /// Never: it is ours.
    pub fn keys(&self, keys: &str) {
        (&self.master)
            .write_all(keys.as_bytes())
            .expect("it is ours");
    }

    /// The modes that it is in.
    ///
    /// # Panics
    /// Never: it is ours.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.slave).expect("it is ours")
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().expect("nobody panics")
    }

    /// What is to be seen, line by line.
    pub fn text(&self) -> String {
        let rows = &self.screen().rows;
        let lines = rows.iter().map(|row| row.iter().collect::<String>());
        lines
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }

    /// Whether a program has it for itself: alternate screen, no cursor.
    pub fn is_taken(&self) -> bool {
        let screen = self.screen();
        screen.alternate || screen.cursor_hidden
    }

    /// Bytes that were written so far.
    pub fn bytes(&self) -> usize {
        self.screen().bytes
    }

    /// Waits for a screen that `good` likes.
    ///
    /// # Panics
    /// When there is none.
    pub fn wait_for(&self, what: &str, good: impl Fn(&str) -> bool) -> String {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(what, || Some(self.text()).filter(|text| good(text)))
        }));
        outcome.unwrap_or_else(|panic| {
            eprintln!("--- the screen\n{}", self.text());
            std::panic::resume_unwind(panic)
        })
    }

    /// Waits until `text` is to be seen.
    ///
    /// # Panics
    /// When it is not.
    pub fn wait(&self, text: &str) -> String {
        self.wait_for(text, |screen| screen.contains(text))
    }
}
