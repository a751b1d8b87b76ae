//! The way of packets through chains: which rules take which, given where the chains are entered.
//!
//! What a chain takes is worked out once, after the chains that it enters; whoever enters it takes the part
//! that meets the conditions of the entering rule. What rules before a rule let pass is not considered: the
//! question is which packets it may take.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::region::Region;

/// From how many regions on those of one rule become one that covers them all: jumps may meet in more ways
/// than can be listed.
const MOST_REGIONS: usize = 1024;
/// Up to how many regions of a rule each is compared with each in the end.
const MOST_COMPARED: usize = 64;

/// What a rule does with packets that meet its conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// What is looked for.
    Take,
    /// Sends them through a chain (jump or goto).
    Enter(String),
}

/// A rule, or one outcome of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// The packets that it may apply to.
    pub(super) regions: Vec<Region>,
    pub(super) action: Action,
}

/// The packets that one rule takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    /// The chain that the rule is in.
    pub(super) chain: String,
    pub(super) regions: Vec<Region>,
}

/// A chain by its number, and a step of it.
type RuleId = (usize, usize);
/// What the rules below a chain take.
type Found = BTreeMap<RuleId, BTreeSet<Region>>;

/// What packets that enter the chains `roots` are taken by. `steps_of` gives the rules of a chain, and is
/// asked once for each chain on the way.
///
/// # Errors
/// Those of `steps_of`.
pub(super) fn taken<'a, E>(
    roots: impl IntoIterator<Item = &'a str>,
    steps_of: impl FnMut(&str) -> Result<Vec<Step>, E>,
) -> Result<Vec<Taken>, E> {
    let mut walk = Walk {
        steps_of,
        numbers: HashMap::new(),
        found: Vec::new(),
    };
    let mut all = Found::new();
    for root in roots {
        walk.visit(root)?;
        for (rule, regions) in walk.found_in(root) {
            all.entry(*rule).or_default().extend(regions.clone());
        }
    }
    let mut names = vec![String::new(); walk.numbers.len()];
    for (name, number) in walk.numbers {
        names[number] = name;
    }
    let taken = all.into_iter().map(|((chain, _), regions)| Taken {
        chain: names[chain].clone(),
        regions: widest(regions),
    });
    Ok(taken.collect())
}

struct Walk<F> {
    steps_of: F,
    /// Chains by name. One that is being visited has a number and nothing found yet, so a loop, which the
    /// kernel refuses (`nft_chain_validate`, `mark_source_chains`), ends there.
    numbers: HashMap<String, usize>,
    found: Vec<Found>,
}

/// A chain being visited.
struct Visit {
    number: usize,
    steps: Vec<Step>,
    next: usize,
}

impl<E, F: FnMut(&str) -> Result<Vec<Step>, E>> Walk<F> {
    /// Works out what a chain takes, unless that is known. Legacy chains may nest as deep as there are
    /// chains, hence a stack of our own.
    fn visit(&mut self, name: &str) -> Result<(), E> {
        let mut stack: Vec<Visit> = self.begin(name)?.into_iter().collect();
        while let Some(visit) = stack.last_mut() {
            match visit.steps.get(visit.next) {
                Some(step) => {
                    visit.next += 1;
                    if let Action::Enter(chain) = &step.action {
                        let inner = self.begin(chain)?;
                        stack.extend(inner);
                    }
                }
                None => {
                    self.found[visit.number] = self.combined(visit);
                    stack.pop();
                }
            }
        }
        Ok(())
    }

    /// None if the chain has been seen.
    fn begin(&mut self, name: &str) -> Result<Option<Visit>, E> {
        if self.numbers.contains_key(name) {
            return Ok(None);
        }
        let steps = (self.steps_of)(name)?;
        let number = self.found.len();
        self.numbers.insert(name.to_owned(), number);
        self.found.push(Found::new());
        Ok(Some(Visit {
            number,
            steps,
            next: 0,
        }))
    }

    fn found_in(&self, name: &str) -> &Found {
        &self.found[self.numbers[name]]
    }

    fn combined(&self, visit: &Visit) -> Found {
        let mut found = Found::new();
        for (place, step) in visit.steps.iter().enumerate() {
            match &step.action {
                Action::Take => {
                    let regions = step.regions.iter().cloned();
                    add(&mut found, (visit.number, place), regions);
                }
                Action::Enter(chain) => {
                    for (rule, inner) in self.found_in(chain) {
                        let shared = step.regions.iter().flat_map(|region| {
                            inner.iter().filter_map(|other| region.intersection(other))
                        });
                        add(&mut found, *rule, shared);
                    }
                }
            }
        }
        found
    }
}

fn add(found: &mut Found, rule: RuleId, regions: impl Iterator<Item = Region>) {
    let mut regions = regions.peekable();
    if regions.peek().is_none() {
        return;
    }
    let known = found.entry(rule).or_default();
    known.extend(regions);
    if known.len() > MOST_REGIONS {
        let all = std::mem::take(known).into_iter();
        known.extend(all.reduce(|one, other| one.hull(&other)));
    }
}

/// Without those that another one covers, as far as that is worth the comparing.
fn widest(regions: BTreeSet<Region>) -> Vec<Region> {
    let mut regions: Vec<Region> = regions.into_iter().collect();
    if regions.len() <= MOST_COMPARED {
        let all = regions.clone();
        regions.retain(|one| !all.iter().any(|other| other != one && other.covers(one)));
    }
    regions
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::intervals::Intervals;
    use super::super::region::{Families, Field};
    use super::*;

    fn port(first: u128, last: u128) -> Region {
        let ports = (Field::Port, Intervals::range(first, last));
        Region::all(Families::V4).narrowed(&ports).unwrap()
    }

    fn enter(region: Region, chain: &str) -> Step {
        Step {
            regions: vec![region],
            action: Action::Enter(chain.to_owned()),
        }
    }

    fn take(region: Region) -> Step {
        Step {
            regions: vec![region],
            action: Action::Take,
        }
    }

    fn walk(chains: &[(&str, Vec<Step>)], roots: &[&str]) -> Vec<Taken> {
        let chains: HashMap<&str, &Vec<Step>> =
            chains.iter().map(|(name, steps)| (*name, steps)).collect();
        let steps = |name: &str| Ok::<_, Infallible>(chains.get(name).copied().cloned());
        taken(roots.iter().copied(), |name| {
            steps(name).map(Option::unwrap_or_default)
        })
        .unwrap()
    }

    #[test]
    fn what_a_chain_takes_is_limited_by_how_it_is_entered() {
        let found = walk(
            &[
                ("root", vec![enter(port(80, 90), "inner")]),
                ("inner", vec![take(port(85, 100)), take(port(91, 92))]),
            ],
            &["root"],
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].chain, "inner");
        assert_eq!(found[0].regions, [port(85, 90)]);
    }

    #[test]
    fn a_rule_that_is_met_in_two_ways_is_found_once_with_the_wider_one() {
        let found = walk(
            &[
                ("one", vec![enter(Region::all(Families::V4), "inner")]),
                ("two", vec![enter(port(80, 80), "inner")]),
                ("inner", vec![take(port(80, 81))]),
            ],
            &["one", "two"],
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].regions, [port(80, 81)]);
    }

    #[test]
    fn loops_and_chains_that_nobody_has_end_the_walk() {
        let all = || Region::all(Families::V4);
        let found = walk(
            &[
                ("a", vec![enter(all(), "b"), enter(all(), "nowhere")]),
                ("b", vec![enter(all(), "a"), take(port(1, 1))]),
            ],
            &["a", "b"],
        );
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_lattice_of_jumps_is_walked_once_and_its_regions_stay_few() {
        let mut chains: Vec<(String, Vec<Step>)> = (0..200)
            .map(|depth: u128| {
                let next = format!("c{}", depth + 1);
                let halves = [port(1, 1000 + depth), port(500 - depth, 60_000)];
                let steps = halves.map(|half| enter(half, &next)).to_vec();
                (format!("c{depth}"), steps)
            })
            .collect();
        chains.push(("c200".to_owned(), vec![take(Region::all(Families::V4))]));
        let named: Vec<(&str, Vec<Step>)> = chains
            .iter()
            .map(|(name, steps)| (name.as_str(), steps.clone()))
            .collect();
        let found = walk(&named, &["c0"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].regions.len() <= MOST_REGIONS);
    }

    #[test]
    fn chains_may_nest_deeper_than_a_stack() {
        let chains: Vec<(String, Vec<Step>)> = (0..20_000)
            .map(|depth| {
                let next = format!("c{}", depth + 1);
                let inner = enter(Region::all(Families::V4), &next);
                (format!("c{depth}"), vec![inner])
            })
            .collect();
        let named: Vec<(&str, Vec<Step>)> = chains
            .iter()
            .map(|(name, steps)| (name.as_str(), steps.clone()))
            .collect();
        assert_eq!(walk(&named, &["c0"]), []);
    }
}
