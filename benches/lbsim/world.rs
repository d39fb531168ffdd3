//! The simulated world: clients that choose, servers that work, and a clock that jumps from event to event.
//!
//! A run is a function of plan, balancer and seed. Arrivals, work and faults come from streams of their own, so every
//! balancer meets the same ones.

use crate::server::{Model, Server};
use enmesh::stdx::rng::Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a response tells of its server, for the balancers that want to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Requests in flight there when it left.
    pub in_flight: u32,
    /// The latency to expect at that load, in seconds.
    pub latency: f64,
    /// What this request alone took, without waiting, in seconds.
    pub service: f64,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Well,
    Failed,
    /// Its caller has another answer already.
    Cancelled,
}

/// A client's choice of servers.
pub trait Balancer {
    /// A server, another one than `avoid` if there is one.
    fn pick(&mut self, now: f64, avoid: Option<usize>) -> usize;
    /// A request was sent.
    fn sent(&mut self, server: usize, now: f64);
    /// It ended.
    fn ended(&mut self, server: usize, now: f64, sent: f64, end: End, report: &Report);
    /// The servers to ask how they are, after a request was sent.
    fn probes(&mut self, _now: f64, _out: &mut Vec<usize>) {}
    /// Such a server answered.
    fn probed(&mut self, _server: usize, _now: f64, _report: &Report) {}
    /// A tenth of a second passed.
    fn tick(&mut self, _now: f64) {}
    /// A server came or went.
    fn member(&mut self, server: usize, now: f64, present: bool);
}

/// The work of one request, in seconds on an idle server of speed 1.
#[derive(Debug, Clone)]
pub enum Work {
    Exponential(f64),
    /// Normal with a standard deviation of its mean, cut off at nothing (Prequal's testbed).
    Cut(f64),
    /// Log-normal of this mean and this sigma.
    HeavyTail(f64, f64),
    /// One of these.
    Measured(std::sync::Arc<Vec<f64>>),
    /// The second mean with this probability, else the first; both exponential.
    Mixed(f64, f64, f64),
}

impl Work {
    fn draw(&self, rng: &Rng) -> f64 {
        match self {
            Self::Exponential(mean) => exponential(rng, *mean),
            Self::Cut(mean) => (mean + mean * normal(rng)).max(mean * 0.02),
            Self::HeavyTail(mean, sigma) => (mean.ln() - sigma * sigma / 2.0 + sigma * normal(rng)).exp(),
            Self::Measured(all) => all[rng.below(all.len() as u32) as usize],
            Self::Mixed(usual, rare, share) => {
                let mean = if rng.unit() < *share { *rare } else { *usual };
                exponential(rng, mean)
            }
        }
    }
}

pub fn exponential(rng: &Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.unit()).ln()
}

fn normal(rng: &Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.unit()).cos()
}

/// Something that happens to a server.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Cores of a sharing server, or the speed of any other.
    Speed(f64),
    /// Every request takes exactly so long.
    Fixed(f64),
    /// Requests fail with this probability after so many seconds.
    Failing(f64, f64),
    Healthy,
    /// It leaves the fleet; what it has it finishes.
    Leave,
    /// It is there again, as a new one.
    Join,
}

/// How requests arrive.
#[derive(Debug, Clone, Copy)]
pub enum Arrivals {
    Even,
    Poisson,
    /// Poisson, at this multiple of the rate for a second, and at what keeps the mean for the three that follow.
    Bursts(f64),
}

/// When a request is sent a second time.
#[derive(Debug, Clone, Copy)]
pub struct Hedge {
    pub quantile: f64,
    pub budget: f64,
}

/// One scenario.
#[derive(Debug, Clone)]
pub struct Plan {
    pub clients: usize,
    pub rate: f64,
    pub arrivals: Arrivals,
    pub until: f64,
    /// Requests before this time are not counted.
    pub warm: f64,
    /// What lies between a client and a server of its zone, and of another, one way.
    pub net: [f64; 2],
    /// Clients and servers are dealt to so many zones in turn.
    pub zones: usize,
    pub deadline: f64,
    pub model: Model,
    pub work: Work,
    pub speeds: Vec<f64>,
    pub weights: Vec<u32>,
    pub changes: Vec<(f64, usize, Change)>,
    pub hedge: Option<Hedge>,
    /// The server whose share is reported.
    pub watched: Option<usize>,
    /// Servers estimate their latency for reports, which costs and which only Prequal reads.
    pub estimates: bool,
}

impl Plan {
    pub fn servers(&self) -> usize {
        self.speeds.len()
    }

    pub fn zone_of(&self, index: usize) -> usize {
        index % self.zones
    }

    fn way(&self, client: usize, server: usize) -> f64 {
        self.net[usize::from(self.zone_of(client) != self.zone_of(server))]
    }

    fn mean_gap(&self, now: f64) -> f64 {
        let rate = self.rate / self.clients as f64;
        match self.arrivals {
            Arrivals::Even | Arrivals::Poisson => 1.0 / rate,
            Arrivals::Bursts(factor) if now % 4.0 < 1.0 => 1.0 / (rate * factor),
            Arrivals::Bursts(factor) => 3.0 / (rate * (4.0 - factor)),
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Result {
    /// Seconds; a failure is infinite.
    pub latencies: Vec<f64>,
    pub in_time: u64,
    pub probes: u64,
    pub hedges: u64,
    pub watched: u64,
    pub far: u64,
    pub sent: u64,
}

impl Result {
    pub fn quantile(&mut self, share: f64) -> f64 {
        if self.latencies.is_empty() {
            return f64::NAN;
        }
        let rank = ((share * self.latencies.len() as f64).ceil() as usize).clamp(1, self.latencies.len());
        *self.latencies.select_nth_unstable_by(rank - 1, f64::total_cmp).1
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Arrive(u32),
    Reach(u32),
    /// A server finishes something; stale if its number moved on.
    Finish(u32, u32),
    Fail(u32),
    Answer(u32),
    ProbeReach(u32, u32),
    ProbeAnswer(u32, u32, u32, f32),
    Changed(u32),
    Tick,
    Hedge(u32),
}

pub struct Attempt {
    client: u32,
    pub server: u32,
    call: u32,
    sent: f64,
    pub work: f64,
    pub began: f64,
    report: Report,
    failed: bool,
}

struct Call {
    started: f64,
    done: bool,
    open: u8,
    attempts: [u32; 2],
}

struct World<'a> {
    plan: &'a Plan,
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    events: Vec<Event>,
    free: Vec<u32>,
    order: u64,
    servers: Vec<Server>,
    clients: Vec<Box<dyn Balancer>>,
    attempts: Vec<Attempt>,
    calls: Vec<Call>,
    work: Rng,
    faults: Rng,
    again: Rng,
    recent: Vec<f64>,
    hedge_after: f64,
    tokens: f64,
    result: Result,
}

/// Runs a plan. `make` makes the balancer of a client.
pub fn run(plan: &Plan, make: &dyn Fn(&Plan, usize, Rng) -> Box<dyn Balancer>, seed: u64) -> Result {
    let chance = Rng::seeded(seed.wrapping_mul(0x9E37_79B9).wrapping_add(1));
    let (work, faults, again, picks) = (chance.fork(), chance.fork(), chance.fork(), chance.fork());
    let mut world = World {
        plan,
        heap: BinaryHeap::new(),
        events: Vec::new(),
        free: Vec::new(),
        order: 0,
        servers: plan.speeds.iter().map(|speed| Server::new(plan.model, *speed)).collect(),
        clients: (0..plan.clients).map(|client| make(plan, client, picks.fork())).collect(),
        attempts: Vec::new(),
        calls: Vec::new(),
        work,
        faults,
        again,
        recent: Vec::new(),
        hedge_after: f64::INFINITY,
        tokens: 0.0,
        result: Result::default(),
    };
    for client in 0..plan.clients {
        let first = match plan.arrivals {
            Arrivals::Even => (client + 1) as f64 / plan.rate,
            Arrivals::Poisson | Arrivals::Bursts(_) => exponential(&world.work, plan.mean_gap(0.0)),
        };
        world.at(first, Event::Arrive(client as u32));
    }
    for (index, (time, ..)) in plan.changes.iter().enumerate() {
        world.at(*time, Event::Changed(index as u32));
    }
    world.at(0.1, Event::Tick);
    while let Some(Reverse((nanos, _, index))) = world.heap.pop() {
        world.free.push(index);
        world.happen(nanos as f64 / 1e9, world.events[index as usize]);
    }
    world.result
}

impl World<'_> {
    fn at(&mut self, time: f64, event: Event) {
        let index = match self.free.pop() {
            Some(index) => {
                self.events[index as usize] = event;
                index
            }
            None => {
                self.events.push(event);
                self.events.len() as u32 - 1
            }
        };
        self.order += 1;
        self.heap.push(Reverse(((time * 1e9).ceil() as u64, self.order, index)));
    }

    fn happen(&mut self, now: f64, event: Event) {
        match event {
            Event::Arrive(client) => self.arrive(client, now),
            Event::Hedge(call) => self.hedge(call, now),
            Event::Reach(attempt) => self.reach(attempt, now),
            Event::Finish(server, version) => self.finish(server, version, now),
            Event::Fail(attempt) => {
                let server = self.attempts[attempt as usize].server;
                let in_flight = self.servers[server as usize].leave();
                self.reply(attempt, in_flight, now);
            }
            Event::Answer(attempt) => self.answer(attempt, now),
            Event::ProbeReach(client, server) => {
                let server_at = &mut self.servers[server as usize];
                let (in_flight, latency) = (server_at.in_flight, server_at.estimate() as f32);
                let way = self.plan.way(client as usize, server as usize);
                self.at(now + way, Event::ProbeAnswer(client, server, in_flight, latency));
            }
            Event::ProbeAnswer(client, server, in_flight, latency) => {
                let report = Report { in_flight, latency: f64::from(latency), service: 0.0 };
                self.clients[client as usize].probed(server as usize, now, &report);
            }
            Event::Changed(index) => self.change(index, now),
            Event::Tick => {
                self.clients.iter_mut().for_each(|client| client.tick(now));
                if now < self.plan.until {
                    self.at(now + 0.1, Event::Tick);
                }
            }
        }
    }

    fn arrive(&mut self, client: u32, now: f64) {
        if now >= self.plan.until {
            return;
        }
        let work = self.plan.work.draw(&self.work);
        let mean = self.plan.mean_gap(now);
        let gap =
            if matches!(self.plan.arrivals, Arrivals::Even) { mean } else { exponential(&self.work, mean) };
        self.at(now + gap, Event::Arrive(client));
        let server = self.clients[client as usize].pick(now, None);
        let call = self.calls.len() as u32;
        let attempt = self.send(client, call, server, now, work);
        self.calls.push(Call { started: now, done: false, open: 1, attempts: [attempt, u32::MAX] });
        if let Some(hedge) = self.plan.hedge {
            self.tokens = (self.tokens + hedge.budget).min(50.0);
            if self.hedge_after.is_finite() {
                self.at(now + self.hedge_after, Event::Hedge(call));
            }
        }
        let mut targets = Vec::new();
        self.clients[client as usize].probes(now, &mut targets);
        self.result.probes += if now >= self.plan.warm { targets.len() as u64 } else { 0 };
        for server in targets {
            let way = self.plan.way(client as usize, server);
            self.at(now + way, Event::ProbeReach(client, server as u32));
        }
    }

    fn hedge(&mut self, call: u32, now: f64) {
        let at = &self.calls[call as usize];
        if at.done || self.tokens < 1.0 || at.attempts[1] != u32::MAX {
            return;
        }
        self.tokens -= 1.0;
        let first = &self.attempts[at.attempts[0] as usize];
        let (client, before, mut work) = (first.client, first.server as usize, first.work);
        if matches!(self.plan.work, Work::Measured(_)) {
            work = self.plan.work.draw(&self.again);
        }
        let server = self.clients[client as usize].pick(now, Some(before));
        let attempt = self.send(client, call, server, now, work);
        let at = &mut self.calls[call as usize];
        at.attempts[1] = attempt;
        at.open += 1;
        self.result.hedges += 1;
    }

    fn send(&mut self, client: u32, call: u32, server: usize, now: f64, work: f64) -> u32 {
        let attempt = self.attempts.len() as u32;
        self.clients[client as usize].sent(server, now);
        let (server_at, report) = (server as u32, Report::default());
        let made =
            Attempt { client, server: server_at, call, sent: now, work, began: now, report, failed: false };
        self.attempts.push(made);
        if now >= self.plan.warm {
            self.result.sent += 1;
            self.result.watched += u64::from(Some(server) == self.plan.watched);
            self.result.far += u64::from(self.plan.zone_of(client as usize) != self.plan.zone_of(server));
        }
        self.at(now + self.plan.way(client as usize, server), Event::Reach(attempt));
        attempt
    }

    fn reach(&mut self, attempt: u32, now: f64) {
        let at = &mut self.attempts[attempt as usize];
        at.began = now;
        let server = &mut self.servers[at.server as usize];
        if let Some((share, after)) = server.failing
            && self.faults.unit() < share
        {
            at.failed = true;
            server.in_flight += 1;
            return self.at(now + after, Event::Fail(attempt));
        }
        let (index, work) = (at.server, at.work);
        if let Some((due, version)) = server.take(attempt, work, now) {
            self.at(due, Event::Finish(index, version));
        }
    }

    fn finish(&mut self, index: u32, version: u32, now: f64) {
        let mut done = Vec::new();
        let next = self.servers[index as usize].finish(version, now, &mut done);
        for (attempt, began) in done {
            let server = &mut self.servers[index as usize];
            let at = &self.attempts[attempt as usize];
            let (began, arrived) = (began.unwrap_or(at.began), at.began);
            server.learn(now - arrived);
            let (in_flight, latency) =
                (server.in_flight, if self.plan.estimates { server.estimate() } else { 0.0 });
            let service = if self.plan.model == Model::Shared { at.work } else { now - began };
            self.attempts[attempt as usize].report = Report { in_flight, latency, service };
            self.reply(attempt, in_flight, now);
        }
        for (due, version) in next {
            self.at(due, Event::Finish(index, version));
        }
    }

    fn reply(&mut self, attempt: u32, in_flight: u32, now: f64) {
        let at = &mut self.attempts[attempt as usize];
        at.report.in_flight = in_flight;
        let way = self.plan.way(at.client as usize, at.server as usize);
        self.at(now + way, Event::Answer(attempt));
    }

    fn answer(&mut self, attempt: u32, now: f64) {
        let at = &self.attempts[attempt as usize];
        let call = &mut self.calls[at.call as usize];
        let twin = call.attempts.into_iter().find(|other| *other != attempt && *other != u32::MAX);
        if call.done && call.open == 0 {
            return;
        }
        let end = if at.failed { End::Failed } else { End::Well };
        self.clients[at.client as usize].ended(at.server as usize, now, at.sent, end, &at.report);
        call.open -= 1;
        if call.done || at.failed && call.open > 0 {
            return;
        }
        call.done = true;
        let latency = now - call.started;
        let counted = call.started >= self.plan.warm;
        if let (Some(twin), true) = (twin, call.open > 0) {
            call.open = 0;
            let other = &self.attempts[twin as usize];
            let report = Report::default();
            self.clients[other.client as usize].ended(
                other.server as usize,
                now,
                other.sent,
                End::Cancelled,
                &report,
            );
        }
        if counted {
            let latency = if at.failed { f64::INFINITY } else { latency };
            self.result.latencies.push(latency);
            self.result.in_time += u64::from(latency <= self.plan.deadline);
        }
        if let Some(hedge) = self.plan.hedge {
            self.recent.push(latency);
            if self.recent.len() == 1000 {
                self.recent.sort_by(f64::total_cmp);
                self.hedge_after = self.recent[(hedge.quantile * 999.0) as usize];
                self.recent.clear();
            }
        }
    }

    fn change(&mut self, index: u32, now: f64) {
        let (_, server, change) = self.plan.changes[index as usize];
        match change {
            Change::Leave | Change::Join => {
                let present = matches!(change, Change::Join);
                self.clients.iter_mut().for_each(|client| client.member(server, now, present));
            }
            Change::Speed(speed) => {
                if let Some((due, version)) = self.servers[server].speed(speed, now) {
                    self.at(due, Event::Finish(server as u32, version));
                }
            }
            Change::Fixed(secs) => self.servers[server].fixed = Some(secs),
            Change::Failing(share, after) => self.servers[server].failing = Some((share, after)),
            Change::Healthy => {
                self.servers[server].fixed = None;
                self.servers[server].failing = None;
                let speed = self.plan.speeds[server];
                if let Some((due, version)) = self.servers[server].speed(speed, now) {
                    self.at(due, Event::Finish(server as u32, version));
                }
            }
        }
    }
}
