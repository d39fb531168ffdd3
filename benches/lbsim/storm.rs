//! The retry storm: servers at 0.8 of their capacity that are slow for ten seconds, and callers who try again. The
//! budgets are the product's own.

use crate::world::exponential;
use enmesh::limit::queue::{Ask, Pace, Pop, Push, Queue};
use enmesh::profile::settings::BudgetSettings;
use enmesh::retry::budget::{Budget, DEFAULT, Stake};
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SERVERS: usize = 20;
const WORKERS: usize = 4;
const WORK: f64 = 0.010;
const TIMEOUT: f64 = 0.250;
const UNTIL: usize = 120;
const ATTEMPTS: u32 = 4;
/// Who may wait at a server with admission.
const PLACES: usize = 1000;

/// How callers try again, and what servers do about it.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub name: &'static str,
    /// `None` is no retries at all.
    budget: Option<Option<BudgetSettings>>,
    /// What servers do about it.
    servers: Servers,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Servers {
    /// Everything in turn.
    Serve,
    /// They drop what is past its deadline when its turn comes.
    Deadlines,
    /// The product's own queue: it refuses what cannot end in time when it comes and when it is next, and serves the
    /// newest first while it stands (`src/limit/queue.rs`).
    Admission,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Shares of requests that went well while the servers were slow, in the ten seconds after, and from 60 s on.
    pub during: f64,
    pub after: f64,
    pub later: f64,
    /// Seconds from the end of the slowness until 99 % went well for good; infinite if never.
    pub recovery: f64,
    /// The most attempts per request in any second.
    pub attempts: f64,
}

pub fn policies() -> Vec<Policy> {
    let windowed =
        BudgetSettings::Windowed { ratio_ppm: 200_000, min_per_second: 10, ttl: Duration::from_secs(10) };
    let active = BudgetSettings::ActiveShare { ratio_ppm: 200_000, min_concurrent: 3 };
    let bucket = BudgetSettings::TokenBucket { max_milli: 10_000, ratio_milli: 100 };
    let policy = |name, budget, servers| Policy { name, budget, servers };
    let (serve, deadlines, admission) = (Servers::Serve, Servers::Deadlines, Servers::Admission);
    vec![
        policy("no retries", None, serve),
        policy("3 retries, no budget", Some(None), serve),
        policy("Linkerd's, Finagle's budget: 20 % of 10 s, 10 a second", Some(Some(windowed)), serve),
        policy("Envoy's budget: 20 % of what is active, 3", Some(Some(active)), serve),
        policy("gRPC's throttle: 10 tokens, 0.1", Some(Some(bucket)), serve),
        policy("**enmesh's default budget**", Some(Some(DEFAULT)), serve),
        policy("no retries, deadlines kept by servers", None, deadlines),
        policy("Linkerd's budget, deadlines kept by servers", Some(Some(windowed)), deadlines),
        policy("**enmesh's default budget, deadlines kept by servers**", Some(Some(DEFAULT)), deadlines),
        policy("no retries, deadlines and admission", None, admission),
        policy("Linkerd's budget, deadlines and admission", Some(Some(windowed)), admission),
        policy("3 retries, no budget, deadlines and admission", Some(None), admission),
        policy("**enmesh's default budget, deadlines and admission**", Some(Some(DEFAULT)), admission),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Arrive,
    Done(u32),
    TimedOut(u32),
    Speed(f64),
}

struct Attempt {
    call: u32,
    server: usize,
    sent: f64,
    /// When its work began.
    begun: f64,
    over: bool,
}

struct Call {
    started: f64,
    attempts: u32,
    stake: Option<Stake>,
    over: bool,
}

struct Storm {
    policy: Policy,
    budget: Option<Arc<Budget>>,
    begun: Instant,
    rng: Rng,
    speed: f64,
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Event>,
    attempts: Vec<Attempt>,
    calls: Vec<Call>,
    queues: Vec<VecDeque<u32>>,
    /// Those of servers with admission, and how fast each serves, by its own measurement.
    doors: Vec<Queue<u32>>,
    paces: Vec<Pace>,
    busy: Vec<usize>,
    /// For each second: requests, those that went well, attempts.
    seconds: Vec<[f64; 3]>,
}

pub fn run(policy: Policy, seed: u64) -> Outcome {
    let budget = policy.budget.flatten().map(|settings| Arc::new(Budget::new(&settings)));
    let mut storm = Storm {
        policy,
        budget,
        begun: clock::now(),
        rng: Rng::seeded(seed),
        speed: 1.0,
        heap: BinaryHeap::new(),
        events: Vec::new(),
        attempts: Vec::new(),
        calls: Vec::new(),
        queues: vec![VecDeque::new(); SERVERS],
        doors: (0..SERVERS).map(|_| Queue::new(PLACES)).collect(),
        paces: vec![Pace::default(); SERVERS],
        busy: vec![0; SERVERS],
        seconds: vec![[0.0; 3]; UNTIL + 10],
    };
    storm.at(0.0, Event::Arrive);
    storm.at(20.0, Event::Speed(0.5));
    storm.at(30.0, Event::Speed(1.0));
    while let Some(Reverse((nanos, _, index))) = storm.heap.pop() {
        let now = nanos as f64 / 1e9;
        if now > UNTIL as f64 + 2.0 {
            break;
        }
        storm.happen(now, storm.events[index]);
    }
    storm.outcome()
}

impl Storm {
    fn at(&mut self, time: f64, event: Event) {
        self.events.push(event);
        let index = self.events.len() - 1;
        self.heap.push(Reverse(((time * 1e9) as u64, index as u64, index)));
    }

    fn instant(&self, now: f64) -> Instant {
        self.begun + Duration::from_secs_f64(now)
    }

    fn happen(&mut self, now: f64, event: Event) {
        match event {
            Event::Speed(speed) => self.speed = speed,
            Event::Arrive if now >= UNTIL as f64 => {}
            Event::Arrive => {
                let rate = 0.8 * (SERVERS * WORKERS) as f64 / WORK;
                let gap = exponential(&self.rng, 1.0 / rate);
                self.at(now + gap, Event::Arrive);
                let stake = self.budget.as_ref().map(Budget::enter);
                self.calls.push(Call { started: now, attempts: 0, stake, over: false });
                self.seconds[now as usize][0] += 1.0;
                self.send(self.calls.len() as u32 - 1, now);
            }
            Event::Done(attempt) => self.done(attempt, now),
            Event::TimedOut(attempt) => {
                let it = &mut self.attempts[attempt as usize];
                if !it.over {
                    it.over = true;
                    let call = it.call;
                    self.failed(call, now);
                }
            }
        }
    }

    fn send(&mut self, call: u32, now: f64) {
        self.calls[call as usize].attempts += 1;
        self.seconds[now as usize][2] += 1.0;
        let server = self.rng.below(SERVERS as u32) as usize;
        let attempt = self.attempts.len() as u32;
        self.attempts.push(Attempt { call, server, sent: now, begun: now, over: false });
        self.at(now + TIMEOUT, Event::TimedOut(attempt));
        if self.policy.servers == Servers::Admission {
            let ask = Ask { deadline: Some(self.instant(now + TIMEOUT)), ..Ask::default() };
            let (pace, instant) = (self.paces[server], self.instant(now));
            if let Push::Refused(attempt, _) = self.doors[server].push(ask, attempt, pace, instant) {
                return self.refused(attempt, now);
            }
        } else {
            self.queues[server].push_back(attempt);
        }
        self.work(server, now);
    }

    /// The server says at once that it will not.
    fn refused(&mut self, attempt: u32, now: f64) {
        let it = &mut self.attempts[attempt as usize];
        if !std::mem::replace(&mut it.over, true) {
            let call = it.call;
            self.failed(call, now);
        }
    }

    fn work(&mut self, server: usize, now: f64) {
        while self.busy[server] < WORKERS
            && let Some(attempt) = self.next(server, now)
        {
            self.busy[server] += 1;
            self.attempts[attempt as usize].begun = now;
            let takes = exponential(&self.rng, WORK) / self.speed;
            self.at(now + takes, Event::Done(attempt));
        }
    }

    /// The attempt whose turn it is.
    fn next(&mut self, server: usize, now: f64) -> Option<u32> {
        let instant = self.instant(now);
        if self.policy.servers != Servers::Admission {
            let queue = &mut self.queues[server];
            let late = |sent: f64| self.policy.servers == Servers::Deadlines && now - sent > TIMEOUT;
            return std::iter::from_fn(|| queue.pop_front())
                .find(|it| !late(self.attempts[*it as usize].sent));
        }
        let pace = self.paces[server];
        loop {
            match self.doors[server].pop(pace, instant)? {
                Pop::Shed(attempt, _) => self.refused(attempt, now),
                // Whoever gave up has left.
                Pop::Next(attempt) if self.attempts[attempt as usize].over => {}
                Pop::Next(attempt) => {
                    while let Some(late) = self.doors[server].overdue(pace, instant) {
                        self.refused(late, now);
                    }
                    return Some(attempt);
                }
            }
        }
    }

    fn done(&mut self, attempt: u32, now: f64) {
        let it = &mut self.attempts[attempt as usize];
        let pace = &mut self.paces[it.server];
        let took = now - it.begun;
        let known = if pace.typical.is_zero() { took } else { pace.typical.as_secs_f64() };
        pace.typical = Duration::from_secs_f64(known * 0.95 + took * 0.05);
        pace.step = pace.typical / WORKERS as u32;
        let (server, over, call) = (it.server, it.over, it.call as usize);
        it.over = true;
        if !over && !self.calls[call].over {
            self.calls[call].over = true;
            self.calls[call].stake = None;
            self.seconds[self.calls[call].started as usize][1] += 1.0;
            if let Some(budget) = &self.budget {
                budget.deposit(self.instant(now));
            }
        }
        self.busy[server] -= 1;
        self.work(server, now);
    }

    fn failed(&mut self, call: u32, now: f64) {
        let instant = self.instant(now);
        let it = &mut self.calls[call as usize];
        let again = match (&self.policy.budget, &self.budget, &mut it.stake) {
            _ if it.attempts >= ATTEMPTS => {
                self.budget.as_ref().inspect(|budget| budget.failure());
                false
            }
            (Some(None), ..) => true,
            (Some(Some(_)), Some(budget), Some(stake)) => budget.withdraw(stake, instant),
            _ => false,
        };
        if again {
            self.send(call, now);
        } else {
            it.over = true;
            it.stake = None;
        }
    }

    fn outcome(&self) -> Outcome {
        let share = |from: usize, to: usize| {
            let sum = |column: usize| self.seconds[from..to].iter().map(|second| second[column]).sum::<f64>();
            sum(1) / sum(0).max(1.0)
        };
        let last_bad = (30..UNTIL - 2).rev().find(|second| share(*second, second + 1) < 0.99);
        let attempts = self.seconds[..UNTIL].iter().map(|second| second[2] / second[0].max(1.0));
        Outcome {
            during: share(20, 30),
            after: share(30, 40),
            later: share(60, 110),
            recovery: match last_bad {
                None => 0.0,
                Some(second) if second >= UNTIL - 5 => f64::INFINITY,
                Some(second) => (second - 29) as f64,
            },
            attempts: attempts.fold(0.0, f64::max),
        }
    }
}
