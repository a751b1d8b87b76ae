//! A message's text with holes, and where it is found in what a command said.

/// The fixed parts of a format string, in their order; anything may stand between two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    parts: Vec<String>,
}

impl Pattern {
    /// Of a format string of `std::fmt`.
    pub(crate) fn of(format: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut rest = format.chars().peekable();
        while let Some(character) = rest.next() {
            let last = parts.last_mut().expect("there is always one");
            match character {
                '{' | '}' if rest.next_if_eq(&character).is_some() => last.push(character),
                '{' => {
                    rest.by_ref().find(|&end| end == '}');
                    parts.push(String::new());
                }
                _ => last.push(character),
            }
        }
        Self { parts }
    }

    /// Whether it says anything of its own, as `{file}: {cause}` does not.
    pub(crate) fn has_words(&self) -> bool {
        self.parts
            .iter()
            .any(|part| part.contains(char::is_alphanumeric))
    }

    /// Which bytes of `text` are its fixed parts; `None` if it is not there. A message may stand in another
    /// one, but no word is taken for a part of another word.
    pub(crate) fn find(&self, text: &str) -> Option<Vec<bool>> {
        let starts = text.char_indices().map(|(start, _)| start);
        starts
            .filter(|&start| is_word_boundary(text, start) || self.parts[0].is_empty())
            .find_map(|start| self.find_at(text, start))
    }

    fn find_at(&self, text: &str, start: usize) -> Option<Vec<bool>> {
        let mut fixed = vec![false; text.len()];
        let mut at = start;
        for (number, part) in self.parts.iter().enumerate() {
            let is_last = number + 1 == self.parts.len();
            let from = match number {
                0 => text[at..].starts_with(part).then_some(at)?,
                _ => text[at..]
                    .match_indices(part.as_str())
                    .map(|(offset, _)| at + offset)
                    .find(|from| !is_last || is_word_boundary(text, from + part.len()))?,
            };
            at = from + part.len();
            fixed[from..at].fill(true);
        }
        let ends = self.parts.len() > 1 || is_word_boundary(text, at);
        ends.then_some(fixed)
    }
}

/// Whether no word goes on here.
fn is_word_boundary(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back();
    let after = text[at..].chars().next();
    let is_word = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
    !(is_word(before) && is_word(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_may_stand_in_a_hole() {
        for (format, text, found) in [
            ("no such device: {}", "no such device: \"eth9\"", true),
            ("no such device: {}", "no such process: 7", false),
            (
                "{0} 0 cannot be published",
                "SPEC \"0:1\": host port 0 cannot be published",
                true,
            ),
            (
                "{0} 0 cannot be published",
                "host port 1 cannot be published",
                false,
            ),
            ("{{{0:?}}} is odd", "{7} is odd", true),
            ("a {} b {} c", "a 1 c 2 b", false),
        ] {
            assert_eq!(
                Pattern::of(format).find(text).is_some(),
                found,
                "{format}: {text}"
            );
        }
    }

    #[test]
    fn no_word_is_taken_for_a_part_of_another() {
        for (format, text, found) in [
            ("host", "the host has it", true),
            ("host", "two hosts have it", false),
            ("up {}", "setup x", false),
            ("{} is up", "it is upper case", false),
        ] {
            assert_eq!(
                Pattern::of(format).find(text).is_some(),
                found,
                "{format}: {text}"
            );
        }
    }

    #[test]
    fn the_fixed_parts_are_where_they_were_found() {
        let fixed = Pattern::of("map {name}: {source}")
            .find("map x: y")
            .expect("it is there");
        let shown: String = fixed
            .iter()
            .map(|fixed| if *fixed { '#' } else { '.' })
            .collect();
        assert_eq!(shown, "####.##.");
    }

    #[test]
    fn holes_alone_say_nothing() {
        for (format, says) in [
            ("{message}", false),
            ("{0}: {1}", false),
            ("line {line}", true),
        ] {
            assert_eq!(Pattern::of(format).has_words(), says, "{format}");
        }
    }
}
