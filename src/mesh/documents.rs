//! Floor 6: reads a text of documents: profiles and endpoints, as files and builders give them.

use crate::control::scan::Parsed;
use crate::profile::invalid::{Invalid, Severity};
use crate::profile::parse;
use crate::profile::service::ServiceProfile;
use std::sync::Arc;

/// Reads every document of a text; `file` is its name. Each service is also known by its short name, which is how
/// sources are asked.
///
/// # Errors
/// Every fault, if one of them refuses a document: then nothing of the text is used.
pub fn read(cluster_domain: &str, file: &str, text: &str) -> Result<Parsed, Invalid> {
    let mut out = Parsed::default();
    let mut faults = Vec::new();
    for document in parse::parse(text, file).documents {
        out.profiles
            .extend(document.profile.map(|profile| Arc::new(known_by_short_names(profile, cluster_domain))));
        faults.extend(document.faults);
    }
    if faults.iter().any(|fault| fault.severity == Severity::Rejected) {
        return Err(Invalid { faults });
    }
    out.notes = faults;
    Ok(out)
}

/// Adds the short form of each name, after those that were written: the first stays the service's own.
pub fn known_by_short_names(mut profile: ServiceProfile, cluster_domain: &str) -> ServiceProfile {
    for index in 0..profile.names.len() {
        let short = profile.names[index].short(cluster_domain);
        if !profile.names.contains(&short) {
            profile.names.push(short);
        }
    }
    profile
}
