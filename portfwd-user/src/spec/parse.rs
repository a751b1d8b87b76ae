//! From text to a SPEC, and to a port query.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use portfwd_common::net::Protocol;

use super::{HostPorts, Meant, Port, PortQuery, PortRange, Spec, SpecError, SpecErrorKind as Kind};

/// More than the longest SPEC needs: a bracketed IPv6 address, two ranges and a protocol.
const LONGEST: usize = 96;

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse_spec(text).map_err(|kind| SpecError::new(Meant::Spec, text, kind))
    }
}

impl FromStr for PortQuery {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let parse = || {
            check_characters(text)?;
            let (port, protocol) = split_protocol(text)?;
            Ok(Self {
                port: port_number(port, Port::Container)?,
                protocol,
            })
        };
        parse().map_err(|kind| SpecError::new(Meant::Query, text, kind))
    }
}

/// A host address that stands alone, as in the environment variable `PORTFWD_HOST_IP`. Brackets around
/// an IPv6 address may be left out.
///
/// # Errors
/// As for the host address of a SPEC.
pub fn host_address(text: &str) -> Result<IpAddr, SpecError> {
    let parse = || {
        check_characters(text)?;
        if text.starts_with('[') {
            let (address, rest) = bracketed(text)?;
            return match rest {
                "" => Ok(address),
                _ => Err(Kind::BracketNoColon(rest.to_owned())),
            };
        }
        match text.parse::<Ipv6Addr>() {
            Ok(v6) => fit(IpAddr::V6(v6)),
            Err(_) => plain_address(text),
        }
    };
    parse().map_err(|kind| SpecError::new(Meant::HostIp, text, kind))
}

fn parse_spec(text: &str) -> Result<Spec, Kind> {
    check_characters(text)?;
    let (ports, protocol) = split_protocol(text)?;
    let (host, ports) = split_host(ports)?;
    let (ports, container) = match (ports.split_once(':'), host) {
        (None, None) => (HostPorts::Chosen, port_range(ports, Port::Container)?),
        // The address is followed by one port only, and it cannot be told which.
        (None, Some(_)) if ports.is_empty() => return Err(Kind::PortMissing(Port::Container)),
        (None, Some(_)) => return Err(Kind::PortMissing(Port::Host)),
        (Some((host_ports, container)), _) => {
            if container.is_empty() {
                return Err(Kind::PortMissing(Port::Container));
            }
            pair(host_ports, container)?
        }
    };
    Ok(Spec {
        host,
        ports,
        container,
        protocol,
    })
}

fn check_characters(text: &str) -> Result<(), Kind> {
    if text.is_empty() {
        return Err(Kind::Empty);
    }
    if text.len() > LONGEST {
        return Err(Kind::TooLong(text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        Some(character) => Err(Kind::Character(character)),
        None => Ok(()),
    }
}

fn split_protocol(text: &str) -> Result<(&str, Protocol), Kind> {
    let Some((ports, name)) = text.split_once('/') else {
        return Ok((text, Protocol::Tcp));
    };
    if name.is_empty() {
        return Err(Kind::ProtocolMissing);
    }
    if name.contains('/') {
        return Err(Kind::ProtocolTwice);
    }
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    known
        .into_iter()
        .find(|protocol| protocol.name().eq_ignore_ascii_case(name))
        .map(|protocol| (ports, protocol))
        .ok_or_else(|| Kind::ProtocolUnknown(name.to_owned()))
}

/// The host address, if there is one, and what follows its colon.
fn split_host(text: &str) -> Result<(Option<IpAddr>, &str), Kind> {
    if text.starts_with('[') {
        let (address, rest) = bracketed(text)?;
        return match (rest.strip_prefix(':'), rest) {
            (Some(ports), _) if ports.matches(':').count() <= 1 => Ok((Some(address), ports)),
            (Some(ports), _) => Err(Kind::TooManyParts(ports.matches(':').count() + 2)),
            (None, "") => Err(Kind::PortMissing(Port::Container)),
            (None, _) => Err(Kind::BracketNoColon(rest.to_owned())),
        };
    }
    match text.matches(':').count() {
        0 => Ok((None, text)),
        1 => {
            let first = text.split(':').next().unwrap_or_default();
            if first.parse::<Ipv4Addr>().is_ok() {
                return Err(Kind::AddressForPort(first.to_owned()));
            }
            Ok((None, text))
        }
        2 => {
            let (address, ports) = text.split_once(':').unwrap_or((text, ""));
            if address.is_empty() {
                return Err(Kind::HostMissing);
            }
            Ok((Some(plain_address(address)?), ports))
        }
        _ if looks_like_v6(text) => Err(Kind::BracketMissing),
        colons => Err(Kind::TooManyParts(colons + 1)),
    }
}

/// Whether some part of `text` up to a colon, or all of it, is an IPv6 address.
fn looks_like_v6(text: &str) -> bool {
    text.match_indices(':')
        .map(|(colon, _)| &text[..colon])
        .chain([text])
        .any(|head| head.parse::<Ipv6Addr>().is_ok())
}

fn bracketed(text: &str) -> Result<(IpAddr, &str), Kind> {
    let inner = text.strip_prefix('[').unwrap_or(text);
    let (address, rest) = inner.split_once(']').ok_or(Kind::BracketOpen)?;
    if address.is_empty() {
        return Err(Kind::HostMissing);
    }
    if address.contains('%') {
        return Err(Kind::HostScope(address.to_owned()));
    }
    let v6: Ipv6Addr = address
        .parse()
        .map_err(|_| Kind::BracketNotV6(address.to_owned()))?;
    Ok((fit(IpAddr::V6(v6))?, rest))
}

fn plain_address(text: &str) -> Result<IpAddr, Kind> {
    match text.parse::<Ipv4Addr>() {
        Ok(v4) => fit(IpAddr::V4(v4)),
        Err(_) if text.contains('%') => Err(Kind::HostScope(text.to_owned())),
        Err(_) if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            Err(Kind::HostNotV4(text.to_owned()))
        }
        Err(_) => Err(Kind::HostName(text.to_owned())),
    }
}

/// Refuses addresses that the datapath never translates (`Address::is_never_forwarded`), but for the
/// wildcards and loopback: host processes reach those through the socket hooks.
fn fit(address: IpAddr) -> Result<IpAddr, Kind> {
    let address = address.to_canonical();
    let unfit = match address {
        IpAddr::V4(v4) if v4.is_unspecified() => None,
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.is_multicast() => Some("multicast"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => Some("reserved"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("multicast"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        _ => None,
    };
    match unfit {
        Some(what) => Err(Kind::HostUnfit(address, what)),
        None => Ok(address),
    }
}

/// Both sides of the last colon.
fn pair(host_ports: &str, container: &str) -> Result<(HostPorts, PortRange), Kind> {
    if host_ports.is_empty() {
        return Ok((HostPorts::Chosen, port_range(container, Port::Container)?));
    }
    let host_ports = port_range(host_ports, Port::Host)?;
    let container = port_range(container, Port::Container)?;
    let ports = if host_ports.count() == container.count() {
        HostPorts::Fixed(host_ports)
    } else if container.count() == 1 {
        HostPorts::Pool(host_ports)
    } else {
        return Err(Kind::RangesUnequal(host_ports.count(), container.count()));
    };
    Ok((ports, container))
}

fn port_range(text: &str, which: Port) -> Result<PortRange, Kind> {
    // A leading dash is a sign, not a range without a start.
    let signs = text.len() - text.trim_start_matches('-').len();
    let Some(dash) = text[signs..].find('-').map(|position| signs + position) else {
        let port = port_number(text, which)?;
        return PortRange::single(port).ok_or(Kind::PortZero(which));
    };
    let (first, last) = (&text[..dash], &text[dash + 1..]);
    if last.is_empty() {
        return Err(Kind::RangeOpen(which, text.to_owned()));
    }
    if last.contains('-') {
        return Err(Kind::RangeEnds(which, text.to_owned()));
    }
    let (first, last) = (port_number(first, which)?, port_number(last, which)?);
    PortRange::new(first, last).ok_or(Kind::RangeReversed(which, first, last))
}

fn port_number(text: &str, which: Port) -> Result<u16, Kind> {
    let own = || text.to_owned();
    let digits = text.trim_start_matches(['-', '+']);
    if text.is_empty() {
        return Err(Kind::PortMissing(which));
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Kind::PortNotNumber(which, own()));
    }
    if text.starts_with('-') {
        return Err(Kind::PortNegative(which, own()));
    }
    if text.starts_with('+') {
        return Err(Kind::PortSigned(which, own()));
    }
    if digits.bytes().all(|b| b == b'0') {
        return Err(Kind::PortZero(which));
    }
    if digits.starts_with('0') {
        return Err(Kind::PortLeadingZero(which, own()));
    }
    // Digits alone fail to parse only when they are too many.
    digits.parse().map_err(|_| Kind::PortTooLarge(which, own()))
}
