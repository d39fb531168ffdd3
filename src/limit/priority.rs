//! Floor 2: what is refused first when there is too much.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The request header that says how critical a request is: one of the words of [`Priority`].
pub static HEADER: HeaderName = HeaderName::from_static("x-enmesh-criticality");

/// How critical a request is (Google, "Site Reliability Engineering", ch. 21). When there is too much, the lesser ones
/// wait longer and are refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// May be refused now and then, such as a batch job that will ask again.
    Sheddable,
    /// May be refused in part, such as what fills a page that is still of use without it.
    SheddablePlus,
    /// Somebody waits for it. What says nothing is that.
    #[default]
    Critical,
    /// Money is lost without it.
    CriticalPlus,
}

impl Priority {
    /// All, the least important first.
    pub const ALL: [Self; 4] = [Self::Sheddable, Self::SheddablePlus, Self::Critical, Self::CriticalPlus];

    /// Its word in [`HEADER`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sheddable => "sheddable",
            Self::SheddablePlus => "sheddable-plus",
            Self::Critical => "critical",
            Self::CriticalPlus => "critical-plus",
        }
    }

    /// Of a number as callers give it: 0 is refused first; 3 and more is [`CriticalPlus`](Self::CriticalPlus).
    pub fn from_level(level: u8) -> Self {
        match level {
            0 => Self::Sheddable,
            1 => Self::SheddablePlus,
            2 => Self::Critical,
            _ => Self::CriticalPlus,
        }
    }

    /// Its place among [`ALL`](Self::ALL).
    pub fn level(self) -> u8 {
        self as u8
    }

    /// What a request says; `None` when it says nothing, or an unknown word. Of several the least important counts.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        if headers.is_empty() {
            return None;
        }
        let word = |value: &HeaderValue| {
            Self::ALL.into_iter().find(|priority| value.as_bytes() == priority.as_str().as_bytes())
        };
        headers.get_all(&HEADER).iter().filter_map(word).min()
    }

    /// Says it in a request.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(&HEADER, HeaderValue::from_static(self.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_and_read_and_what_nobody_knows_is_nothing() {
        for priority in Priority::ALL {
            let mut headers = HeaderMap::new();
            priority.write(&mut headers);
            assert_eq!(Priority::read(&headers), Some(priority));
            assert_eq!(Priority::from_level(priority.level()), priority);
        }
        let mut headers = HeaderMap::new();
        assert_eq!(Priority::read(&headers), None);
        headers.append(&HEADER, HeaderValue::from_static("urgent"));
        assert_eq!(Priority::read(&headers), None);
        headers.append(&HEADER, HeaderValue::from_static("critical-plus"));
        headers.append(&HEADER, HeaderValue::from_static("sheddable"));
        assert_eq!(Priority::read(&headers), Some(Priority::Sheddable), "nobody gains by saying it twice");
        assert_eq!(Priority::from_level(200), Priority::CriticalPlus);
    }
}
