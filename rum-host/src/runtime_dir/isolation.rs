//! What of a namespace guest a user can choose, and how the helpers tell each other.

/// How far a guest is kept apart from its caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Isolation {
    /// It has an empty /tmp and /var/tmp of its own.
    pub private_tmp: bool,
    /// It has terminals of its own: a /dev/pts that begins empty.
    pub private_pts: bool,
    /// An ordinary user is root in it.
    pub root: bool,
    /// Programs of root have all of root's capabilities, not only those of a container's root.
    pub privileged: bool,
}

/// Their words on the hidden command lines.
const PRIVATE_TMP: &str = "private-tmp";
const PRIVATE_PTS: &str = "private-pts";
const ROOT: &str = "root";
const PRIVILEGED: &str = "privileged";
/// The word for none of them.
const PLAIN: &str = "plain";

impl Isolation {
    /// As one word of a hidden command line, which [`Isolation::parse`] reads.
    pub fn word(self) -> String {
        let words = [
            (self.private_tmp, PRIVATE_TMP),
            (self.private_pts, PRIVATE_PTS),
            (self.root, ROOT),
            (self.privileged, PRIVILEGED),
        ];
        let chosen: Vec<_> = words
            .into_iter()
            .filter_map(|(chosen, word)| chosen.then_some(word))
            .collect();
        match chosen.as_slice() {
            [] => PLAIN.to_owned(),
            words => words.join(","),
        }
    }

    /// None: it is no such word.
    pub fn parse(word: &str) -> Option<Self> {
        let mut this = Self::default();
        for word in word.split(',') {
            match word {
                PRIVATE_TMP => this.private_tmp = true,
                PRIVATE_PTS => this.private_pts = true,
                ROOT => this.root = true,
                PRIVILEGED => this.privileged = true,
                PLAIN => {}
                _ => return None,
            }
        }
        Some(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for chosen in 0..16 {
            let this = Isolation {
                private_tmp: chosen & 1 != 0,
                private_pts: chosen & 2 != 0,
                root: chosen & 4 != 0,
                privileged: chosen & 8 != 0,
            };
            assert_eq!(Isolation::parse(&this.word()), Some(this));
        }
        for word in ["", "all", "private-tmp,", "Root", "--rpc"] {
            assert_eq!(Isolation::parse(word), None, "{word:?}");
        }
    }
}
