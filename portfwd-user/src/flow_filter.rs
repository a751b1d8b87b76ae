//! Which flows `flows` shows.

use ipnet::IpNet;
use portfwd_common::{flow::State, net::Protocol};

use crate::{label::Label, report::FlowRow};

/// What a flow has to be, to be shown; nothing for all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowFilter {
    /// Whose it is.
    pub container: Option<Label>,
    /// Its protocol.
    pub protocol: Option<Protocol>,
    /// Where its client is.
    pub client: Option<IpNet>,
    /// The host's port that its client talks to.
    pub port: Option<u16>,
    /// Its state, as it is shown.
    pub state: Option<String>,
}

impl FlowFilter {
    /// Whether a flow is to be shown.
    #[must_use]
    pub fn admits(&self, flow: &FlowRow) -> bool {
        let container = self.container.as_ref();
        container.is_none_or(|label| *label == flow.container)
            && self
                .protocol
                .is_none_or(|protocol| protocol == flow.protocol)
            && self
                .client
                .is_none_or(|net| net.contains(&flow.client.ip()))
            && self.port.is_none_or(|port| port == flow.host.port())
            && self.state.as_ref().is_none_or(|state| *state == flow.state)
    }
}

/// The names of all states, each once.
#[must_use]
pub fn states() -> Vec<&'static str> {
    let all = (1..).map_while(State::from_number);
    let mut names: Vec<_> = all.map(State::name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::Duration};

    use super::*;

    fn flow(client: &str, host: &str, protocol: Protocol, state: State) -> FlowRow {
        FlowRow {
            container: "web".parse().unwrap(),
            protocol,
            client: client.parse().unwrap(),
            host: host.parse().unwrap(),
            container_address: "10.88.0.2:80".parse().unwrap(),
            state: Cow::Borrowed(state.name()),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            rx_bytes: None,
            tx_bytes: None,
        }
    }

    #[test]
    fn a_flow_is_shown_if_it_is_all_that_is_asked_for() {
        let v4 = flow(
            "192.0.2.7:80",
            "198.51.100.1:8080",
            Protocol::Tcp,
            State::Established,
        );
        let v6 = flow(
            "[2001:db8::7]:80",
            "[::1]:53",
            Protocol::Udp,
            State::UdpAssured,
        );
        let all = FlowFilter::default();
        let by_client = |text: &str| FlowFilter {
            client: Some(text.parse().unwrap()),
            ..all.clone()
        };
        let by_state = |state: &str| FlowFilter {
            state: Some(state.to_owned()),
            ..all.clone()
        };
        for (filter, expected) in [
            (all.clone(), [true, true]),
            (
                FlowFilter {
                    container: Some("db".parse().unwrap()),
                    ..all.clone()
                },
                [false, false],
            ),
            (
                FlowFilter {
                    protocol: Some(Protocol::Udp),
                    ..all.clone()
                },
                [false, true],
            ),
            (
                FlowFilter {
                    port: Some(8080),
                    ..all.clone()
                },
                [true, false],
            ),
            (by_client("192.0.2.7/32"), [true, false]),
            (by_client("192.0.2.0/24"), [true, false]),
            (by_client("192.0.2.99/24"), [true, false]),
            (by_client("2001:db8::/32"), [false, true]),
            (by_client("0.0.0.0/0"), [true, false]),
            (by_state("assured"), [false, true]),
            (
                FlowFilter {
                    port: Some(8080),
                    ..by_state("assured")
                },
                [false, false],
            ),
        ] {
            assert_eq!(
                [&v4, &v6].map(|flow| filter.admits(flow)),
                expected,
                "{filter:?}"
            );
        }
    }

    #[test]
    fn every_state_has_its_name_among_those_that_can_be_asked_for() {
        assert_eq!(
            states(),
            [
                "answered",
                "assured",
                "client-closed",
                "client-reset",
                "closed",
                "container-closed",
                "container-reset",
                "established",
                "opening",
                "reset",
                "unanswered",
            ]
        );
    }
}
