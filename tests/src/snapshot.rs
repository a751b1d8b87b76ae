//! What a namespace looks like from outside portfwd: compared before and after, it proves that
//! nothing was left behind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::kernel;
use crate::namespace::Namespace;

/// Sysctls that change by themselves.
const RESTLESS: &[&str] = &["nf_conntrack_count", "stable_secret", "route/gc_elasticity"];

/// Named facts about a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// Looks at devices, addresses, routes, rules, queueing disciplines, filters, programs on
    /// devices, firewall rules and every readable sysctl under `net`.
    ///
    /// # Panics
    /// When one of the tools fails.
    #[must_use]
    pub fn of(namespace: &Namespace) -> Self {
        let mut facts = BTreeMap::new();
        let devices = devices(namespace);
        for (name, index, description) in &devices {
            facts.insert(format!("device {name}"), description.clone());
            let filters: String = ["ingress", "egress"]
                .iter()
                .map(|hook| namespace.output("tc", &["filter", "show", "dev", name, hook]))
                .collect();
            facts.insert(format!("filters of {name}"), filters);
            let programs = namespace.run(|| kernel::device_programs(*index));
            let programs = programs.unwrap_or_else(|error| panic!("programs of {name}: {error}"));
            facts.insert(format!("programs on {name}"), format!("{programs:?}"));
        }
        for (what, program, arguments) in [
            ("addresses", "ip", "-o addr show"),
            ("IPv4 routes", "ip", "-4 route show table all"),
            ("IPv6 routes", "ip", "-6 route show table all"),
            ("IPv4 rules", "ip", "-4 rule show"),
            ("IPv6 rules", "ip", "-6 rule show"),
            ("queueing disciplines", "tc", "qdisc show"),
            ("firewall", "nft", "list ruleset"),
        ] {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            facts.insert(what.to_owned(), namespace.output(program, &arguments));
        }
        namespace.run(|| sysctls(Path::new("/proc/sys/net"), &mut facts));
        Self(facts)
    }

    /// What differs, one line a fact; empty if nothing does.
    #[must_use]
    pub fn difference(&self, later: &Self) -> String {
        let mut lines = String::new();
        let keys = self.0.keys().chain(later.0.keys());
        let mut last = None;
        let mut keys: Vec<&String> = keys.collect();
        keys.sort();
        for key in keys {
            if last == Some(key) {
                continue;
            }
            last = Some(key);
            let (before, after) = (self.0.get(key), later.0.get(key));
            if before != after {
                let _ = writeln!(lines, "{key}:\n  before {before:?}\n  after  {after:?}");
            }
        }
        lines
    }
}

/// Name, index and a description without counters of every device.
fn devices(namespace: &Namespace) -> Vec<(String, u32, String)> {
    let text = namespace.output("ip", &["-j", "-d", "link", "show"]);
    let Ok(Value::Array(links)) = serde_json::from_str::<Value>(&text) else {
        panic!("ip -j link show printed no array: {text}");
    };
    links
        .iter()
        .map(|link| {
            let name = link["ifname"].as_str().expect("a device has a name");
            let index = link["ifindex"].as_u64().expect("a device has an index");
            let description = format!(
                "mtu {} flags {} promiscuity {} xdp {}",
                link["mtu"], link["flags"], link["promiscuity"], link["xdp"]
            );
            let index = u32::try_from(index).expect("an index fits");
            (name.to_owned(), index, description)
        })
        .collect()
}

fn sysctls(directory: &Path, facts: &mut BTreeMap<String, String>) {
    let entries = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("read {}: {error}", directory.display()));
    for entry in entries {
        let entry = entry.expect("read a directory");
        let path = entry.path();
        let name = path.to_string_lossy().into_owned();
        // The directory knows it: no system call for each of thousands of files.
        if entry.file_type().expect("a kind of file").is_dir() {
            sysctls(&path, facts);
        } else if RESTLESS.iter().all(|restless| !name.contains(restless)) {
            // Some can only be written (route/flush) or have no value yet.
            if let Ok(value) = fs::read_to_string(&path) {
                facts.insert(name, value);
            }
        }
    }
}
