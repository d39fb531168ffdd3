//! Floor 2: bounds all retries of a service together.

use crate::profile::settings::BudgetSettings;
use crate::retry::window::Window;
use crate::stdx::gcra::{Gcra, Rate};
use crate::stdx::sync::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The budget when nothing is said: a fifth of what went well in the last second, plus one a second of which ten may
/// come at once.
///
/// A fifth covers every request when one attempt in ten fails, three attempts each. It is forgotten after a second,
/// because ten seconds bank two seconds' worth of traffic and spend it at the worst moment (performance.md §5.3), and
/// only successes earn it, so a service that is down gets one retry a second. Ten at once let a quiet client use all
/// its attempts.
pub const DEFAULT: BudgetSettings =
    BudgetSettings::Recent { ratio_ppm: 200_000, min_per_second: 1, burst: 10 };

/// How long [`BudgetSettings::Recent`] remembers.
const RECENT: Duration = Duration::from_secs(1);

/// The memory of a budget. One is shared by all who send to a service, and it survives updates whose settings are
/// equal. Without locks; exact to the millionth of the ratio.
///
/// Each judged attempt is told to the budget once: [`deposit`](Self::deposit) when it needs no other,
/// [`withdraw`](Self::withdraw) when it asks for another, [`failure`](Self::failure) when it failed and may not ask.
#[derive(Debug)]
pub struct Budget {
    settings: BudgetSettings,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Windowed(Window),
    Recent { window: Window, floor: Gcra },
    Active { requests: AtomicU64, retries: AtomicU64, ratio_ppm: u32, min: u64 },
    Bucket { tokens: AtomicU32, max: u32, ratio: u32 },
}

/// A thousandth of a token is the unit of [`BudgetSettings::TokenBucket`].
const TOKEN: u32 = 1000;

impl Budget {
    /// A budget without history.
    pub fn new(settings: &BudgetSettings) -> Self {
        let form = match *settings {
            BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl } => {
                // Whole seconds, as Linkerd counts its reserve.
                Form::Windowed(Window::new(
                    ratio_ppm,
                    u64::from(min_per_second) * ttl.as_secs().min(3600),
                    ttl,
                ))
            }
            BudgetSettings::Recent { ratio_ppm, min_per_second, burst } => Form::Recent {
                window: Window::new(ratio_ppm, 0, RECENT),
                floor: Gcra::new(Rate::new(min_per_second, Duration::from_secs(1), burst)),
            },
            BudgetSettings::ActiveShare { ratio_ppm, min_concurrent } => Form::Active {
                requests: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                ratio_ppm,
                min: u64::from(min_concurrent),
            },
            BudgetSettings::TokenBucket { max_milli, ratio_milli } => {
                Form::Bucket { tokens: AtomicU32::new(max_milli), max: max_milli, ratio: ratio_milli }
            }
        };
        Self { settings: *settings, form }
    }

    /// What it was made from.
    pub fn settings(&self) -> &BudgetSettings {
        &self.settings
    }

    /// A request begins; the stake is kept for as long as it is in flight. Costs nothing but for
    /// [`BudgetSettings::ActiveShare`].
    #[inline]
    pub fn enter(self: &Arc<Self>) -> Stake {
        match &self.form {
            Form::Active { requests, .. } => {
                requests.fetch_add(1, Ordering::Relaxed);
                Stake(Some(Share { budget: Arc::clone(self), retrying: false }))
            }
            Form::Windowed(_) | Form::Recent { .. } | Form::Bucket { .. } => Stake(None),
        }
    }

    /// An attempt ended and needs no other. `now` may be the call's beginning, which spares a look at the clock: what
    /// it earns then ends sooner.
    #[inline]
    pub fn deposit(&self, now: Instant) {
        match &self.form {
            Form::Windowed(window) | Form::Recent { window, .. } => window.earn(now),
            Form::Bucket { tokens, max, ratio } => {
                // A full bucket is only read, so that healthy threads share the word.
                let fill = |held: u32| (held < *max).then(|| held.saturating_add(*ratio).min(*max));
                let _ = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fill);
            }
            Form::Active { .. } => {}
        }
    }

    /// An attempt failed in a way that is worth another, but something else forbids it.
    #[inline]
    pub fn failure(&self) {
        if let Form::Bucket { tokens, .. } = &self.form {
            drain(tokens);
        }
    }

    /// An attempt failed and asks for another: whether there may be one. `stake` is what [`enter`](Self::enter) gave
    /// for this request.
    pub fn withdraw(&self, stake: &mut Stake, now: Instant) -> bool {
        match &self.form {
            Form::Windowed(window) => window.take(now),
            Form::Recent { window, floor } => window.take(now) || floor.admit(now).is_ok(),
            Form::Bucket { tokens, max, .. } => drain(tokens) > max / 2,
            Form::Active { requests, retries, ratio_ppm, min } => {
                let Some(share) = &mut stake.0 else { return false };
                if share.retrying {
                    retries.fetch_sub(1, Ordering::Relaxed);
                }
                let allowed = allowed(requests, *ratio_ppm, *min);
                let take = |busy: u64| (busy < allowed).then_some(busy + 1);
                share.retrying = retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
                share.retrying
            }
        }
    }

    /// How many retries it would grant at once; for metrics.
    pub fn level(&self, now: Instant) -> u64 {
        match &self.form {
            Form::Windowed(window) => window.level(now),
            Form::Recent { window, floor } => window.level(now).saturating_add(floor.level(now)),
            Form::Bucket { tokens, max, .. } => {
                let above = tokens.load(Ordering::Relaxed).saturating_sub(max / 2 + 1);
                u64::from(above / TOKEN)
            }
            Form::Active { requests, retries, ratio_ppm, min } => {
                allowed(requests, *ratio_ppm, *min).saturating_sub(retries.load(Ordering::Relaxed))
            }
        }
    }
}

fn allowed(requests: &AtomicU64, ratio_ppm: u32, min: u64) -> u64 {
    let share = requests.load(Ordering::Relaxed).saturating_mul(u64::from(ratio_ppm)) / 1_000_000;
    share.max(min)
}

/// Takes a token, or what is left of one, and says what remains.
fn drain(tokens: &AtomicU32) -> u32 {
    let less = |held: u32| Some(held.saturating_sub(TOKEN));
    let held = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
    held.saturating_sub(TOKEN)
}

/// A request's part in what is in flight; dropped when the request has ended.
#[derive(Debug, Default)]
pub struct Stake(Option<Share>);

#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    retrying: bool,
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Form::Active { requests, retries, .. } = &self.budget.form {
            requests.fetch_sub(1, Ordering::Relaxed);
            if self.retrying {
                retries.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use proptest::prelude::*;

    fn granted(budget: &Budget, times: u32, now: Instant) -> u32 {
        (0..times).map(|_| u32::from(budget.withdraw(&mut Stake::default(), now))).sum()
    }

    fn windowed(ratio_ppm: u32, min_per_second: u32, ttl: u64) -> Budget {
        Budget::new(&BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn the_ratio_is_exact() {
        let now = clock::now();
        for ppm in [150_000, 300_000, 400_000, 600_000, 700_000, 800_000, 900_000, 1_000, 3_000_000, 0] {
            let budget = windowed(ppm, 0, 10);
            (0..1000).for_each(|_| budget.deposit(now));
            assert_eq!(granted(&budget, 5000, now), ppm / 1000, "{ppm}");
        }
    }

    #[test]
    fn a_service_that_is_down_gets_one_retry_a_second() {
        let (budget, start) = (Budget::new(&DEFAULT), clock::now());
        for ms in 0..1000 {
            budget.deposit(start + Duration::from_millis(ms));
        }
        // Down from now on: 0.2 of the last second, ten at once, then one a second.
        let seconds = |from: u64, to: u64| {
            (from * 100..to * 100)
                .map(|n| granted(&budget, 300, start + Duration::from_millis(n * 10)))
                .sum::<u32>()
        };
        assert_eq!(seconds(1, 2), 200 + 10);
        assert_eq!(seconds(2, 102), 100);
    }

    #[test]
    fn a_share_of_what_is_in_flight() {
        let budget =
            Arc::new(Budget::new(&BudgetSettings::ActiveShare { ratio_ppm: 200_000, min_concurrent: 3 }));
        let now = clock::now();
        let mut stakes: Vec<Stake> = (0..20).map(|_| budget.enter()).collect();
        let ask = |stakes: &mut [Stake]| {
            stakes.iter_mut().map(|s| usize::from(budget.withdraw(s, now))).sum::<usize>()
        };
        assert_eq!(ask(&mut stakes), 4);
        // The same requests ask again: each gives its place back first.
        assert_eq!(ask(&mut stakes[..2]), 2);
        assert_eq!(budget.level(now), 0);
        stakes.truncate(5);
        assert_eq!(budget.level(now), 0);
        drop(stakes);
        assert_eq!(budget.level(now), 3);
    }

    #[test]
    fn a_token_bucket_grants_above_its_half() {
        let budget = Budget::new(&BudgetSettings::TokenBucket { max_milli: 10_000, ratio_milli: 100 });
        let now = clock::now();
        assert_eq!((budget.level(now), granted(&budget, 20, now)), (4, 4));
        for _ in 0..50 {
            budget.deposit(now);
        }
        assert_eq!(granted(&budget, 1, now), 0);
        for _ in 0..1000 {
            budget.deposit(now);
        }
        budget.failure();
        assert_eq!(granted(&budget, 20, now), 3);
    }

    #[test]
    fn the_last_one_is_granted_once() {
        for _ in 0..200 {
            let (budget, now) = (windowed(0, 3, 1), clock::now());
            let sum: u32 = std::thread::scope(|scope| {
                let race: Vec<_> = (0..4).map(|_| scope.spawn(|| granted(&budget, 3, now))).collect();
                race.into_iter().map(|one| one.join().unwrap()).sum()
            });
            assert_eq!(sum, 3);
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Deposit,
        Withdraw,
        Advance(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => Just(Op::Deposit),
            4 => Just(Op::Withdraw),
            1 => (0u64..700).prop_map(Op::Advance),
        ];
        proptest::collection::vec(op, 1..600)
    }

    /// Checks in every window of a run that `retries ≤ ratio · (deposits of it and `memory` before) + min · (T + ttl)`.
    fn law(
        settings: BudgetSettings,
        ops: &[Op],
        ratio: f64,
        memory: u64,
        min: f64,
        ttl: f64,
    ) -> Result<(), TestCaseError> {
        let (budget, start, mut at) = (Budget::new(&settings), clock::now(), 0u64);
        let (mut deposits, mut retries) = (Vec::new(), Vec::new());
        for op in ops {
            let now = start + Duration::from_millis(at);
            match op {
                Op::Deposit => {
                    budget.deposit(now);
                    deposits.push(at);
                }
                Op::Withdraw => {
                    let level = budget.level(now);
                    let granted = budget.withdraw(&mut Stake::default(), now);
                    prop_assert_eq!(granted, level > 0);
                    retries.extend(granted.then_some(at));
                }
                Op::Advance(ms) => at += ms,
            }
        }
        for (i, from) in retries.iter().enumerate() {
            for (j, to) in retries.iter().enumerate().skip(i) {
                let sent = (j - i + 1) as f64;
                let offered = deposits.iter().filter(|d| **d + memory >= *from && **d <= *to).count() as f64;
                let bound = offered * ratio + min * ((to - from) as f64 / 1000.0 + ttl) + 1.0;
                prop_assert!(sent <= bound, "{sent} > {bound} from {from} to {to}");
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_windowed_law_holds_in_every_window(ops in ops(), ppm in 0u32..1_500_000, min in 0u32..5, ttl in 1u64..5) {
            let settings = BudgetSettings::Windowed { ratio_ppm: ppm, min_per_second: min, ttl: Duration::from_secs(ttl) };
            law(settings, &ops, f64::from(ppm) / 1e6, ttl * 1000, f64::from(min), ttl as f64)?;
        }

        #[test]
        fn the_recent_law_holds_in_every_window(ops in ops(), ppm in 0u32..1_500_000, min in 1u32..5, burst in 1u32..10) {
            let settings = BudgetSettings::Recent { ratio_ppm: ppm, min_per_second: min, burst };
            let ttl = f64::from(burst) / f64::from(min);
            law(settings, &ops, f64::from(ppm) / 1e6, 1000, f64::from(min), ttl)?;
        }

        #[test]
        fn the_bucket_law_holds_in_every_window(ops in ops(), max in 1000u32..20_000, ratio in 0u32..1500) {
            let settings = BudgetSettings::TokenBucket { max_milli: max, ratio_milli: ratio };
            let budget = Budget::new(&settings);
            // The slow model: gRFC A6 in whole thousandths. Between two retries the bucket gained what deposits gave
            // and lost one token for each failure, so their number is bounded by half the bucket and the deposits.
            let (mut model, mut sent, mut deposits) = (max, 0u32, 0u32);
            for op in &ops {
                match op {
                    Op::Deposit => { budget.deposit(clock::now()); model = (model + ratio).min(max); deposits += 1; }
                    Op::Withdraw => {
                        model = model.saturating_sub(1000);
                        let granted = budget.withdraw(&mut Stake::default(), clock::now());
                        prop_assert_eq!(granted, model > max / 2);
                        sent += u32::from(granted);
                    }
                    Op::Advance(_) => { budget.failure(); model = model.saturating_sub(1000); }
                }
                prop_assert!(u64::from(sent) * 1000 <= u64::from(max / 2) + u64::from(deposits) * u64::from(ratio) + 1000);
            }
        }

        /// The slow model: every deposit and retry is remembered with its time.
        #[test]
        fn a_window_is_its_slow_model_within_a_slot(ops in ops(), ppm in 0u32..1_500_000, reserve in 0u64..5) {
            let (window, start, mut at) = (Window::new(ppm, reserve, Duration::from_secs(1)), clock::now(), 0u64);
            let (mut deposits, mut taken): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
            for op in &ops {
                match op {
                    Op::Deposit => { window.earn(start + Duration::from_millis(at)); deposits.push(at); }
                    Op::Advance(ms) => at += ms,
                    Op::Withdraw => {
                        let count = |times: &[u64], ttl: u64| times.iter().filter(|t| at - **t <= ttl).count() as u64;
                        let room = |deposits: u64, taken: u64| {
                            (deposits * u64::from(ppm) / 1_000_000 + reserve).saturating_sub(taken)
                        };
                        // A slot is 100 ms: deposits may end, and retries may stay, so much too early or too late.
                        let least = room(count(&deposits, 900), count(&taken, 1100));
                        let most = room(count(&deposits, 1000), count(&taken, 1000));
                        let level = window.level(start + Duration::from_millis(at));
                        prop_assert!(least <= level && level <= most, "{least} <= {level} <= {most}");
                        if window.take(start + Duration::from_millis(at)) { taken.push(at); }
                    }
                }
            }
        }
    }
}
