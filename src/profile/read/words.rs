//! Floor 1: reads the small words that conditions, actions and settings share.

use crate::profile::duration;
use crate::profile::matching::TextMatch;
use crate::profile::name::ServiceName;
use crate::profile::pattern;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::settings::HashKey;
use crate::profile::settings::Limit;
use crate::profile::settings::RateLimit;
use crate::profile::settings::RateScope;
use crate::profile::settings::Share;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// The longest time of a setting: a year. Whoever means "never" says `0s` or nothing.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A duration within `range`.
pub(crate) fn time(field: &Field<'_>, range: RangeInclusive<Duration>) -> Option<Duration> {
    let time = field.parse(duration::go)?;
    if range.contains(&time) {
        return Some(time);
    }
    let (least, most) = (duration::to_text(*range.start()), duration::to_text(*range.end()));
    field.must_be(&format!("a duration from {least} to {most}"))
}

/// A duration that is not zero.
pub(crate) fn some_time(field: &Field<'_>) -> Option<Duration> {
    time(field, Duration::from_nanos(1)..=TIME_MAX)
}

/// A time limit: nothing is "not said", `0s` is "none".
pub(crate) fn limit(field: &Field<'_>) -> Limit {
    match time(field, Duration::ZERO..=TIME_MAX) {
        None => Limit::Unset,
        Some(Duration::ZERO) => Limit::Disabled,
        Some(time) => Limit::After(time),
    }
}

/// A text that is not empty, shared.
pub(crate) fn name(field: &Field<'_>) -> Option<Arc<str>> {
    field.name().map(Arc::from)
}

/// A list of texts that are not empty.
pub(crate) fn names(field: &Field<'_>) -> Vec<Arc<str>> {
    field.each(|item| name(&item))
}

/// A service: `host` or `host:port`.
pub(crate) fn service(field: &Field<'_>) -> Option<ServiceName> {
    field.parse(|text| {
        text.parse().map_err(|bad: crate::profile::name::BadName| format!("a service ({})", bad.reason))
    })
}

/// A pattern that compiles.
pub(crate) fn regex(field: &Field<'_>) -> Option<Arc<str>> {
    field.parse(|text| pattern::check(text).map(|()| Arc::from(text)))
}

/// How a text is compared: a text for "equal", or one of `exact`, `prefix`, `suffix`, `contains`, `regex`.
pub(crate) fn text_match(field: &Field<'_>) -> Option<TextMatch> {
    if field.node().is_some_and(|node| node.text().is_some()) {
        return field.text().map(|text| TextMatch::Exact(text.into()));
    }
    field.fields(|f| {
        one_of(f, &["exact", "prefix", "suffix", "contains", "regex"]);
        let text = |field: &Field<'_>| field.text().map(Arc::from);
        text(&f.get("exact"))
            .map(TextMatch::Exact)
            .or(text(&f.get("prefix")).map(TextMatch::Prefix))
            .or(text(&f.get("suffix")).map(TextMatch::Suffix))
            .or(text(&f.get("contains")).map(TextMatch::Contains))
            .or(regex(&f.get("regex")).map(TextMatch::Regex))
    })?
}

/// A fault unless exactly one of `names` is set; the names are known from now on.
pub(crate) fn one_of(fields: &mut Fields<'_>, names: &[&'static str]) {
    let set = names.iter().filter(|name| fields.has(name)).count();
    if set != 1 {
        let found = if set == 0 { "says nothing".to_owned() } else { format!("says {set} things at once") };
        fields.whole().reject(found, format!("write one of: {}", names.join(", ")));
    }
}

/// `percent` or `fraction` of a mapping; neither is all.
pub(crate) fn share(fields: &mut Fields<'_>) -> Share {
    let (percent, part) = (fields.get("percent"), fields.get("fraction"));
    if percent.is_present() && part.is_present() {
        percent.reject("stands beside `fraction`", "remove one of them");
    }
    // Four decimals, as fine as a millionth.
    let of_percent = percent.fixed(4, 0..=1_000_000).and_then(|units| u32::try_from(units).ok());
    match (of_percent, fraction(&part)) {
        (Some(units), _) if units % 10_000 == 0 => Share { numerator: units / 10_000, denominator: 100 },
        (Some(units), _) => Share { numerator: units, denominator: 1_000_000 },
        (None, Some(share)) => share,
        (None, None) => Share { numerator: 1, denominator: 1 },
    }
}

/// `{numerator, denominator}`, the denominator 100 if not said, as in Gateway API.
pub(crate) fn fraction(field: &Field<'_>) -> Option<Share> {
    let share = field.fields(|f| Share {
        numerator: f.get("numerator").required().integer(0..=u32::MAX).unwrap_or(0),
        denominator: f.get("denominator").integer(1..=u32::MAX).unwrap_or(100),
    })?;
    if share.numerator > share.denominator {
        field.reject(
            format!("is more than all ({} of {})", share.numerator, share.denominator),
            "write a numerator that is not larger than the denominator",
        );
    }
    Some(share)
}

/// What is hashed: the list of keys.
pub(crate) fn hash_keys(field: &Field<'_>) -> Vec<HashKey> {
    field.each(|item| hash_key(&item))
}

fn hash_key(field: &Field<'_>) -> Option<HashKey> {
    field.fields(|f| {
        one_of(f, &["header", "cookie", "query", "path", "source"]);
        let cookie = |f: &mut Fields<'_>| {
            let (path, ttl) = (name(&f.get("path")), some_time(&f.get("ttl")));
            name(&f.get("name").required()).map(|name| HashKey::Cookie { name, path, ttl })
        };
        let flag = |field: Field<'_>, key: HashKey| match field.bool() {
            Some(false) => field.must_be("true"),
            Some(true) => Some(key),
            None => None,
        };
        name(&f.get("header"))
            .map(HashKey::Header)
            .or(f.get("cookie").fields(cookie).flatten())
            .or(name(&f.get("query")).map(HashKey::Query))
            .or(flag(f.get("path"), HashKey::Path))
            .or(flag(f.get("source"), HashKey::Source))
    })?
}

/// Rate limits.
pub(crate) fn rate_limits(field: &Field<'_>) -> Vec<RateLimit> {
    field.each(|item| {
        item.fields(|f| {
            let scope = rate_scope(f);
            let requests = f.get("requests").required().integer(1..=u32::MAX);
            let per = some_time(&f.get("per")).unwrap_or(Duration::from_secs(1));
            let burst = f.get("burst").integer(1..=u32::MAX);
            Some(RateLimit { scope: scope?, requests: requests?, per, burst })
        })?
    })
}

fn rate_scope(f: &mut Fields<'_>) -> Option<RateScope> {
    #[derive(Clone)]
    enum Word {
        Total,
        Identity,
        Override,
        Key,
    }
    let words = [
        ("Total", Word::Total),
        ("Identity", Word::Identity),
        ("Override", Word::Override),
        ("Key", Word::Key),
    ];
    let scope = f.get("scope");
    let word = if scope.is_present() { scope.word(&words)? } else { Word::Total };
    match word {
        Word::Total => Some(RateScope::Total),
        Word::Identity => Some(RateScope::Identity),
        Word::Override => Some(RateScope::Override(names(&f.get("identities").required()))),
        Word::Key => hash_key(&f.get("key").required()).map(RateScope::Key),
    }
}
