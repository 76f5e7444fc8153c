//! The selected row, and the visible rows.
//!
//! The selection is a port, not a row: it follows its port when rows come and go, and keeps its
//! line on the screen if possible, so that nothing moves while the user reads. When the port goes
//! away, its neighbour is selected in its place; when the port comes back, as after a restart of a
//! server, it is selected again.
//!
//! Invariant: with any row at all, `row < rows` and `offset <= row < offset + height`.

/// The selection. Rows are identified by their ids.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The id that the user chose, or the first one there was.
    wanted: Option<String>,
    /// The neighbour, while the wanted row is missing.
    stand_in: Option<String>,
    row: usize,
    offset: usize,
    height: usize,
}

/// A movement of the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Up by this many rows.
    Up(usize),
    /// Down by this many rows.
    Down(usize),
    /// To the first row.
    First,
    /// To the last row.
    Last,
}

impl Selection {
    /// The selected row.
    pub fn row(&self) -> usize {
        self.row
    }

    /// The first row in view.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The number of rows on a page.
    pub fn page(&self) -> usize {
        self.height.max(1)
    }

    /// Adjusts the selection to the rows `ids`, of which `height` are visible.
    pub fn settle(&mut self, ids: &[&str], height: usize) {
        let line = self.row - self.offset;
        let find = |id: &Option<String>| ids.iter().position(|i| Some(*i) == id.as_deref());
        if let Some(row) = find(&self.wanted) {
            self.row = row;
            self.stand_in = None;
        } else if let Some(row) = find(&self.stand_in) {
            self.row = row;
        } else {
            self.row = self.row.min(ids.len().saturating_sub(1));
            self.stand_in = ids.get(self.row).map(|id| (*id).to_owned());
            if self.wanted.is_none() {
                self.wanted = self.stand_in.take();
            }
        }
        self.height = height;
        self.offset = self.row.saturating_sub(line);
        self.scroll(ids.len());
    }

    /// Moves the selection among the rows `ids`.
    pub fn go(&mut self, ids: &[&str], to: Move) {
        let last = ids.len().saturating_sub(1);
        self.row = match to {
            Move::Up(n) => self.row.saturating_sub(n),
            Move::Down(n) => self.row.saturating_add(n).min(last),
            Move::First => 0,
            Move::Last => last,
        };
        self.wanted = ids.get(self.row).map(|id| (*id).to_owned());
        self.stand_in = None;
        self.scroll(ids.len());
    }

    fn scroll(&mut self, rows: usize) {
        let height = self.page();
        let lowest = (self.row + 1).saturating_sub(height);
        self.offset = self
            .offset
            .min(rows.saturating_sub(height))
            .clamp(lowest, self.row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(s: &Selection) -> (usize, usize) {
        (s.row(), s.offset())
    }

    #[test]
    fn it_follows_its_port_and_keeps_its_line() {
        let mut s = Selection::default();
        s.settle(&[], 3);
        assert_eq!(state(&s), (0, 0));
        s.settle(&["c", "e"], 3);
        s.go(&["c", "e"], Move::Down(1));
        s.settle(&["a", "c", "d", "e"], 3);
        assert_eq!(state(&s), (3, 1), "e is in view");
        s.settle(&["0", "1", "a", "c", "d", "e", "f", "g"], 3);
        assert_eq!(state(&s), (5, 3), "e stays on the third line");
        s.settle(&["e"], 3);
        assert_eq!(state(&s), (0, 0));
    }

    #[test]
    fn a_neighbour_stands_in_until_the_port_is_back() {
        let mut s = Selection::default();
        s.settle(&["a", "b", "c"], 9);
        s.go(&["a", "b", "c"], Move::Down(1));
        s.settle(&["a", "c"], 9);
        assert_eq!(s.row(), 1, "c stands in");
        s.settle(&["0", "a", "c"], 9);
        assert_eq!(s.row(), 2, "and is followed");
        s.settle(&["0", "a", "b", "c"], 9);
        assert_eq!(s.row(), 2, "b is back");
        s.settle(&[], 9);
        s.settle(&["b"], 9);
        assert_eq!(s.row(), 0);
    }

    #[test]
    fn a_smaller_window_keeps_the_row_in_view() {
        let ids: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut s = Selection::default();
        s.settle(&ids, 10);
        s.go(&ids, Move::Last);
        assert_eq!(state(&s), (49, 40));
        s.settle(&ids, 3);
        assert_eq!(state(&s), (49, 47));
        s.settle(&ids, 20);
        assert_eq!(state(&s), (49, 30), "no empty lines below the last row");
        s.go(&ids, Move::Up(s.page()));
        assert_eq!(state(&s), (29, 29));
        s.go(&ids, Move::First);
        s.settle(&ids, 0);
        assert_eq!(state(&s), (0, 0));
    }
}
