//! A simulated server: how it works off what it has.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// How a server works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// On all requests at once, each as long as its work (the harness of Finagle and Buoyant).
    Delay,
    /// On all at once; they share its cores, none using more than one.
    Shared,
    /// On so many at once, the rest waits in order.
    Queue(usize),
}

pub struct Server {
    model: Model,
    speed: f64,
    pub in_flight: u32,
    pub fixed: Option<f64>,
    pub failing: Option<(f64, f64)>,
    /// Work done for each request so far, since the beginning; and when that was true.
    virtual_time: f64,
    touched: f64,
    /// Of shared work: the virtual time of each one's end.
    sharing: BinaryHeap<Reverse<(u64, u32)>>,
    version: u32,
    waiting: VecDeque<(u32, f64)>,
    busy: usize,
    /// What runs of `Delay` and `Queue`, by the number of its end's event.
    running: Vec<(u32, u32, f64)>,
    /// The latest latencies by requests in flight, for Prequal's estimate.
    learned: Vec<VecDeque<f64>>,
}

const CLASSES: usize = 96;

fn class(in_flight: u32) -> usize {
    if in_flight < 48 {
        return in_flight as usize;
    }
    (48 + ((f64::from(in_flight) / 48.0).ln() * 16.0) as usize).min(CLASSES - 1)
}

impl Server {
    pub fn new(model: Model, speed: f64) -> Self {
        Self {
            model,
            speed,
            in_flight: 0,
            fixed: None,
            failing: None,
            virtual_time: 0.0,
            touched: 0.0,
            sharing: BinaryHeap::new(),
            version: 0,
            waiting: VecDeque::new(),
            busy: 0,
            running: Vec::new(),
            learned: vec![VecDeque::new(); CLASSES],
        }
    }

    /// One request is gone.
    pub fn leave(&mut self) -> u32 {
        self.in_flight -= 1;
        self.in_flight
    }

    /// A request came; when something ends, and the number of that.
    pub fn take(&mut self, attempt: u32, work: f64, now: f64) -> Option<(f64, u32)> {
        self.in_flight += 1;
        match self.model {
            Model::Delay => {
                let takes = self.fixed.unwrap_or(work / self.speed);
                Some(self.start(attempt, takes, now))
            }
            Model::Shared => {
                self.advance(now);
                self.sharing.push(Reverse((((self.virtual_time + work) * 1e9) as u64, attempt)));
                self.next_shared(now)
            }
            Model::Queue(workers) if self.busy < workers => {
                self.busy += 1;
                Some(self.start(attempt, work / self.speed, now))
            }
            Model::Queue(_) => {
                self.waiting.push_back((attempt, work));
                None
            }
        }
    }

    fn start(&mut self, attempt: u32, takes: f64, now: f64) -> (f64, u32) {
        self.version = self.version.wrapping_add(1);
        self.running.push((self.version, attempt, now));
        (now + takes, self.version)
    }

    /// Something should have ended; gives what did, with when its work began, and what ends next.
    pub fn finish(&mut self, version: u32, now: f64, done: &mut Vec<(u32, Option<f64>)>) -> Vec<(f64, u32)> {
        if self.model == Model::Shared {
            if version != self.version {
                return Vec::new();
            }
            self.advance(now);
            while let Some(Reverse((end, attempt))) = self.sharing.peek().copied() {
                if end as f64 / 1e9 > self.virtual_time + 4e-9 {
                    break;
                }
                self.sharing.pop();
                self.in_flight -= 1;
                done.push((attempt, None));
            }
            return self.next_shared(now).into_iter().collect();
        }
        let Some(index) = self.running.iter().position(|(number, ..)| *number == version) else {
            return Vec::new();
        };
        let (_, attempt, began) = self.running.swap_remove(index);
        self.in_flight -= 1;
        done.push((attempt, Some(began)));
        let mut next = Vec::new();
        if let Model::Queue(workers) = self.model {
            self.busy -= 1;
            while self.busy < workers
                && let Some((attempt, work)) = self.waiting.pop_front()
            {
                self.busy += 1;
                next.push(self.start(attempt, work / self.speed, now));
            }
        }
        next
    }

    /// Another speed, which of queues holds for what begins from now on.
    pub fn speed(&mut self, speed: f64, now: f64) -> Option<(f64, u32)> {
        if self.model != Model::Shared {
            self.speed = speed;
            return None;
        }
        self.advance(now);
        self.speed = speed;
        self.next_shared(now)
    }

    fn pace(&self) -> f64 {
        (self.speed / self.sharing.len() as f64).min(1.0)
    }

    fn advance(&mut self, now: f64) {
        if !self.sharing.is_empty() {
            self.virtual_time += self.pace() * (now - self.touched);
        }
        self.touched = now;
    }

    fn next_shared(&mut self, now: f64) -> Option<(f64, u32)> {
        self.version = self.version.wrapping_add(1);
        let Reverse((end, _)) = self.sharing.peek()?;
        let left = (*end as f64 / 1e9 - self.virtual_time).max(0.0);
        Some((now + 2e-9 + left / self.pace(), self.version))
    }

    pub fn learn(&mut self, latency: f64) {
        let latencies = &mut self.learned[class(self.in_flight + 1)];
        if latencies.len() == 16 {
            latencies.pop_front();
        }
        latencies.push_back(latency);
    }

    /// The median of recent latencies at about this load (Prequal, NSDI'24).
    pub fn estimate(&self) -> f64 {
        let here = class(self.in_flight);
        let near = (0..CLASSES).find_map(|distance| {
            let around = [here.checked_sub(distance), Some(here + distance)];
            around
                .into_iter()
                .flatten()
                .find(|class| self.learned.get(*class).is_some_and(|all| !all.is_empty()))
        });
        let Some(class) = near else { return 0.0 };
        let mut all: Vec<f64> = self.learned[class].iter().copied().collect();
        let middle = all.len() / 2;
        *all.select_nth_unstable_by(middle, f64::total_cmp).1
    }
}
