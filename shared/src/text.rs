//! Cleaning of text that the other side wrote, before a terminal sees it.
//!
//! A guest chooses its process names and error messages, and a terminal acts on some
//! characters: escape sequences, carriage returns, bidirectional overrides that make text read
//! backwards, characters that cannot be seen at all. Each of them becomes U+FFFD, so that a
//! reader sees that something was there. Everything printable stays, in any script.

/// Stands for a character that was taken out.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
/// Last character of a text that was cut.
const ELLIPSIS: char = '…';

/// `text` with everything replaced that a terminal could act on, at most `max` characters; the
/// last one is `…` if something was cut off. Cleaning twice changes nothing.
pub fn clean(text: &str, max: usize) -> String {
    let mut rest = text.chars();
    let mut cleaned: String = rest
        .by_ref()
        .take(max)
        .map(|c| if is_harmless(c) { c } else { REPLACEMENT })
        .collect();
    if rest.next().is_some() && cleaned.pop().is_some() {
        cleaned.push(ELLIPSIS);
    }
    cleaned
}

/// `text` as [`clean`] makes it, at its full length.
pub fn printable(text: &str) -> String {
    clean(text, usize::MAX)
}

/// Whether a terminal shows `c` and does nothing else. [`char::is_control`] is C0 (with ESC),
/// DEL and C1; the list is the rest of Unicode's category Cf that changes direction or hides,
/// the line and paragraph separators, and the blank fillers.
pub fn is_harmless(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'       // zero width, direction marks
            | '\u{2028}'..='\u{202e}'       // separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}'       // word joiner, invisible operators, isolates
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'       // interlinear annotation
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'     // tags, variation selectors
        ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_printable_stays() {
        for text in ["", "node", "é漢字👍 ", "ein Name mit Leerzeichen"] {
            assert_eq!(clean(text, 40), text);
        }
    }

    #[test]
    fn what_a_terminal_acts_on_goes() {
        assert_eq!(clean("a\u{1b}[2Jb", 40), "a\u{fffd}[2Jb");
        assert_eq!(clean("\r\n\t\0\u{7f}\u{9b}", 40), "\u{fffd}".repeat(6));
        let hidden = "\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}\u{e0041}";
        assert_eq!(clean(hidden, 40), "\u{fffd}".repeat(6));
    }

    #[test]
    fn long_text_is_cut_visibly() {
        assert_eq!(clean("postgres", 8), "postgres");
        assert_eq!(clean("postgres", 4), "pos…");
        assert_eq!(clean("postgres", 0), "");
    }

    proptest! {
        #[test]
        fn output_is_clean_bounded_and_stable(
            text in prop_oneof![any::<String>(), "[\u{0}-\u{a0}\u{2000}-\u{2070}]{0,40}"],
            max in 0usize..40,
        ) {
            let once = clean(&text, max);
            prop_assert!(once.chars().count() <= max);
            let harmful = once.chars().find(|c| !is_harmless(*c));
            prop_assert_eq!(harmful, None);
            prop_assert!(!once.contains(char::is_control));
            prop_assert_eq!(clean(&once, max), once);
        }
    }
}
