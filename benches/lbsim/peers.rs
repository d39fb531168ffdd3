//! What others do, by their published rules (performance.md §2).

use crate::world::{Balancer, End, Plan, Report};
use enmesh::stdx::rng::Rng;

/// A rule for the cost of an endpoint, and how many random ones are compared.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    RoundRobin,
    /// Requests in flight, of two (Envoy, gRPC A48).
    LeastRequest,
    /// Requests in flight, of all.
    LeastOfAll,
    /// Peak EWMA as tower has it, with its first estimate; Linkerd's is the same with 30 ms.
    Tower(f64),
    /// The same with Linkerd's penalty for failures.
    Penalty,
    /// Peak EWMA as Finagle has it: an endpoint without history gets one request.
    Finagle,
    /// C3 (NSDI'15), with so many clients.
    C3(f64),
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    pending: u32,
    latency: f64,
    stamp: f64,
    measured: bool,
    queue: f64,
    service: f64,
}

pub struct Peer {
    kind: Kind,
    known: Vec<Known>,
    present: Vec<usize>,
    turn: u64,
    rng: Rng,
}

const DECAY: f64 = 10.0;

impl Peer {
    pub fn new(kind: Kind, plan: &Plan, rng: Rng) -> Self {
        let fresh = Self::fresh(kind);
        let known = vec![fresh; plan.servers()];
        Self { kind, known, present: (0..plan.servers()).collect(), turn: rng.next_u64() >> 32, rng }
    }

    fn fresh(kind: Kind) -> Known {
        let latency = match kind {
            Kind::Tower(first) => first,
            Kind::Penalty => 0.03,
            _ => 0.0,
        };
        Known { latency, ..Known::default() }
    }

    fn any(&self) -> usize {
        self.present[self.rng.below(self.present.len() as u32) as usize]
    }

    fn cost(&mut self, server: usize, now: f64) -> f64 {
        let it = &mut self.known[server];
        let pending = f64::from(it.pending);
        match self.kind {
            Kind::RoundRobin => 0.0,
            Kind::LeastRequest | Kind::LeastOfAll => pending,
            Kind::Tower(_) | Kind::Penalty | Kind::Finagle => {
                it.latency *= (-(now - it.stamp) / DECAY).exp();
                it.stamp = now;
                if matches!(self.kind, Kind::Finagle) && it.latency == 0.0 && pending > 0.0 {
                    return 1e12 + pending;
                }
                it.latency * (pending + 1.0)
            }
            Kind::C3(_) if !it.measured => pending * 1e-9,
            Kind::C3(clients) => {
                let queue = 1.0 + pending * clients + it.queue;
                it.latency - it.service + queue.powi(3) * it.service
            }
        }
    }

    fn peak(it: &mut Known, now: f64, sample: f64) {
        if sample > it.latency {
            it.latency = sample;
        } else {
            let keep = (-(now - it.stamp) / DECAY).exp();
            it.latency = it.latency * keep + sample * (1.0 - keep);
        }
        it.stamp = now;
    }
}

impl Balancer for Peer {
    fn pick(&mut self, now: f64, avoid: Option<usize>) -> usize {
        let others = self.present.len() > 1;
        let allowed = |server: usize| !others || Some(server) != avoid;
        match self.kind {
            Kind::RoundRobin => loop {
                self.turn += 1;
                let server = self.present[(self.turn % self.present.len() as u64) as usize];
                if allowed(server) {
                    return server;
                }
            },
            Kind::LeastOfAll => {
                let start = self.rng.below(self.present.len() as u32) as usize;
                let all = self.present[start..].iter().chain(&self.present[..start]);
                let least =
                    all.filter(|server| allowed(**server)).min_by_key(|server| self.known[**server].pending);
                *least.expect("there is one")
            }
            _ => {
                let mut first = self.any();
                while !allowed(first) {
                    first = self.any();
                }
                let mut second = self.any();
                for _ in 0..64 {
                    if second != first && allowed(second) {
                        break;
                    }
                    second = self.any();
                }
                if !allowed(second) {
                    return first;
                }
                if self.cost(second, now) < self.cost(first, now) { second } else { first }
            }
        }
    }

    fn sent(&mut self, server: usize, _: f64) {
        self.known[server].pending += 1;
    }

    fn ended(&mut self, server: usize, now: f64, sent: f64, end: End, report: &Report) {
        let it = &mut self.known[server];
        it.pending = it.pending.saturating_sub(1);
        let latency = now - sent;
        match self.kind {
            Kind::RoundRobin | Kind::LeastRequest | Kind::LeastOfAll => {}
            Kind::Tower(_) | Kind::Finagle => Self::peak(it, now, latency),
            Kind::Penalty if end == End::Failed => {
                let decayed = it.latency * (-(now - it.stamp) / DECAY).exp();
                Self::peak(it, now, decayed.max(5.0));
            }
            Kind::Penalty => Self::peak(it, now, latency),
            Kind::C3(_) if end == End::Cancelled => {}
            Kind::C3(_) => {
                let keep = if it.measured { 0.9 } else { 0.0 };
                it.latency = keep * it.latency + (1.0 - keep) * latency;
                it.service = keep * it.service + (1.0 - keep) * report.service;
                it.queue = keep * it.queue + (1.0 - keep) * f64::from(report.in_flight);
                it.measured = true;
            }
        }
    }

    fn member(&mut self, server: usize, _: f64, present: bool) {
        self.present.retain(|other| *other != server);
        if present {
            self.present.push(server);
            self.present.sort_unstable();
            let pending = self.known[server].pending;
            self.known[server] = Known { pending, ..Self::fresh(self.kind) };
        }
    }
}

/// One answer to a probe.
#[derive(Debug, Clone, Copy)]
struct Probe {
    server: usize,
    at: f64,
    in_flight: u32,
    latency: f64,
    uses: u32,
}

/// Prequal (NSDI'24): a pool of fresh probe answers; the fastest of the cold ones, else the least loaded.
pub struct Prequal {
    settings: PrequalSettings,
    pool: Vec<Probe>,
    seen: Vec<u32>,
    next_seen: usize,
    due_probes: f64,
    due_removals: f64,
    oldest: bool,
    failures: Vec<(u32, f64, f64)>,
    present: Vec<usize>,
    rng: Rng,
}

#[derive(Debug, Clone, Copy)]
pub struct PrequalSettings {
    pub probes: f64,
    pub removals: f64,
    /// The quantile of requests in flight above which a server is hot.
    pub hot: f64,
    /// Responses carry reports too, and five failures in a row shut a server for a while.
    pub reports: bool,
}

/// As published, with the hot quantile and the reports that prequal-rs found better.
pub const PREQUAL: PrequalSettings = PrequalSettings { probes: 3.0, removals: 1.0, hot: 0.6, reports: true };

const POOL: usize = 16;
const SEEN: usize = 128;

impl Prequal {
    pub fn new(settings: PrequalSettings, plan: &Plan, rng: Rng) -> Self {
        Self {
            settings,
            pool: Vec::new(),
            seen: Vec::new(),
            next_seen: 0,
            due_probes: 0.0,
            due_removals: 0.0,
            oldest: true,
            failures: vec![(0, 0.0, 1.0); plan.servers()],
            present: (0..plan.servers()).collect(),
            rng,
        }
    }

    fn threshold(&self) -> u32 {
        let mut seen = self.seen.clone();
        if seen.is_empty() {
            return u32::MAX;
        }
        let rank = (self.settings.hot * (seen.len() - 1) as f64) as usize;
        *seen.select_nth_unstable(rank).1
    }

    fn add(&mut self, server: usize, now: f64, report: &Report) {
        if self.seen.len() < SEEN {
            self.seen.push(report.in_flight);
        } else {
            self.seen[self.next_seen] = report.in_flight;
            self.next_seen = (self.next_seen + 1) % SEEN;
        }
        let spare =
            (1.0 - POOL as f64 / self.present.len() as f64) * self.settings.probes - self.settings.removals;
        let uses = if spare > 0.0 { (2.0 / spare).clamp(1.0, 16.0) } else { 16.0 };
        let uses = uses as u32 + u32::from(self.rng.unit() < uses.fract());
        self.pool.retain(|probe| probe.server != server);
        let (in_flight, latency) = (report.in_flight, report.latency);
        self.pool.push(Probe { server, at: now, in_flight, latency, uses });
        if self.pool.len() > POOL {
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        let oldest = (0..self.pool.len()).min_by(|a, b| self.pool[*a].at.total_cmp(&self.pool[*b].at));
        oldest.map(|index| self.pool.swap_remove(index));
    }

    fn remove_worst(&mut self, hot: u32) {
        let indices = 0..self.pool.len();
        let loaded =
            indices.clone().filter(|i| self.pool[*i].in_flight > hot).max_by_key(|i| self.pool[*i].in_flight);
        let slow = || indices.max_by(|a, b| self.pool[*a].latency.total_cmp(&self.pool[*b].latency));
        let worst = loaded.or_else(slow);
        worst.map(|index| self.pool.swap_remove(index));
    }

    fn open(&self, server: usize, now: f64) -> bool {
        !self.settings.reports || self.failures[server].1 <= now
    }
}

impl Balancer for Prequal {
    fn pick(&mut self, now: f64, avoid: Option<usize>) -> usize {
        self.pool.retain(|probe| now - probe.at <= 1.0);
        let hot = self.threshold();
        let usable = |index: &usize| {
            let probe = &self.pool[*index];
            Some(probe.server) != avoid && self.open(probe.server, now)
        };
        let all = (0..self.pool.len()).filter(usable);
        let cold = all
            .clone()
            .filter(|index| self.pool[*index].in_flight <= hot)
            .min_by(|a, b| self.pool[*a].latency.total_cmp(&self.pool[*b].latency));
        let best = cold.or_else(|| all.min_by_key(|index| self.pool[*index].in_flight));
        let server = match best {
            Some(index) if self.pool.len() >= 2 => {
                let probe = &mut self.pool[index];
                probe.in_flight += 1;
                probe.uses = probe.uses.saturating_sub(1);
                let (server, used_up) = (probe.server, probe.uses == 0);
                if used_up {
                    self.pool.swap_remove(index);
                }
                server
            }
            _ => {
                let any = || self.present[self.rng.below(self.present.len() as u32) as usize];
                let draws: Vec<usize> = (0..32).map(|_| any()).collect();
                let good = draws.iter().find(|server| Some(**server) != avoid && self.open(**server, now));
                *good.unwrap_or(&draws[0])
            }
        };
        self.due_removals += self.settings.removals;
        while self.due_removals >= 1.0 {
            self.due_removals -= 1.0;
            if self.oldest {
                self.remove_oldest()
            } else {
                self.remove_worst(hot)
            }
            self.oldest = !self.oldest;
        }
        server
    }

    fn sent(&mut self, _: usize, _: f64) {}

    fn ended(&mut self, server: usize, now: f64, _: f64, end: End, report: &Report) {
        if !self.settings.reports {
            return;
        }
        let (run, until, wait) = &mut self.failures[server];
        match end {
            End::Well => *run = 0,
            End::Cancelled => return,
            End::Failed => {
                *run += 1;
                if *run >= 5 && *until <= now {
                    *until = now + *wait;
                    *wait = (*wait * 2.0).min(30.0);
                }
                self.pool.retain(|probe| probe.server != server);
                return;
            }
        }
        if self.present.contains(&server) {
            self.add(server, now, report);
        }
    }

    fn probes(&mut self, _: f64, out: &mut Vec<usize>) {
        self.due_probes += self.settings.probes;
        while self.due_probes >= 1.0 {
            self.due_probes -= 1.0;
            for _ in 0..64 {
                let server = self.present[self.rng.below(self.present.len() as u32) as usize];
                if !out.contains(&server) {
                    out.push(server);
                    break;
                }
            }
        }
    }

    fn probed(&mut self, server: usize, now: f64, report: &Report) {
        if self.present.contains(&server) {
            self.add(server, now, report);
        }
    }

    fn member(&mut self, server: usize, _: f64, present: bool) {
        self.present.retain(|other| *other != server);
        self.pool.retain(|probe| probe.server != server);
        if present {
            self.present.push(server);
            self.failures[server] = (0, 0.0, 1.0);
        }
    }
}
