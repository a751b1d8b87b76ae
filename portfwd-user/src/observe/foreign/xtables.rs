//! Matches and targets of xtables, in the form that they have in ip_tables and, behind `iptables-nft`, in
//! nf_tables. Their numbers are in host byte order.

use super::intervals::Intervals;
use super::region::{Condition, Field};
use super::wire::{Malformed, array, bytes, host_u16, host_u32};

/// XT_TCP_INV_DSTPT and XT_UDP_INV_DSTPT of `include/uapi/linux/netfilter/xt_tcpudp.h`.
const INVERTED_DESTINATION: u8 = 0x02;
/// XT_SCTP_DEST_PORTS of `include/uapi/linux/netfilter/xt_sctp.h`.
const SCTP_DESTINATION: u32 = 0x02;
/// XT_MULTIPORT_SOURCE of `include/uapi/linux/netfilter/xt_multiport.h`.
const MULTIPORT_SOURCE: u8 = 0;
/// XT_ADDRTYPE_LOCAL and XT_ADDRTYPE_INVERT_DEST of `include/uapi/linux/netfilter/xt_addrtype.h`.
const ADDRTYPE_LOCAL: u16 = 1 << 2;
const ADDRTYPE_INVERT_DESTINATION: u32 = 0x0002;

/// What a match asks of packets, as far as it is understood. `multiport --ports` is read as `--dports`: by their
/// source port it lets packets to every port through, but those are not what it is written for.
pub(super) fn condition(
    name: &str,
    revision: u32,
    info: &[u8],
) -> Result<Option<Condition>, Malformed> {
    match (name, revision) {
        ("tcp", 0) => tcp(info).map(Some),
        ("udp", 0) => udp(info).map(Some),
        ("sctp", 0) => sctp(info),
        ("multiport", 1) => multiport(info),
        ("addrtype", 0 | 1) => addrtype(revision, info),
        _ => Ok(None),
    }
}

/// `struct xt_tcp`: two source ports, two destination ports, option, flag_mask, flag_cmp, invflags.
fn tcp(info: &[u8]) -> Result<Condition, Malformed> {
    let [inverted] = array(info, 11, "xt_tcp")?;
    range(info, 4, inverted & INVERTED_DESTINATION != 0)
}

/// `struct xt_udp`: two source ports, two destination ports, invflags.
fn udp(info: &[u8]) -> Result<Condition, Malformed> {
    let [inverted] = array(info, 8, "xt_udp")?;
    range(info, 4, inverted & INVERTED_DESTINATION != 0)
}

/// `struct xt_sctp_info`: two destination ports, two source ports, a map of 256 bytes, its type, four times
/// three bytes, their number; then flags and invflags. The ports count only if a flag says so.
fn sctp(info: &[u8]) -> Result<Option<Condition>, Malformed> {
    let flags = host_u32(info, 284, "xt_sctp_info")?;
    let inverted = host_u32(info, 288, "xt_sctp_info")?;
    if flags & SCTP_DESTINATION == 0 {
        return Ok(None);
    }
    range(info, 0, inverted & SCTP_DESTINATION != 0).map(Some)
}

fn range(info: &[u8], at: usize, inverted: bool) -> Result<Condition, Malformed> {
    let first = host_u16(info, at, "a range of ports")?;
    let last = host_u16(info, at + 2, "a range of ports")?;
    Ok(ports(Intervals::range(first.into(), last.into()), inverted))
}

fn ports(ports: Intervals, inverted: bool) -> Condition {
    let ports = if inverted {
        ports.complement(Field::Port.max())
    } else {
        ports
    };
    (Field::Port, ports)
}

/// `struct xt_multiport_v1`: flags, count, 15 ports, 15 bytes which tell that a range starts with the port
/// and ends with the next one, invert.
fn multiport(info: &[u8]) -> Result<Option<Condition>, Malformed> {
    const MOST: usize = 15;
    let [flags, count] = array(info, 0, "xt_multiport_v1")?;
    let starts = bytes(info, 32..32 + MOST, "xt_multiport_v1")?;
    let [inverted] = array(info, 47, "xt_multiport_v1")?;
    if usize::from(count) > MOST {
        return Err(Malformed::Number("count of ports", count.into()));
    }
    if flags == MULTIPORT_SOURCE {
        return Ok(None);
    }
    let port = |place: usize| host_u16(info, 2 + 2 * place, "xt_multiport_v1");
    let mut ranges = Vec::new();
    let mut place = 0;
    while place < count.into() {
        let first = port(place)?;
        if starts[place] != 0 {
            place += 1;
        }
        ranges.push((first.into(), port(place)?.into()));
        place += 1;
    }
    Ok(Some(ports(Intervals::from_ranges(ranges), inverted != 0)))
}

/// `struct xt_addrtype_info_v1`: types of source and destination, flags. Revision 0 has two words in place
/// of the flags, of which the second inverts the destination.
fn addrtype(revision: u32, info: &[u8]) -> Result<Option<Condition>, Malformed> {
    let types = host_u16(info, 2, "xt_addrtype_info")?;
    let inverted = match revision {
        0 => host_u32(info, 8, "xt_addrtype_info")? != 0,
        _ => host_u32(info, 4, "xt_addrtype_info_v1")? & ADDRTYPE_INVERT_DESTINATION != 0,
    };
    let local = (types & ADDRTYPE_LOCAL != 0) != inverted;
    let never = types != 0 && !local;
    Ok(never.then(|| (Field::DestinationType, Intervals::none())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(bytes: &[&[u8]], length: usize) -> Vec<u8> {
        let mut all = bytes.concat();
        all.resize(length, 0);
        all
    }

    fn words(numbers: &[u16]) -> Vec<u8> {
        let bytes = numbers.iter().flat_map(|number| number.to_ne_bytes());
        bytes.collect()
    }

    fn ranges(name: &str, revision: u32, info: &[u8]) -> Vec<(u128, u128)> {
        let (field, values) = condition(name, revision, info).unwrap().unwrap();
        assert_eq!(field, Field::Port);
        values.ranges().to_vec()
    }

    #[test]
    fn every_port_of_a_list_and_every_range_counts() {
        let mut info = padded(&[&[1, 4], &words(&[49_153, 49_154, 80, 90])], 48);
        info[32 + 2] = 1;
        assert_eq!(ranges("multiport", 1, &info), [(80, 90), (49_153, 49_154)]);
        info[0] = 2;
        assert_eq!(ranges("multiport", 1, &info)[0], (80, 90));
        info[47] = 1;
        assert_eq!(ranges("multiport", 1, &info)[0], (0, 79));
        info[0] = MULTIPORT_SOURCE;
        assert_eq!(condition("multiport", 1, &info), Ok(None));
    }

    #[test]
    fn a_list_longer_than_there_is_room_is_refused() {
        let info = padded(&[&[1, 16]], 48);
        assert_eq!(
            condition("multiport", 1, &info),
            Err(Malformed::Number("count of ports", 16))
        );
        let mut open = padded(&[&[1, 15]], 48);
        open[32 + 14] = 1;
        assert!(condition("multiport", 1, &open).is_ok());
    }

    #[test]
    fn protocol_matches_have_a_range_that_may_be_inverted() {
        let tcp = padded(&[&words(&[0, 65_535, 80, 90])], 12);
        assert_eq!(ranges("tcp", 0, &tcp), [(80, 90)]);
        let udp = padded(&[&words(&[0, 65_535, 53, 53]), &[2]], 10);
        assert_eq!(ranges("udp", 0, &udp), [(0, 52), (54, 65_535)]);
        let mut sctp = padded(&[&words(&[5060, 5061, 0, 65_535])], 296);
        assert_eq!(condition("sctp", 0, &sctp), Ok(None));
        sctp[284..288].copy_from_slice(&SCTP_DESTINATION.to_ne_bytes());
        assert_eq!(ranges("sctp", 0, &sctp), [(5060, 5061)]);
    }

    #[test]
    fn only_a_type_without_the_hosts_own_addresses_excludes_them() {
        let info = |types: u16, flags: u32| padded(&[&words(&[0, types]), &flags.to_ne_bytes()], 8);
        let never = Ok(Some((Field::DestinationType, Intervals::none())));
        assert_eq!(condition("addrtype", 1, &info(ADDRTYPE_LOCAL, 0)), Ok(None));
        assert_eq!(condition("addrtype", 1, &info(ADDRTYPE_LOCAL, 2)), never);
        assert_eq!(condition("addrtype", 1, &info(0, 0)), Ok(None));
        assert_eq!(condition("addrtype", 1, &info(1 << 1, 0)), never);
    }

    #[test]
    fn what_is_cut_short_is_refused_and_what_is_unknown_passed_over() {
        for name in ["tcp", "udp", "sctp", "addrtype"] {
            assert!(condition(name, 0, &[0; 5]).is_err(), "{name}");
        }
        assert!(condition("multiport", 1, &[0; 47]).is_err());
        assert_eq!(condition("comment", 0, &[]), Ok(None));
        assert_eq!(condition("multiport", 9, &[]), Ok(None));
    }
}
