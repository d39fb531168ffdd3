//! Floor 2: reads our own authorization documents (`enmesh.dev/v1`, kind `Authorization`).
//!
//! ```
//! use enmesh::authz::settings::AuthzSettings;
//!
//! let settings = AuthzSettings::from_yaml(r#"
//! apiVersion: enmesh.dev/v1
//! kind: Authorization
//! metadata: {name: api}
//! spec:
//!   trustDomain: mesh.example
//!   rules:
//!   - name: no-dev
//!     action: deny
//!     clients: [{namespaces: [dev]}]
//!   - name: readers
//!     clients: [{identities: ["*"]}, {networks: [10.0.0.0/8]}]
//!     request: {methods: [GET], path: {type: PathPrefix, value: /public}}
//! "#)?;
//! assert_eq!(settings.rules.len(), 2);
//! # Ok::<(), enmesh::profile::invalid::Invalid>(())
//! ```

use crate::authz::settings::Action;
use crate::authz::settings::AuthzSettings;
use crate::authz::settings::Clients;
use crate::authz::settings::IdentityMatch;
use crate::authz::settings::NetworkMatch;
use crate::authz::settings::RuleSettings;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::invalid::Severity;
use crate::profile::matching::Condition;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::read::condition;
use crate::profile::read::dialect::Dialect;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::str::FromStr;

const DEFAULTS: [(&str, Action); 3] =
    [("deny", Action::Deny), ("allow", Action::Allow), ("audit", Action::Audit)];

impl AuthzSettings {
    /// Reads one `Authorization` from YAML or JSON.
    ///
    /// # Errors
    /// Every fault, if one refuses the document, and a text that is not exactly one document of this kind.
    pub fn from_yaml(text: &str) -> Result<Self, Invalid> {
        let objects = object::read(text, "authorization");
        let [one] = objects.as_slice() else {
            let problem = format!("are {} documents", objects.len());
            return Err(Fault::rejected("", problem, "write one Authorization").into());
        };
        if !is_authorization(one) {
            let problem = format!("is a {:?} of {:?}", one.kind, one.api_version);
            return Err(Fault::rejected("kind", problem, "write `Authorization` of `enmesh.dev/v1`").into());
        }
        let (settings, faults) = read(one);
        settings.ok_or(Invalid { faults })
    }
}

/// Whether a document is one of ours.
pub fn is_authorization(object: &Object) -> bool {
    object.api_version == "enmesh.dev/v1" && object.kind == "Authorization"
}

/// Reads a document: the settings, unless a fault refuses them, and every fault.
pub fn read(object: &Object) -> (Option<AuthzSettings>, Vec<Fault>) {
    let faults = Faults::default();
    let settings = Field::root(&object.root, &faults).fields(|fields| {
        object::metadata(fields);
        fields.get("spec").required().fields(spec)
    });
    let rejected = |fault: &Fault| fault.severity == Severity::Rejected;
    let usable = !faults.any_rejected() && !object.faults.iter().any(rejected);
    let all = object.faults.iter().cloned().chain(faults.into_vec()).collect();
    (settings.flatten().filter(|_| usable), all)
}

fn spec(fields: &mut Fields<'_>) -> AuthzSettings {
    let otherwise = fields.get("default").word(&DEFAULTS).unwrap_or(Action::Deny);
    let trust_domain = fields.get("trustDomain").parse(as_a("a trust domain"));
    let rules = fields.get("rules").each(|item| item.fields(rule).flatten());
    AuthzSettings { rules, otherwise, trust_domain, ..AuthzSettings::default() }
}

fn rule(fields: &mut Fields<'_>) -> Option<RuleSettings> {
    let name = fields.get("name").required().name();
    let action = fields.get("action").word(&DEFAULTS).unwrap_or(Action::Allow);
    let listed = fields.get("clients");
    let clients = match listed.is_present() {
        true => Clients::Any(listed.each(|item| item.fields(client))),
        false => Clients::Anyone,
    };
    let request = fields.get("request");
    let request = match request.is_present() {
        true => condition::request(&request, Dialect::Enmesh)?,
        false => Condition::Always,
    };
    let upgrades = fields.get("upgrades").bool().unwrap_or(false);
    Some(RuleSettings { upgrades, ..RuleSettings::new(name?, action, clients).on(request) })
}

/// One kind of clients: all that is said of it must hold.
fn client(fields: &mut Fields<'_>) -> Clients {
    let mut all = Vec::new();
    if fields.get("anyone").bool() == Some(true) {
        all.push(Clients::Anyone);
    }
    let identities = fields.get("identities");
    one_of(&mut all, &identities, as_a("an identity, `*`, `*.suffix` or `spiffe://domain/…/*`"));
    let namespace = |text: &str| object::subdomain(text).map(|()| IdentityMatch::Namespace(text.into()));
    one_of(&mut all, &fields.get("namespaces"), namespace);
    one_of(&mut all, &fields.get("serviceAccounts"), service_account);
    let domain = |text: &str| as_a("a trust domain")(text).map(IdentityMatch::Domain);
    one_of(&mut all, &fields.get("trustDomains"), domain);
    let networks = fields.get("networks");
    if networks.is_present() {
        all.push(Clients::Networks(networks.each(network)));
    }
    let not = fields.get("not");
    if not.is_present() {
        all.extend(not.fields(client).map(|clients| Clients::Not(Box::new(clients))));
    }
    if all.is_empty() {
        let remedy =
            "write identities, namespaces, serviceAccounts, trustDomains, networks, not or `anyone: true`";
        fields.whole().reject("says nothing of the client", remedy);
    }
    Clients::All(all)
}

/// A condition that one of these names is the client's.
fn one_of(all: &mut Vec<Clients>, field: &Field<'_>, read: impl Fn(&str) -> Result<IdentityMatch, String>) {
    if field.is_present() {
        let names = field.each(|item| item.parse(&read).map(Clients::Identity));
        all.push(Clients::Any(names));
    }
}

fn service_account(text: &str) -> Result<IdentityMatch, String> {
    match text.split_once('/') {
        Some((namespace, name)) if object::subdomain(namespace).and(object::subdomain(name)).is_ok() => {
            Ok(IdentityMatch::ServiceAccount { namespace: namespace.into(), name: name.into() })
        }
        _ => Err("`namespace/name` of a service account".to_owned()),
    }
}

/// `10.0.0.0/8`, or `{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}`.
fn network(item: Field<'_>) -> Option<NetworkMatch> {
    if item.node().is_some_and(|node| node.text().is_some()) {
        return item
            .parse(as_a("a network such as 10.0.0.0/8"))
            .map(|cidr| NetworkMatch { cidr, except: Vec::new() });
    }
    item.fields(|fields| {
        let cidr = fields.get("cidr").required().parse(as_a("a network such as 10.0.0.0/8"));
        let except = fields.get("except").each(|item| item.parse(as_a("a network such as 10.1.0.0/16")));
        Some(NetworkMatch { cidr: cidr?, except })
    })
    .flatten()
}

/// Reads a text by its type; its fault says what it must be.
fn as_a<T: FromStr>(what: &'static str) -> impl Fn(&str) -> Result<T, String> {
    move |text| text.parse().map_err(|_| what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str) -> Result<AuthzSettings, String> {
        let text =
            format!("apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {{name: a}}\nspec:\n{spec}");
        AuthzSettings::from_yaml(&text).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn rules_are_read_with_all_that_they_say() {
        let settings = check(
            "  default: audit\n  trustDomain: mesh.example\n  rules:\n  - name: a\n    action: deny\n    upgrades: true\n    \
             clients:\n    - {identities: ['spiffe://mesh.example/web', '*.x.y'], networks: [10.0.0.0/8]}\n    \
             - {serviceAccounts: [prod/web], not: {namespaces: [dev]}}\n    - {anyone: true}\n    \
             request: {grpc: {service: a.B}}\n  - name: b\n",
        )
        .unwrap();
        assert_eq!((settings.otherwise, settings.rules.len()), (Action::Audit, 2));
        let [a, b] = settings.rules.as_slice() else { panic!() };
        assert_eq!((a.action, a.upgrades, b.action), (Action::Deny, true, Action::Allow));
        assert_eq!((&b.clients, &b.request), (&Clients::Anyone, &Condition::Always));
        let Clients::Any(kinds) = &a.clients else { panic!() };
        let account = IdentityMatch::ServiceAccount { namespace: "prod".into(), name: "web".into() };
        let dev = Clients::Any(vec![Clients::Identity(IdentityMatch::Namespace("dev".into()))]);
        assert_eq!(
            kinds[1],
            Clients::All(vec![
                Clients::Any(vec![Clients::Identity(account)]),
                Clients::Not(Box::new(Clients::All(vec![dev]))),
            ])
        );
    }

    #[test]
    fn what_is_not_meant_so_is_refused_by_its_place() {
        for (spec, place) in [
            ("  default: maybe\n", "spec.default"),
            ("  rules: [{action: allow}]\n", "spec.rules[0].name"),
            ("  rules: [{name: a, client: []}]\n", "did you mean `clients`"),
            ("  rules: [{name: a, clients: [{}]}]\n", "spec.rules[0].clients[0]"),
            (
                "  rules: [{name: a, clients: [{identities: ['a*']}]}]\n",
                "spec.rules[0].clients[0].identities[0]",
            ),
            (
                "  rules: [{name: a, clients: [{networks: [10.0.0.0/99]}]}]\n",
                "spec.rules[0].clients[0].networks[0]",
            ),
            ("  rules: [{name: a, clients: [{serviceAccounts: [web]}]}]\n", "serviceAccounts[0]"),
            ("  rules: [{name: a, request: {}}]\n", "spec.rules[0].request"),
        ] {
            let faults = check(spec).unwrap_err();
            assert!(faults.contains(place), "{spec}: {faults}");
        }
        assert!(AuthzSettings::from_yaml("kind: Other").is_err() && AuthzSettings::from_yaml("").is_err());
    }
}
