//! Floor 1: which service a profile is generated for, and whether its names will do.

use std::fmt;

/// Which service a profile is generated for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service's name: a DNS-1035 label.
    pub service: String,
    /// Its namespace: a DNS-1123 label.
    pub namespace: String,
    /// The cluster's domain; `cluster.local` by custom.
    pub cluster_domain: String,
}

/// What a profile is generated from, as far as the command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// `--template`.
    pub template: bool,
    /// `--open-api FILE`.
    pub open_api: bool,
    /// `--proto FILE`.
    pub proto: bool,
}

/// Why nothing is generated, in the words of the reference command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl Sources {
    /// Whether exactly one is set.
    ///
    /// # Errors
    ///
    /// None is, or several are.
    pub fn check(self) -> Result<(), Refusal> {
        match [self.template, self.open_api, self.proto].iter().filter(|set| **set).count() {
            1 => Ok(()),
            _ => {
                Err(Refusal("You must specify exactly one of --template or --open-api or --proto".to_owned()))
            }
        }
    }
}

impl Target {
    /// Whether the names will do, the service's first.
    ///
    /// # Errors
    ///
    /// The service is no DNS-1035 label, or the namespace no DNS-1123 label.
    pub fn check(&self) -> Result<(), Refusal> {
        let alphabetic = |b: u8| b.is_ascii_lowercase();
        let faults = label_faults(&self.service, alphabetic, DNS_1035);
        if !faults.is_empty() {
            return Err(Refusal(format!("invalid service {:?}: [{}]", self.service, faults.join(" "))));
        }
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let faults = label_faults(&self.namespace, alphanumeric, DNS_1123);
        if !faults.is_empty() {
            return Err(Refusal(format!("invalid namespace {:?}: [{}]", self.namespace, faults.join(" "))));
        }
        Ok(())
    }

    /// The name of the profile: the service's full name.
    pub fn name(&self) -> String {
        format!("{}.{}.svc.{}", self.service, self.namespace, self.cluster_domain)
    }
}

/// What Kubernetes says of a text that is no such label, word for word: tools look for it.
const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
     validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
     must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn label_faults(label: &str, first: fn(u8) -> bool, what: &'static str) -> Vec<&'static str> {
    let bytes = label.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = bytes.first().is_some_and(|b| first(*b))
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-');
    let mut faults = Vec::new();
    if bytes.len() > 63 {
        faults.push("must be no more than 63 characters");
    }
    if !fits {
        faults.push(what);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        let check = |service: &str, namespace: &str| {
            let own = |text: &str| text.to_owned();
            Target { service: own(service), namespace: own(namespace), cluster_domain: own("c") }.check()
        };
        let long = "a".repeat(64);
        for (service, namespace, good) in [
            ("a", "b", true),
            ("a-1", "7eet-ns", true),
            ("", "b", false),
            ("7a", "b", false),
            ("a-", "b", false),
            ("A", "b", false),
            ("a.b", "b", false),
            ("a", "", false),
            ("a", "b/c", false),
            (&long, "b", false),
        ] {
            assert_eq!(check(service, namespace).is_ok(), good, "{service} {namespace}");
        }
        assert_eq!(
            check(&long, "b").unwrap_err().to_string(),
            format!("invalid service {long:?}: [must be no more than 63 characters]")
        );
    }
}
