//! Floor 2: how a latency fades with time, in a dozen instructions instead of a call of `exp`.

/// Steps of one halving.
const STEPS: usize = 256;
/// What is left after so many steps and a half: the middle of each step, so that the error is the least.
static LEFT: [f32; STEPS] = left();
/// The binary places of a count of halvings.
const PLACES: u32 = 48;
/// The most halvings: from 1 µs that many leave a float that is not yet denormal.
const HALVINGS_MAX: f32 = 80.0;

/// How fast something is forgotten: `exp(-age / decay)` as `2^-halvings`, of which the whole part is subtracted from
/// the float's exponent and the rest looked up. The result is off by at most 0.14 %, half a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fade {
    /// Halvings in a millisecond, in 2^-48.
    per_ms: u64,
    /// The largest age that is computed so.
    age_max: u32,
}

impl Fade {
    /// With the time constant `decay_ms`, in milliseconds, at least 1.
    pub(crate) fn new(decay_ms: f32) -> Self {
        let half_life = f64::from(decay_ms.max(1.0)) * std::f64::consts::LN_2;
        let age_max = (f64::from(HALVINGS_MAX) * half_life).min(f64::from(u32::MAX / 2)) as u32;
        Self { per_ms: ((1u64 << PLACES) as f64 / half_life) as u64, age_max }
    }

    /// What is left of `secs` (1 µs or more) after `age` milliseconds; `None` if that is next to nothing, or less
    /// than no time.
    #[inline(always)]
    pub(crate) fn left_of(self, secs: f32, age: u32) -> Option<f32> {
        if age > self.age_max {
            return None;
        }
        let halvings = u64::from(age) * self.per_ms;
        let step = (halvings >> (PLACES - STEPS.ilog2())) as usize % STEPS;
        let whole = (halvings >> PLACES) as u32;
        Some(f32::from_bits(secs.to_bits().wrapping_sub(whole << 23)) * LEFT[step])
    }
}

const fn left() -> [f32; STEPS] {
    /// 2^(-1/512).
    const HALF_STEP: f64 = 0.998_647_112_890_970_2;
    let mut table = [0.0; STEPS];
    let (mut step, mut left) = (0, HALF_STEP);
    while step < STEPS {
        table[step] = left as f32;
        left *= HALF_STEP * HALF_STEP;
        step += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Half a step of 2^(1/256), and some roundings.
    const ERROR: f64 = 0.0014;

    fn check(secs: f32, decay_ms: f32, age: u32) {
        let exact = f64::from(secs) * (-f64::from(age) / f64::from(decay_ms)).exp();
        match Fade::new(decay_ms).left_of(secs, age) {
            Some(found) => {
                let error = (f64::from(found) / exact - 1.0).abs();
                assert!(error <= ERROR, "{secs} s, {age} of {decay_ms} ms: {error}");
            }
            None => assert!(exact < f64::from(secs) * 1e-24 || age > u32::MAX / 2, "{age} of {decay_ms} ms"),
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_exp_leaves(
            secs in 1e-6f32..3600.0, decay_ms in 1.0f32..1e8, share in 0.0f64..1.2, age in any::<u32>(),
        ) {
            check(secs, decay_ms, (f64::from(decay_ms) * share * 60.0) as u32);
            check(secs, decay_ms, (f64::from(decay_ms) * share) as u32);
            check(secs, decay_ms, age);
        }
    }

    #[test]
    fn the_ends_of_each_step_are_within_the_error() {
        let halving = 10_000.0 * std::f64::consts::LN_2;
        for step in 0..=3 * STEPS {
            let age = (step as f64 / STEPS as f64 * halving) as u32;
            (age..age + 2).for_each(|age| check(0.03, 10_000.0, age));
        }
        check(0.03, 0.0, u32::MAX);
        check(0.03, f32::MAX, 1000);
    }
}
