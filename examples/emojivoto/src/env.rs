//! Settings from the environment, under the names that emojivoto has always used. A fault names the variable, its
//! value and what would do.

use std::time::Duration;

/// Reads variables from wherever `lookup` finds them.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Env<'a> {
    /// Variables as `lookup` answers; an empty one counts as unset, as it always has.
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup }
    }

    /// The variable's text, if set.
    pub fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// The text of a variable that must be set.
    pub fn required(&self, name: &str, example: &str) -> Result<String, String> {
        self.text(name).ok_or_else(|| format!("{name} is not set: set it, for example {name}={example}"))
    }

    /// A port to listen at; 0 lets the system choose.
    pub fn port(&self, name: &str) -> Result<Option<u16>, String> {
        self.parsed(name, "a port, 0 to 65535", |text| text.parse().ok())
    }

    /// A share, 0 to 1.
    pub fn share(&self, name: &str) -> Result<Option<f64>, String> {
        self.parsed(name, "a number from 0 to 1", share)
    }

    /// Something each second, at least 1.
    pub fn rate(&self, name: &str) -> Result<Option<u32>, String> {
        self.parsed(name, "a whole number, at least 1", rate)
    }

    /// Whole seconds.
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, String> {
        self.parsed(name, "whole seconds", |text| text.parse().ok().map(Duration::from_secs))
    }

    /// A duration as Go writes it.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        self.parsed(name, "a duration such as 250ms or 1.5s", duration)
    }

    fn parsed<T>(
        &self,
        name: &str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| format!("{name}={text} cannot be used: write {wanted}"))
    }
}

/// A share, 0 to 1.
pub fn share(text: &str) -> Option<f64> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share))
}

/// A whole number each second, at least 1; at most 10 000, which is more than a demo can send.
pub fn rate(text: &str) -> Option<u32> {
    text.parse().ok().filter(|rate| (1..=10_000).contains(rate))
}

/// A duration as Go writes it, `1m30.5s`; at most a day.
pub fn duration(text: &str) -> Option<Duration> {
    enmesh::profile::duration::go(text).ok().filter(|time| *time <= Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        let check = |text, millis: Option<u64>| {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        };
        check("0", Some(0));
        check("250ms", Some(250));
        check("1m30.5s", Some(90_500));
        check(".5s", Some(500));
        check("1h", Some(3_600_000));
        for bad in ["", "5", "-1s", "1d", "s", "1.2.3s", "25h", "1 s"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_fault_names_the_variable_its_value_and_the_remedy() {
        let lookup = |name: &str| match name {
            "FAILURE_RATE" => Some("2".to_owned()),
            "GRPC_PORT" => Some("eighty".to_owned()),
            _ => Some(String::new()),
        };
        let env = Env::new(&lookup);
        assert_eq!(
            env.share("FAILURE_RATE").unwrap_err(),
            "FAILURE_RATE=2 cannot be used: write a number from 0 to 1"
        );
        assert!(env.port("GRPC_PORT").unwrap_err().starts_with("GRPC_PORT=eighty cannot be used"));
        assert_eq!(env.rate("REQUEST_RATE"), Ok(None));
        assert!(env.required("WEB_HOST", "web-svc:80").unwrap_err().contains("WEB_HOST is not set"));
    }
}
