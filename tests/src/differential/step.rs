//! One packet at one hook, and the text form of a sequence of them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// A hook by the name of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// TC ingress of a device.
    Device,
    /// XDP of a device.
    EarlyDevice,
    /// TC ingress of a container's link.
    Link,
    /// TC egress of a device.
    Egress,
}

const NAMES: [(At, &str); 4] = [
    (At::Device, "device"),
    (At::EarlyDevice, "xdp"),
    (At::Link, "link"),
    (At::Egress, "egress"),
];

/// A frame at a hook of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The hook.
    pub at: At,
    /// The device's name on the host.
    pub device: &'static str,
    /// Payload of each packet that it is going to be cut into; 0 if it stays whole.
    pub segment: u32,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

impl Step {
    /// Whether the kernel makes a socket buffer of the frame, which for TC programs it does only if the
    /// IP header is whole (`bpf_prog_test_run_skb`).
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        let header = match self.frame.get(12..14) {
            Some([0x08, 0x00]) => 20,
            Some([0x86, 0xdd]) => 40,
            _ => 0,
        };
        self.frame.len() >= 14 && (self.at == At::EarlyDevice || self.frame.len() >= 14 + header)
    }

    /// A line of a fixture: hook, device, segment size, bytes.
    #[must_use]
    pub fn line(&self) -> String {
        let (_, name) = NAMES[NAMES.iter().position(|(at, _)| *at == self.at).unwrap_or(0)];
        let mut line = format!("{name} {} {} ", self.device, self.segment);
        for byte in &self.frame {
            let _ = write!(line, "{byte:02x}");
        }
        line
    }

    /// The other way.
    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let (at, _) = NAMES.into_iter().find(|(_, known)| *known == name)?;
        let device = words.next()?;
        let device = super::host::DEVICES
            .into_iter()
            .find(|known| *known == device)?;
        let segment = words.next()?.parse().ok()?;
        let digits = words.next()?.as_bytes();
        let frame = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<_>>()?;
        Some(Self {
            at,
            device,
            segment,
            frame,
        })
    }
}

/// The text of a sequence, `title` as a comment above it.
#[must_use]
pub fn text(title: &str, steps: &[Step]) -> String {
    let mut text = String::new();
    for line in title.lines() {
        let _ = writeln!(text, "# {line}");
    }
    for step in steps {
        let _ = writeln!(text, "{}", step.line());
    }
    text
}

/// Reads a sequence from a file; what follows `#` is a comment.
///
/// # Panics
/// When the file cannot be read, or a line is none of a fixture.
#[must_use]
pub fn read(path: &Path) -> Vec<Step> {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            Step::from_line(line).unwrap_or_else(|| panic!("{}: no step: {line}", path.display()))
        })
        .collect()
}
