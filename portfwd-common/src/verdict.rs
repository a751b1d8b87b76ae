//! Why a packet was dropped, or left alone although its port is published.

/// A numbered reason. Numbers are metric labels and are never used again for something else: 1 to 31
/// are drops, 32 to 63 packets that went on unchanged.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A container sent from an address that is not its own.
    ForeignSource = 1,
    /// The container already talks with this client port under another host address or port, so the
    /// replies could not be told apart.
    TupleTaken = 2,
    /// The flow table took no further entry.
    FlowTableFull = 3,
    /// The kernel refused a step of the translation; what was left is not let out.
    RewriteFailed = 4,
    /// A fragment whose first was dropped.
    FragmentOfDropped = 5,
    /// From a client that may not open connections, and is not told so.
    DeniedSilently = 6,
    /// Every port that a masqueraded flow to this destination could have is taken.
    MasqueradeExhausted = 16,
    /// The device has no address of the packet's family that a container could leave under.
    MasqueradeNoAddress = 17,
    /// A fragment whose first is not known, so that its ports cannot be told.
    Fragment = 32,
    /// The packet ends before its headers do, or they contradict each other.
    Malformed = 33,
    /// Not addressed to the host: another destination, a broadcast, loopback from outside.
    NotForHost = 34,
    /// A socket of the host owns the connection.
    HostSocket = 35,
    /// A TCP segment of no known flow that opens none.
    NoFlow = 36,
    /// Its time to live ends here.
    Expired = 37,
    /// Larger than the device it would leave by.
    TooBig = 38,
    /// From an address that nobody can send from, or from the host's own.
    ImpossibleSource = 39,
    /// From an address that the routing table would not reach by the device that the packet came in by,
    /// where the host checks that (`rp_filter`).
    ReversePath = 40,
    /// From a client that may not open connections: the host says that the port is closed.
    Denied = 41,
}

/// Length of the table of reasons.
pub const MAX_REASONS: u32 = 64;

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 18] = [
        Self::ForeignSource,
        Self::TupleTaken,
        Self::FlowTableFull,
        Self::RewriteFailed,
        Self::FragmentOfDropped,
        Self::DeniedSilently,
        Self::MasqueradeExhausted,
        Self::MasqueradeNoAddress,
        Self::Fragment,
        Self::Malformed,
        Self::NotForHost,
        Self::HostSocket,
        Self::NoFlow,
        Self::Expired,
        Self::TooBig,
        Self::ImpossibleSource,
        Self::ReversePath,
        Self::Denied,
    ];

    /// The reason of that number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| *reason as u32 == number)
    }

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForeignSource => "foreign-source",
            Self::TupleTaken => "tuple-taken",
            Self::FlowTableFull => "flow-table-full",
            Self::RewriteFailed => "rewrite-failed",
            Self::FragmentOfDropped => "fragment-of-dropped",
            Self::DeniedSilently => "denied-silently",
            Self::MasqueradeExhausted => "masquerade-exhausted",
            Self::MasqueradeNoAddress => "masquerade-no-address",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::NotForHost => "not-for-host",
            Self::HostSocket => "host-socket",
            Self::NoFlow => "no-flow",
            Self::Expired => "expired",
            Self::TooBig => "too-big",
            Self::ImpossibleSource => "impossible-source",
            Self::ReversePath => "reverse-path",
            Self::Denied => "denied",
        }
    }
    /// Whether the packet was dropped; else it went on unchanged.
    pub const fn is_drop(self) -> bool {
        (self as u32) < 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_numbers_and_names_within_the_table() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert!((*a as u32) < MAX_REASONS);
            assert_eq!(Reason::from_number(*a as u32), Some(*a));
            for b in &Reason::ALL[..i] {
                assert!(*a as u32 != *b as u32 && a.name() != b.name());
            }
        }
    }
}
