//! Takes line information out of an object's type information.
//!
//! `.BTF.ext` says for each instruction from which file, line and column it comes, and `.BTF` carries
//! the text of those lines. Moving a function or writing a comment would change the object, although
//! the programs are the same. So the line records go, and with them every string that nothing else
//! names. Types and function records stay: maps, subprograms and callbacks need them.
//!
//! The layout is that of the kernel's Documentation/bpf/btf.rst, little-endian throughout as the
//! target is. A type keeps its place, because the relocations of `.BTF` name places.

use std::collections::HashMap;

use anyhow::{Context as _, bail, ensure};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;

/// Gives the contents of `.BTF` and `.BTF.ext` without line information.
pub(crate) fn without_lines(btf: &[u8], ext: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let body = body(btf).context(".BTF")?;
    let word = |at| word(btf, at);
    // Offsets of the header's fields: type_off 8, type_len 12, str_off 16, str_len 20.
    let mut types = part(body, word(8)?, word(12)?)
        .context("types of .BTF")?
        .to_vec();
    let strings = part(body, word(16)?, word(20)?).context("strings of .BTF")?;

    let mut strings = Strings::new(strings);
    keep_type_names(&mut types, &mut strings)?;
    let ext = keep_functions(ext, &mut strings).context(".BTF.ext")?;
    let strings = strings.kept;

    let mut btf = btf[..btf.len() - body.len()].to_vec();
    for (at, value) in [
        (8, 0),
        (12, types.len()),
        (16, types.len()),
        (20, strings.len()),
    ] {
        put(&mut btf, at, u32::try_from(value)?)?;
    }
    btf.extend_from_slice(&types);
    btf.extend_from_slice(&strings);
    Ok((btf, ext))
}

/// The string table as it is, and as it will be.
struct Strings<'a> {
    all: &'a [u8],
    kept: Vec<u8>,
    place: HashMap<&'a [u8], u32>,
}

impl<'a> Strings<'a> {
    fn new(all: &'a [u8]) -> Self {
        // Offset 0 is the empty string, the name of what has none.
        Self {
            all,
            kept: vec![0],
            place: HashMap::from([(&[][..], 0)]),
        }
    }

    /// Keeps the string whose offset stands at `at` in `record`, and writes its new offset there.
    fn keep(&mut self, record: &mut [u8], at: usize) -> anyhow::Result<()> {
        let offset = word(record, at)?;
        let rest = self
            .all
            .get(usize::try_from(offset)?..)
            .with_context(|| format!("string offset {offset} lies outside of the table"))?;
        let length = rest
            .iter()
            .position(|&byte| byte == 0)
            .with_context(|| format!("the string at {offset} has no end"))?;
        let text = &rest[..length];
        let new = match self.place.get(text) {
            Some(&new) => new,
            None => {
                let new = u32::try_from(self.kept.len())?;
                self.kept.extend_from_slice(text);
                self.kept.push(0);
                self.place.insert(text, new);
                new
            }
        };
        put(record, at, new)
    }
}

/// Keeps the names of all types and of their members.
fn keep_type_names(types: &mut [u8], strings: &mut Strings<'_>) -> anyhow::Result<()> {
    let mut at = 0;
    while at < types.len() {
        strings.keep(types, at)?;
        let info = word(types, at + 4)?;
        let members = usize::try_from(info & 0xffff)?;
        let tail = Tail::of((info >> 24) & 0x1f)?;
        at += 12;
        match tail {
            Tail::Plain(size) => at += size,
            Tail::Members { size, named } => {
                for _ in 0..members {
                    if named {
                        strings.keep(types, at)?;
                    }
                    at += size;
                }
            }
        }
    }
    ensure!(at == types.len(), "the last type is cut short");
    Ok(())
}

/// What follows the twelve bytes that all types begin with.
enum Tail {
    /// That many bytes, without a name.
    Plain(usize),
    /// A record for each member, of that size; its name, if it has one, comes first.
    Members { size: usize, named: bool },
}

impl Tail {
    /// By `BTF_KIND_*` of include/uapi/linux/btf.h.
    fn of(kind: u32) -> anyhow::Result<Self> {
        Ok(match kind {
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => Self::Plain(0),
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => Self::Plain(4),
            // ARRAY
            3 => Self::Plain(12),
            // STRUCT, UNION, ENUM64
            4 | 5 | 19 => Self::Members {
                size: 12,
                named: true,
            },
            // ENUM, FUNC_PROTO
            6 | 13 => Self::Members {
                size: 8,
                named: true,
            },
            // DATASEC
            15 => Self::Members {
                size: 12,
                named: false,
            },
            other => bail!("type of unknown kind {other}"),
        })
    }
}

/// Gives `.BTF.ext` with its function records and relocations, and without lines.
fn keep_functions(ext: &[u8], strings: &mut Strings<'_>) -> anyhow::Result<Vec<u8>> {
    let body = body(ext)?;
    let header = &ext[..ext.len() - body.len()];
    let word = |at| word(ext, at);
    // Offsets of the header's fields: func_info 8 and 12, line_info 16 and 20, core_relo 24 and 28.
    let mut functions = part(body, word(8)?, word(12)?)
        .context("func_info")?
        .to_vec();
    keep_record_names(&mut functions, &[], strings)?;
    let mut relocations = Vec::new();
    if header.len() >= 32 {
        relocations = part(body, word(24)?, word(28)?)
            .context("core_relo")?
            .to_vec();
        // struct bpf_core_relo: access_str_off at 8.
        keep_record_names(&mut relocations, &[8], strings)?;
    }

    let mut kept = header.to_vec();
    let end = u32::try_from(functions.len())?;
    for (at, value) in [(8, 0), (12, end), (16, end), (20, 0)] {
        put(&mut kept, at, value)?;
    }
    if header.len() >= 32 {
        put(&mut kept, 24, end)?;
        put(&mut kept, 28, u32::try_from(relocations.len())?)?;
    }
    kept.extend_from_slice(&functions);
    kept.extend_from_slice(&relocations);
    Ok(kept)
}

/// Keeps the section names of a part of `.BTF.ext`, and the strings at `names` in each of its records.
///
/// A part is the size of a record, and for each section the offset of its name, the count of its
/// records, and the records.
fn keep_record_names(
    part: &mut [u8],
    names: &[usize],
    strings: &mut Strings<'_>,
) -> anyhow::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    let size = usize::try_from(word(part, 0)?)?;
    let mut at = 4;
    while at < part.len() {
        strings.keep(part, at)?;
        let records = word(part, at + 4)?;
        at += 8;
        for _ in 0..records {
            for name in names {
                strings.keep(part, at + name)?;
            }
            at += size;
        }
    }
    ensure!(at == part.len(), "the last record is cut short");
    Ok(())
}

/// What follows the header, which begins with magic, version, flags and its own length.
fn body(section: &[u8]) -> anyhow::Result<&[u8]> {
    let magic = section
        .get(..2)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_le_bytes);
    ensure!(magic == Some(MAGIC), "no little-endian BTF header");
    ensure!(section.get(2) == Some(&VERSION), "unknown version of BTF");
    let length = usize::try_from(word(section, 4)?)?;
    ensure!(length >= 24, "a header of {length} bytes");
    section.get(length..).context("the header is cut short")
}

fn part(body: &[u8], offset: u32, length: u32) -> anyhow::Result<&[u8]> {
    let (offset, length) = (usize::try_from(offset)?, usize::try_from(length)?);
    body.get(offset..)
        .and_then(|rest| rest.get(..length))
        .with_context(|| format!("{length} bytes at {offset} lie outside of the section"))
}

fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    Ok(u32::from_le_bytes(
        word.with_context(|| format!("nothing at {at}"))?,
    ))
}

fn put(bytes: &mut [u8], at: usize, value: u32) -> anyhow::Result<()> {
    bytes
        .get_mut(at..at + 4)
        .with_context(|| format!("nothing at {at}"))?
        .copy_from_slice(&value.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a section: magic, version, header of these words after its length, and a body.
    fn section(header: &[u32], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = u32::try_from(8 + header.len() * 4).expect("a short header");
        bytes.extend(words(&[length]));
        bytes.extend(words(header));
        bytes.extend_from_slice(body);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn length(bytes: &[u8]) -> u32 {
        u32::try_from(bytes.len()).expect("a short section")
    }

    /// An object with one function and one structure, whose string table begins with `line`, and
    /// whose one line record names it.
    fn object(line: &str, number: u32) -> (Vec<u8>, Vec<u8>) {
        let strings = format!("\0{line}\0forward\0port\0tc\0");
        let offset = |name: &str| {
            u32::try_from(
                strings
                    .find(&format!("{name}\0"))
                    .expect("a name in the table"),
            )
            .expect("a short table")
        };
        let types = words(&[
            offset("forward"),
            12 << 24,
            2, // FUNC
            0,
            13 << 24 | 1,
            0,
            offset("port"),
            3, // FUNC_PROTO with one parameter
            offset("port"),
            1 << 24,
            4,
            32, // INT
            offset("forward"),
            4 << 24 | 1,
            4,
            offset("port"),
            3,
            0, // STRUCT with one member
            offset("tc"),
            15 << 24 | 1,
            4,
            3,
            0,
            4, // DATASEC with one variable
        ]);
        let mut body = types.clone();
        body.extend_from_slice(strings.as_bytes());
        let header = [
            0,
            length(&types),
            length(&types),
            length(strings.as_bytes()),
        ];
        let btf = section(&header, &body);

        let functions = words(&[8, offset("tc"), 1, 0, 1]);
        let lines = words(&[
            16,
            offset("tc"),
            1,
            0,
            offset(line),
            offset(line),
            number << 10,
        ]);
        let relocations = words(&[16, offset("tc"), 1, 8, 4, offset("port"), 0]);
        let (f, l, r) = (length(&functions), length(&lines), length(&relocations));
        let ext = section(
            &[0, f, f, l, f + l, r],
            &[functions, lines, relocations].concat(),
        );
        (btf, ext)
    }

    #[test]
    fn a_moved_or_changed_line_changes_nothing() {
        let (btf, ext) = object("let port = 80;", 7);
        let (moved_btf, moved_ext) = object("let port = 80; // the web", 9);
        let stripped = without_lines(&btf, &ext).expect("a sound object");
        assert_eq!(
            stripped,
            without_lines(&moved_btf, &moved_ext).expect("a sound object")
        );
        let text = String::from_utf8_lossy(&stripped.0);
        assert!(!text.contains("let port"), "the source line is gone");
    }

    #[test]
    fn names_are_the_same_at_their_new_offsets() {
        let (btf, ext) = object("let port = 80;", 7);
        let (btf, ext) = without_lines(&btf, &ext).expect("a sound object");
        let types = usize::try_from(word(&btf, 12).expect("type_len")).expect("a short section");
        let strings = &btf[24 + types..];
        assert_eq!(strings, b"\0forward\0port\0tc\0");
        let name = |at: usize| {
            let offset = word(&btf, 24 + at).expect("a name");
            let rest = &strings[usize::try_from(offset).expect("a short table")..];
            rest.split(|&byte| byte == 0).next().map(<[u8]>::to_vec)
        };
        assert_eq!(name(0), Some(b"forward".to_vec()), "function");
        assert_eq!(name(24), Some(b"port".to_vec()), "parameter");
        assert_eq!(name(60), Some(b"port".to_vec()), "member");
        assert_eq!(name(72), Some(b"tc".to_vec()), "section");
        // The records of .BTF.ext: a function in section "tc", no line, a relocation that names "port".
        assert_eq!(ext[8..32], words(&[0, 20, 20, 0, 20, 28]));
        assert_eq!(ext[32..], words(&[8, 14, 1, 0, 1, 16, 14, 1, 8, 4, 9, 0]));
    }

    #[test]
    fn stripping_twice_is_stripping_once() {
        let (btf, ext) = object("let port = 80;", 7);
        let once = without_lines(&btf, &ext).expect("a sound object");
        assert_eq!(
            once,
            without_lines(&once.0, &once.1).expect("a sound object")
        );
    }

    #[test]
    fn a_cut_section_is_an_error() {
        let (btf, ext) = object("let port = 80;", 7);
        for end in 0..btf.len() {
            assert!(
                without_lines(&btf[..end], &ext).is_err(),
                ".BTF of {end} bytes"
            );
        }
        for end in 0..ext.len() {
            assert!(
                without_lines(&btf, &ext[..end]).is_err(),
                ".BTF.ext of {end} bytes"
            );
        }
    }
}
