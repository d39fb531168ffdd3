//! The product's own balancer in the simulated world: the very same cells, sets, rings and rules.

use crate::world::{Balancer, End, Plan, Report};
use enmesh::balance::cost::{Estimator, Formula, Power};
use enmesh::balance::endpoint::Cell;
use enmesh::balance::hash::mix;
use enmesh::balance::pick::{Ask, Picker, Rule};
use enmesh::balance::ring::{RING_MAX, Ring};
use enmesh::balance::set::{Place, Rank, Set, Slot};
use enmesh::balance::subset::Subset;
use enmesh::stdx::moment::Moment;
use enmesh::stdx::rng::Rng;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub struct Ours {
    set: Set<usize>,
    places: Vec<Option<Place>>,
    weights: Vec<u32>,
    far: Vec<bool>,
    ring: Ring,
    ring_max: usize,
    picker: Picker,
    rng: Rng,
    last_id: u32,
}

/// What differs from the defaults, to measure what each part is worth.
#[derive(Debug, Clone, Copy)]
pub struct Knobs {
    pub rule: &'static str,
    pub ring: usize,
    pub zones: bool,
    pub subset: Option<usize>,
    pub slow_start: Option<Duration>,
    pub weights: bool,
    /// What servers report counts.
    pub reports: bool,
}

pub const DEFAULT: Knobs = Knobs {
    rule: "freed",
    ring: usize::MAX,
    zones: true,
    subset: None,
    slow_start: None,
    weights: true,
    reports: false,
};

fn moment(now: f64) -> Moment {
    // From a second on: a balancer is never asked at the very beginning of its time.
    Moment::from_micros(1_000_000 + (now * 1e6) as u64)
}

impl Ours {
    pub fn new(knobs: Knobs, plan: &Plan, client: usize, rng: Rng) -> Self {
        let second = Duration::from_secs(1);
        let peak = |power| Formula::new(Estimator::Peak, power, 10 * second, Duration::ZERO);
        let (rule, formula) = match knobs.rule {
            "peak" => (Rule::Choices(2), peak(Power::One)),
            "least" => (Rule::Choices(2), peak(Power::None)),
            "turn" => (Rule::Turn(Arc::default()), peak(Power::One)),
            _ => (Rule::Freed, Formula::default()),
        };
        let others = knobs.reports.then(Arc::default);
        let here = plan.zone_of(client);
        let mut ours = Self {
            set: Set::default(),
            places: vec![None; plan.servers()],
            weights: plan.weights.iter().map(|weight| if knobs.weights { *weight } else { 1000 }).collect(),
            far: (0..plan.servers()).map(|server| knobs.zones && plan.zone_of(server) != here).collect(),
            ring: Ring::default(),
            ring_max: knobs.ring,
            picker: Picker::new(rule, formula).with_slow_start(knobs.slow_start).with_others(others),
            rng,
            last_id: 0,
        };
        for server in ours.first_members(knobs, plan) {
            ours.put(server, 0.0);
        }
        ours.set.seal();
        ours
    }

    fn first_members(&self, knobs: Knobs, plan: &Plan) -> Vec<usize> {
        let Some(size) = knobs.subset else { return (0..plan.servers()).collect() };
        let mut subset = Subset::new(size, self.rng.next_u64());
        let mut inside = BTreeSet::new();
        for server in 0..plan.servers() {
            let addr = SocketAddr::from(([10, 0, (server / 250) as u8, (server % 250) as u8], 80));
            let shift = subset.join(addr, mix(server as u64));
            shift.gone.map(|gone| inside.remove(&gone));
            shift.come.map(|come| inside.insert(come));
        }
        let number = |addr: &SocketAddr| match addr.ip() {
            std::net::IpAddr::V4(ip) => usize::from(ip.octets()[2]) * 250 + usize::from(ip.octets()[3]),
            std::net::IpAddr::V6(_) => unreachable!("only the other kind was put in"),
        };
        inside.iter().map(number).collect()
    }

    fn put(&mut self, server: usize, now: f64) {
        self.last_id += 1;
        let cell = Arc::new(Cell::new(self.last_id, mix(server as u64), moment(now), 0.03));
        let place = self.set.vacancy(Rank { priority: 0, far: self.far[server] });
        self.set.put(place, Slot { cell, weight: self.weights[server], item: server });
        self.places[server] = Some(place);
    }

    fn slot(&self, server: usize) -> Option<&Slot<usize>> {
        self.set.get(self.places[server]?)
    }
}

impl Balancer for Ours {
    fn pick(&mut self, now: f64, avoid: Option<usize>) -> usize {
        let avoided = avoid.and_then(|server| self.slot(server)).map(|slot| slot.cell.id());
        let mut short = Ring::default();
        let ring = if self.ring_max < RING_MAX {
            let cells: Vec<&Arc<Cell>> = self.ring.cells().take(self.ring_max).collect();
            cells.into_iter().rev().for_each(|cell| short.push(cell));
            &short
        } else {
            &self.ring
        };
        let avoid = |id| Some(id) == avoided;
        let ask = Ask { now: moment(now), rng: &self.rng, hash: None, ring, panic: false, avoid };
        self.picker.pick(&self.set, &ask).expect("there is always one").item
    }

    fn sent(&mut self, server: usize, now: f64) {
        if let Some(slot) = self.slot(server) {
            slot.cell.begin(moment(now));
        }
    }

    fn ended(&mut self, server: usize, now: f64, sent: f64, end: End, report: &Report) {
        let Some(slot) = self.slot(server) else { return };
        let (now, sent, cell, formula) = (moment(now), moment(sent), &slot.cell, self.picker.formula());
        if sent.millis() < cell.born_ms() {
            // Sent to the one that was there before.
            return;
        }
        cell.headers(sent);
        let secs = now.secs_since(sent);
        if let (Some(mean), End::Well) = (self.picker.others(), end) {
            mean.learn(cell.reported(report.in_flight, now));
        }
        match end {
            End::Well => {
                cell.learn(formula, now, secs);
                cell.judge(true, || now);
                let cell = Arc::clone(cell);
                self.ring.push(&cell);
            }
            End::Failed => cell.judge(false, || now),
            End::Cancelled => cell.learn_at_least(formula, now, secs),
        }
    }

    fn member(&mut self, server: usize, now: f64, present: bool) {
        match (present, self.places[server]) {
            (true, None) => self.put(server, now),
            (false, Some(place)) => {
                self.set.remove(place);
                self.places[server] = None;
            }
            _ => {}
        }
        self.set.seal();
    }
}
