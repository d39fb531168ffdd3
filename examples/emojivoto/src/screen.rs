//! The terminal: a table that is redrawn in place, or plain lines when nobody would see it redrawn.

use crate::table::{self, Colour, Frame, Row};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Where the table is shown.
#[derive(Debug)]
pub enum Screen {
    /// On the terminal's second screen, which leaves no trace when it is left.
    Live {
        /// With or without colour.
        colour: Colour,
    },
    /// As lines.
    Plain,
}

impl Screen {
    /// The live table if somebody can see it redrawn, and `plain` does not forbid it.
    pub fn open(plain: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if plain || dumb || !io::stdout().is_terminal() {
            return Self::Plain;
        }
        // https://no-color.org
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::Live { colour: if no_colour { Colour::None } else { Colour::Ansi } }
    }

    /// Shows what there is before the first figures.
    pub fn greet(&self, frame: &Frame) -> io::Result<()> {
        match self {
            Self::Live { .. } => {
                write("\x1b[?1049h\x1b[?25l\x1b[2J")?;
                self.draw(frame, &[])
            }
            Self::Plain => {
                let mut text = format!("emojivoto on enmesh: open {}\n", frame.url);
                for (name, note) in &frame.notes {
                    text += &format!("{name}: {note}\n");
                }
                write(&text)
            }
        }
    }

    /// How often to draw: often enough to feel live, or seldom enough to be read as a log.
    pub fn every(&self) -> Duration {
        match self {
            Self::Live { .. } => Duration::from_millis(500),
            Self::Plain => Duration::from_secs(5),
        }
    }

    /// Shows the figures.
    pub fn draw(&self, frame: &Frame, rows: &[Row]) -> io::Result<()> {
        match self {
            Self::Live { colour } => write(&table::paint(&table::render(frame, rows, *colour))),
            Self::Plain => {
                let mut text = String::new();
                for fault in &frame.faults {
                    text += &format!("fault: {fault}\n");
                }
                for row in rows {
                    text += &row.plain();
                    text.push('\n');
                }
                write(&text)
            }
        }
    }

    /// Says something that stays after the table is gone.
    pub fn say(&self, text: &str) -> io::Result<()> {
        self.leave()?;
        write(&format!("{text}\n"))
    }

    fn leave(&self) -> io::Result<()> {
        match self {
            // What follows is written over the `^C` that the terminal may have shown.
            Self::Live { .. } => write("\x1b[?7h\x1b[?25h\x1b[?1049l\r"),
            Self::Plain => Ok(()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = self.leave();
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
