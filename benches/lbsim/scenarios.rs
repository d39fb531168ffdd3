//! The scenarios: those of performance.md §5 and six families of our own.

use crate::server::Model;
use crate::world::{Arrivals, Change, Hedge, Plan, Work, exponential};
use enmesh::stdx::rng::Rng;
use std::sync::Arc;

/// What a scenario is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// p99 and p99.9.
    Tail,
    /// Requests that failed or came after the deadline.
    Missed,
}

pub struct Scenario {
    pub key: &'static str,
    pub title: &'static str,
    pub judge: Judge,
    pub plan: Box<dyn Fn(u64) -> Plan + Sync>,
}

/// Latencies of a production service, as Buoyant replayed them (86 333 samples, median 167.5 ms; the file
/// `real_latencies.data` of twitter/finagle, Apache-2.0), by their quantiles.
const MEASURED: [(f64, f64); 22] = [
    (0.0, 164.09),
    (0.001, 164.48),
    (0.01, 164.9),
    (0.05, 165.45),
    (0.1, 165.78),
    (0.2, 166.22),
    (0.3, 166.61),
    (0.4, 167.0),
    (0.5, 167.48),
    (0.6, 168.23),
    (0.7, 169.41),
    (0.8, 171.49),
    (0.9, 176.7),
    (0.95, 181.72),
    (0.97, 183.87),
    (0.98, 186.39),
    (0.99, 192.31),
    (0.995, 196.25),
    (0.999, 198.82),
    (0.9999, 199.8),
    (0.99999, 199.98),
    (1.0, 199.99),
];

fn measured() -> Arc<Vec<f64>> {
    let at = |share: f64| {
        let above =
            MEASURED.iter().position(|(quantile, _)| *quantile >= share).unwrap_or(MEASURED.len() - 1).max(1);
        let ((q0, v0), (q1, v1)) = (MEASURED[above - 1], MEASURED[above]);
        (v0 + (v1 - v0) * (share - q0) / (q1 - q0)) / 1e3
    };
    Arc::new((0..20_000).map(|index| at((f64::from(index) + 0.5) / 20_000.0)).collect())
}

/// Twenty servers with a queue and four workers each, 10 ms a request, unless said otherwise.
fn queues(servers: usize, clients: usize, load: f64, slow: usize, factor: f64) -> Plan {
    let speeds: Vec<f64> =
        (0..servers).map(|server| if server < slow { 1.0 / factor } else { 1.0 }).collect();
    let capacity = speeds.iter().sum::<f64>() * 4.0 / 0.010;
    Plan {
        clients,
        rate: load * capacity,
        arrivals: Arrivals::Poisson,
        until: 40.0,
        warm: 10.0,
        net: [0.0001, 0.0001],
        zones: 1,
        deadline: 0.5,
        model: Model::Queue(4),
        work: Work::Exponential(0.010),
        weights: vec![1000; servers],
        speeds,
        changes: Vec::new(),
        hedge: None,
        watched: Some(0),
        estimates: false,
    }
}

fn buoyant(clients: usize, hedge: Option<Hedge>) -> Plan {
    Plan {
        rate: 1000.0,
        arrivals: Arrivals::Even,
        until: 60.0,
        warm: 0.0,
        net: [0.0, 0.0],
        deadline: 1.0,
        model: Model::Delay,
        work: Work::Measured(measured()),
        changes: vec![(15.0, 0, Change::Fixed(2.0)), (45.0, 0, Change::Healthy)],
        hedge,
        ..queues(11, clients, 0.5, 0, 1.0)
    }
}

/// Prequal's testbed: servers whose neighbours leave them now more, now less of their cores.
fn antagonists(load: f64, clients: usize, redrawn: f64, seed: u64) -> Plan {
    const SERVERS: usize = 100;
    let rng = Rng::seeded(1000 + seed);
    let class = |rng: &Rng| match rng.unit() {
        u if u < 0.6 => (3.0, 4.0, 1.5, 1.0),
        u if u < 0.9 => (2.0, 2.0, 1.0, 2.0),
        _ => (1.0, 2.0, 0.7, 2.0),
    };
    let until = 40.0;
    let (mut changes, mut speeds) = (Vec::new(), Vec::new());
    for server in 0..SERVERS {
        let (mut high, mut high_for, mut low, mut low_for) = class(&rng);
        speeds.push(high * 4.0);
        let mut time = exponential(&rng, high_for);
        let mut next = exponential(&rng, redrawn);
        let mut is_high = true;
        while time < until {
            if time > next {
                (high, high_for, low, low_for) = class(&rng);
                next = time + exponential(&rng, redrawn);
            }
            is_high = !is_high;
            changes.push((time, server, Change::Speed(4.0 * if is_high { high } else { low })));
            time += exponential(&rng, if is_high { high_for } else { low_for });
        }
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    Plan {
        rate: load * SERVERS as f64 * 4.0 / 0.08,
        until,
        net: [0.0002, 0.0002],
        deadline: 5.0,
        model: Model::Shared,
        // Cutting the normal off at nothing raises its mean by 8.33 %.
        work: Work::Cut(0.08 / 1.0833),
        speeds,
        changes,
        watched: None,
        ..queues(SERVERS, clients, 0.5, 0, 1.0)
    }
}

/// Every server stops for `pause` seconds, every `every` seconds in the mean.
fn pauses(clients: usize, load: f64, pause: f64, every: f64, seed: u64) -> Plan {
    let rng = Rng::seeded(77 + seed);
    let mut plan = queues(20, clients, load, 0, 1.0);
    plan.model = Model::Shared;
    plan.speeds = vec![4.0; 20];
    for server in 0..20 {
        let mut time = exponential(&rng, every);
        while time < plan.until {
            plan.changes.push((time, server, Change::Speed(1e-6)));
            plan.changes.push((time + pause, server, Change::Speed(4.0)));
            time += pause + exponential(&rng, every);
        }
    }
    plan.changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    plan
}

fn during(plan: Plan, from: f64, to: f64, servers: std::ops::Range<usize>, change: Change) -> Plan {
    let begin = servers.clone().map(|server| (from, server, change));
    let end = servers.map(|server| (to, server, Change::Healthy));
    Plan { changes: begin.chain(end).collect(), ..plan }
}

/// A server warms up: from a tenth of its speed to all of it.
fn warming(from: f64, secs: f64, server: usize) -> impl Iterator<Item = (f64, usize, Change)> {
    (0..=20).map(move |step| {
        let share = f64::from(step) / 20.0;
        (from + secs * share, server, Change::Speed(0.1 + 0.9 * share))
    })
}

/// Each server in turn is taken out for two seconds and comes back cold.
fn rolling() -> Plan {
    let mut plan = queues(10, 10, 0.6, 0, 1.0);
    plan.until = 60.0;
    for server in 0..10 {
        let at = 12.0 + 4.5 * server as f64;
        plan.changes.push((at, server, Change::Leave));
        plan.changes.push((at + 2.0, server, Change::Join));
        plan.changes.extend(warming(at + 2.0, 5.0, server));
    }
    plan.changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    plan
}

/// A scenario whose plan does not depend on the seed.
fn fixed(key: &'static str, title: &'static str, judge: Judge, plan: Plan) -> Scenario {
    Scenario { key, title, judge, plan: Box::new(move |_| plan.clone()) }
}

fn seeded(key: &'static str, title: &'static str, plan: impl Fn(u64) -> Plan + Sync + 'static) -> Scenario {
    Scenario { key, title, judge: Judge::Tail, plan: Box::new(plan) }
}

/// Those of performance.md §5.
fn known() -> Vec<Scenario> {
    use Judge::{Missed, Tail};
    let heavy = Plan { work: Work::HeavyTail(0.010, 1.5), ..queues(20, 10, 0.7, 0, 1.0) };
    let hedge = Some(Hedge { quantile: 0.99, budget: 0.02 });
    let failing = |share| {
        let plan = Plan { deadline: 10.0, ..queues(10, 1, 0.5, 0, 1.0) };
        during(plan, 15.0, 35.0, 0..1, Change::Failing(share, 0.0005))
    };
    let slow = |speed| during(queues(20, 10, 0.6, 0, 1.0), 15.0, 30.0, 0..1, Change::Speed(speed));
    let cold = Plan { changes: warming(15.0, 9.0, 0).collect(), ..queues(10, 1, 0.6, 0, 1.0) };
    let recovery =
        Plan { warm: 17.0, ..during(queues(8, 10, 0.85, 0, 1.0), 5.0, 12.0, 0..1, Change::Speed(0.1)) };
    vec![
        fixed("buoyant", "one client, one of 11 servers takes 2 s for 30 s", Missed, buoyant(1, None)),
        fixed("buoyant10", "the same, 10 clients", Missed, buoyant(10, None)),
        fixed("hedge", "the same, one client, with hedging (p99, 2 %)", Missed, buoyant(1, hedge)),
        fixed("fail100", "one of 10 servers fails everything at once for 20 s", Missed, failing(1.0)),
        fixed("fail50", "one of 10 servers fails half for 20 s", Missed, failing(0.5)),
        fixed("even1-70", "20 equal servers, 1 client, load 0.7", Tail, queues(20, 1, 0.7, 0, 1.0)),
        fixed("even1-90", "20 equal servers, 1 client, load 0.9", Tail, queues(20, 1, 0.9, 0, 1.0)),
        fixed("even10-70", "20 equal servers, 10 clients, load 0.7", Tail, queues(20, 10, 0.7, 0, 1.0)),
        fixed("even10-90", "20 equal servers, 10 clients, load 0.9", Tail, queues(20, 10, 0.9, 0, 1.0)),
        fixed("slow1-70", "4 of 20 servers 3x slower, 1 client, load 0.7", Tail, queues(20, 1, 0.7, 4, 3.0)),
        fixed("slow1-90", "4 of 20 servers 3x slower, 1 client, load 0.9", Tail, queues(20, 1, 0.9, 4, 3.0)),
        fixed(
            "slow10-70",
            "4 of 20 servers 3x slower, 10 clients, load 0.7",
            Tail,
            queues(20, 10, 0.7, 4, 3.0),
        ),
        fixed(
            "slow10-90",
            "4 of 20 servers 3x slower, 10 clients, load 0.9",
            Tail,
            queues(20, 10, 0.9, 4, 3.0),
        ),
        fixed("heavy", "heavy tail (log-normal, sigma 1.5), 10 clients, load 0.7", Tail, heavy),
        fixed("tenfold", "one of 20 servers 10x slower for 15 s, load 0.6", Tail, slow(0.1)),
        fixed("hang", "one of 20 servers hangs for 15 s, load 0.6", Missed, slow(0.0003)),
        fixed("cold", "one of 10 servers restarts cold, 1 client, load 0.6", Tail, cold),
        fixed("recovery", "after one of 8 servers was 10x slower, load 0.85", Tail, recovery),
        seeded("pauses", "each of 20 servers stops for 200 ms every 5 s, load 0.6", |s| {
            pauses(10, 0.6, 0.2, 5.0, s)
        }),
        fixed("wide", "20 of 200 servers 3x slower, 4 clients, load 0.8", Tail, queues(200, 4, 0.8, 20, 3.0)),
        seeded("ant-075", "antagonists, 100 x 100, 0.75 of allocation", |s| {
            antagonists(0.75, 100, f64::INFINITY, s)
        }),
        seeded("ant-103", "antagonists, 100 x 100, 1.03 of allocation", |s| {
            antagonists(1.03, 100, f64::INFINITY, s)
        }),
        seeded("ant-127", "antagonists, 100 x 100, 1.27 of allocation", |s| {
            antagonists(1.27, 100, f64::INFINITY, s)
        }),
        seeded("ant-157", "antagonists, 100 x 100, 1.57 of allocation", |s| {
            antagonists(1.57, 100, f64::INFINITY, s)
        }),
        seeded("ant-174", "antagonists, 100 x 100, 1.74 of allocation", |s| {
            antagonists(1.74, 100, f64::INFINITY, s)
        }),
        seeded("moving", "moving antagonists, 100 clients, 1.41 of allocation", |s| {
            antagonists(1.41, 100, 5.0, s)
        }),
        seeded("moving10", "moving antagonists, 10 clients, 1.41 of allocation", |s| {
            antagonists(1.41, 10, 5.0, s)
        }),
        seeded("sparse", "1000 clients of 7 rps, moving antagonists, 1.41", |s| {
            antagonists(1.41, 1000, 5.0, s)
        }),
    ]
}

/// Families of our own.
fn own() -> Vec<Scenario> {
    use Judge::{Missed, Tail};
    let zones = |load, slow| {
        let plan = Plan { zones: 3, net: [0.0002, 0.0020], ..queues(18, 9, load, 0, 1.0) };
        // One zone's servers are the slow ones.
        let changes = (0..18).step_by(3).map(|server| (15.0, server, Change::Speed(slow)));
        Plan { changes: changes.collect(), ..plan }
    };
    let weights: Vec<u32> = (0..20).map(|server| [1000, 2000, 4000][server % 3]).collect();
    let speeds: Vec<f64> = weights.iter().map(|weight| f64::from(*weight) / 2000.0).collect();
    let sized =
        Plan { speeds, weights, rate: 0.8 * 20.0 * 4.0 / 0.010 * 1.15, ..queues(20, 10, 0.8, 0, 1.0) };
    let bursts = |factor, load| Plan { arrivals: Arrivals::Bursts(factor), ..queues(20, 10, load, 0, 1.0) };
    let mixed = |load: f64| {
        // One in twenty takes 50 times as long: 3.45 times the work in the mean.
        let plan = queues(20, 10, load, 0, 1.0);
        Plan {
            work: Work::Mixed(0.004, 0.200, 0.05),
            rate: plan.rate * 0.010 / 0.0138,
            deadline: 2.0,
            ..plan
        }
    };
    let flapping = {
        let mut plan = queues(20, 10, 0.6, 0, 1.0);
        for half in 0..30 {
            let change = if half % 2 == 0 { Change::Speed(0.1) } else { Change::Healthy };
            plan.changes.push((10.0 + f64::from(half), 0, change));
        }
        plan
    };
    let half = |change| during(queues(10, 10, 0.4, 0, 1.0), 15.0, 25.0, 0..5, change);
    vec![
        fixed(
            "together",
            "half of 10 servers fail 30 % together for 10 s",
            Missed,
            half(Change::Failing(0.3, 0.002)),
        ),
        fixed(
            "together-slow",
            "half of 10 servers 3x slower together, load 0.4",
            Tail,
            half(Change::Speed(0.333)),
        ),
        fixed("zones", "3 zones, 2 ms between them, load 0.6", Tail, zones(0.6, 1.0)),
        fixed("zones-slow", "3 zones, all servers of one 3x slower, load 0.5", Tail, zones(0.5, 0.333)),
        fixed("weights", "machines of 1, 2 and 4 shares, load 0.8", Tail, sized),
        fixed("rolling", "a rolling deploy: each of 10 servers restarts cold, load 0.6", Tail, rolling()),
        fixed("bursts", "bursts of 1.7x the rate, load 0.5", Tail, bursts(1.7, 0.5)),
        fixed("bursts-hot", "bursts of 1.4x the rate, load 0.7", Tail, bursts(1.4, 0.7)),
        fixed("mixed", "one request in 20 is 50x dearer, load 0.7", Tail, mixed(0.7)),
        fixed("flapping", "one of 20 servers 10x slower every other second", Tail, flapping),
    ]
}

pub fn all() -> Vec<Scenario> {
    known().into_iter().chain(own()).collect()
}

/// A little of everything, for a look whether it runs.
pub fn smoke() -> Plan {
    during(queues(10, 2, 0.5, 0, 1.0), 0.3, 0.8, 0..1, Change::Failing(1.0, 0.0005))
}
