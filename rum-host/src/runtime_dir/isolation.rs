//! User-configurable isolation of a namespace guest, and its encoding for the helpers' command
//! lines.

/// How far a guest is isolated from its caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Isolation {
    /// The guest has its own empty /tmp and /var/tmp.
    pub private_tmp: bool,
    /// The guest has its own terminals: a /dev/pts that starts empty.
    pub private_pts: bool,
    /// An ordinary user is root in the guest.
    pub root: bool,
    /// Root's programs have all of root's capabilities, not only those of a container's root.
    pub privileged: bool,
}

/// The words on the hidden command lines.
const PRIVATE_TMP: &str = "private-tmp";
const PRIVATE_PTS: &str = "private-pts";
const ROOT: &str = "root";
const PRIVILEGED: &str = "privileged";
/// The word for no option.
const PLAIN: &str = "plain";

impl Isolation {
    /// Encodes the options as one word of a hidden command line; [`Isolation::parse`] decodes it.
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

    /// Decodes [`Isolation::word`]. `None`: not a valid word.
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
