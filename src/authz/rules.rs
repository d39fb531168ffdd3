//! Floor 3: authorization settings compiled for requests to read, and the decision.

use crate::authz::clarity::Looks;
use crate::authz::client::Client;
use crate::authz::rates::ServerRates;
use crate::authz::settings::Action;
use crate::authz::settings::AuthzSettings;
use crate::authz::settings::Clients;
use crate::authz::settings::Origin;
use crate::authz::settings::RuleSettings;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::matching::Condition;
use crate::route::head::RequestHead;
use crate::route::matcher::Matcher;
use crate::tls::identity::TrustDomain;
use http::Method;
use http::header;
use std::sync::Arc;

/// The most rules of one server. They are tried in order, so this also bounds what a request costs.
pub const RULES_MAX: usize = 1000;

/// The deepest nesting of [`Clients`] and conditions in a rule.
const DEPTH_MAX: usize = 32;

/// Authorization, ready for requests.
#[derive(Debug)]
pub struct AuthzPolicy {
    rules: Vec<Rule>,
    otherwise: Action,
    trust_domain: Option<TrustDomain>,
    default_name: Arc<str>,
    rates: Option<Arc<ServerRates>>,
    server: Option<Arc<str>>,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    action: Action,
    clients: Clients,
    /// `None`: every request.
    request: Option<Matcher>,
    /// What the request's condition looks at.
    looks: Looks,
    upgrades: bool,
    origin: Origin,
}

/// What becomes of a request, and by which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What becomes of it.
    pub action: Action,
    /// The rule's name; `default` if none held.
    pub rule: &'a Arc<str>,
    /// Which rule it is; their number if none held.
    pub index: usize,
}

impl AuthzPolicy {
    /// Compiles settings.
    ///
    /// # Errors
    /// Every fault: too many rules, too deep ones, conditions on the caller or on chance, unusable patterns.
    pub fn compile(settings: &AuthzSettings) -> Result<Self, Invalid> {
        let mut faults = Vec::new();
        if settings.rules.len() > RULES_MAX {
            let problem = format!("are {} rules", settings.rules.len());
            faults.push(Fault::rejected("rules", problem, format!("write at most {RULES_MAX}")));
        }
        let mut rules = Vec::new();
        for (index, rule) in settings.rules.iter().enumerate().take(RULES_MAX) {
            match Rule::compile(rule) {
                Ok(rule) => rules.push(rule),
                Err(found) => faults.extend(found.into_iter().map(|mut fault| {
                    fault.path = format!("rules[{index}].{}", fault.path);
                    fault
                })),
            }
        }
        if !faults.is_empty() {
            return Err(Invalid { faults });
        }
        let trust_domain = settings.trust_domain.clone();
        let rates = ServerRates::new(&settings.rates, trust_domain.as_ref()).map(Arc::new);
        let default_name = "default".into();
        let (otherwise, server) = (settings.otherwise, settings.server.clone());
        Ok(Self { rules, otherwise, trust_domain, default_name, rates, server })
    }

    /// The rate limits of what is let in, if there are any.
    pub fn rates(&self) -> Option<&ServerRates> {
        self.rates.as_deref()
    }

    /// The same, with what `before` has counted if it limits the same.
    #[must_use]
    pub(crate) fn keep_counts(mut self, before: &Self) -> Self {
        if let (Some(mine), Some(theirs)) = (&self.rates, &before.rates)
            && mine.same_as(theirs)
        {
            self.rates = Some(Arc::clone(theirs));
        }
        self
    }

    /// The names and actions of the rules, in order, and of what is done without one.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, Action)> {
        let rules = self.rules.iter().map(|rule| (&rule.name, rule.action));
        rules.chain(std::iter::once((&self.default_name, self.otherwise)))
    }

    /// The same, with what each was written as.
    pub fn named(&self) -> impl Iterator<Item = (&Arc<str>, Origin, Action)> {
        let rules = self.rules.iter().map(|rule| (&rule.name, rule.origin, rule.action));
        rules.chain(std::iter::once((&self.default_name, Origin::Default, self.otherwise)))
    }

    /// The name of Linkerd's `Server` that they are of, if they are of one.
    pub fn server(&self) -> Option<&Arc<str>> {
        self.server.as_ref()
    }

    /// What becomes of a request. Its path must have passed [`check`](crate::authz::path::check).
    pub fn decide(&self, head: &RequestHead<'_>, client: &Client<'_>) -> Decision<'_> {
        let tunnel = is_tunnel(head);
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.holds(head, client, tunnel, self.trust_domain.as_ref()) {
                return Decision { action: rule.action, rule: &rule.name, index };
            }
        }
        // Behind an upgrade no rule is asked again: it needs a rule that means it.
        let action = if tunnel && self.otherwise != Action::NotFound { Action::Deny } else { self.otherwise };
        Decision { action, rule: &self.default_name, index: self.rules.len() }
    }
}

/// Whether the request asks for a connection of its own.
fn is_tunnel(head: &RequestHead<'_>) -> bool {
    *head.method() == Method::CONNECT || head.headers().contains_key(header::UPGRADE)
}

impl Rule {
    fn compile(settings: &RuleSettings) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        check_request(&settings.request, 0, &mut faults);
        check_clients(&settings.clients, 0, &mut faults);
        let request = match &settings.request {
            Condition::Always => None,
            condition => match Matcher::compile([condition]) {
                Ok(matcher) => Some(matcher),
                Err(found) => {
                    faults.extend(found.into_iter().map(|(_, mut fault)| {
                        fault.path = format!("request.{}", fault.path);
                        fault
                    }));
                    None
                }
            },
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            name: Arc::clone(&settings.name),
            action: settings.action,
            clients: settings.clients.clone(),
            request,
            looks: Looks::of(&settings.request),
            upgrades: settings.upgrades,
            origin: settings.origin,
        })
    }

    fn holds(
        &self,
        head: &RequestHead<'_>,
        client: &Client<'_>,
        tunnel: bool,
        local: Option<&TrustDomain>,
    ) -> bool {
        if tunnel && !self.upgrades && !self.refuses() {
            return false;
        }
        if !self.clients.match_client(client, local) {
            return false;
        }
        let Some(request) = &self.request else { return true };
        // What cannot be read for certain never helps the caller: it holds for refusals and for nothing else.
        if self.looks.are_unclear(head) {
            return self.refuses();
        }
        request.find(head).is_some()
    }

    fn refuses(&self) -> bool {
        matches!(self.action, Action::Deny | Action::NotFound)
    }
}

/// Conditions that authorization cannot keep.
fn check_request(condition: &Condition, depth: usize, faults: &mut Vec<Fault>) {
    if depth > DEPTH_MAX {
        faults.push(Fault::rejected(
            "request",
            "nests conditions too deep",
            format!("nest {DEPTH_MAX} at most"),
        ));
        return;
    }
    match condition {
        Condition::All(all) | Condition::Any(all) => {
            for condition in all {
                check_request(condition, depth + 1, faults);
            }
        }
        Condition::Not(not) => check_request(not, depth + 1, faults),
        Condition::Caller(_) => {
            faults.push(Fault::rejected(
                "request",
                "has a condition on the caller",
                "write it under clients",
            ));
        }
        Condition::Fraction(_) => {
            let remedy = "leave the fraction out: who may, may always";
            faults.push(Fault::rejected("request", "holds by chance", remedy));
        }
        Condition::Always
        | Condition::Method(_)
        | Condition::Path(_)
        | Condition::Header(_)
        | Condition::Query(_)
        | Condition::Host(_)
        | Condition::Scheme(_)
        | Condition::Port(_)
        | Condition::Grpc(_) => {}
    }
}

fn check_clients(clients: &Clients, depth: usize, faults: &mut Vec<Fault>) {
    if depth > DEPTH_MAX {
        faults.push(Fault::rejected("clients", "nest too deep", format!("nest {DEPTH_MAX} at most")));
        return;
    }
    match clients {
        Clients::All(all) | Clients::Any(all) => {
            for clients in all {
                check_clients(clients, depth + 1, faults);
            }
        }
        Clients::Not(not) => check_clients(not, depth + 1, faults),
        Clients::Anyone | Clients::Identity(_) | Clients::Networks(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::settings::IdentityMatch;
    use crate::profile::matching::HostMatch;
    use crate::profile::matching::KeyMatch;
    use crate::profile::matching::PathKind;
    use crate::profile::matching::PathMatch;
    use crate::profile::matching::TextMatch;
    use crate::profile::matching::ValueMatch;
    use crate::tls::identity::PeerIdentity;
    use http::HeaderValue;
    use http::Request;
    use std::time::SystemTime;

    fn peer(name: &str) -> PeerIdentity {
        PeerIdentity {
            identity: name.parse().unwrap(),
            trust_domain: "mesh.example".parse().unwrap(),
            not_after: SystemTime::UNIX_EPOCH,
        }
    }

    fn path(kind: PathKind, text: &str) -> Condition {
        Condition::Path(PathMatch::new(kind, text))
    }

    fn header(name: &str, value: TextMatch) -> Condition {
        Condition::Header(KeyMatch::new(name, ValueMatch::Text(value)))
    }

    fn policy(rules: Vec<RuleSettings>, otherwise: Action) -> AuthzPolicy {
        let trust_domain = Some("mesh.example".parse().unwrap());
        AuthzPolicy::compile(&AuthzSettings { rules, otherwise, trust_domain, ..AuthzSettings::default() })
            .unwrap()
    }

    fn check(policy: &AuthzPolicy, caller: Option<&str>, request: &Request<()>, expected: (Action, &str)) {
        let peer = caller.map(peer);
        let client = Client { peer: peer.as_ref(), address: None };
        let decision = policy.decide(&RequestHead::of_request(request), &client);
        assert_eq!((decision.action, &**decision.rule), expected, "{request:?} by {caller:?}");
    }

    fn get(uri: &str) -> Request<()> {
        Request::get(uri).body(()).unwrap()
    }

    fn only(name: &str) -> Clients {
        Clients::Identity(IdentityMatch::Exact(name.parse().unwrap()))
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let policy = policy(
            vec![
                RuleSettings::new("no-dev", Action::Deny, only("spiffe://mesh.example/dev")),
                RuleSettings::new("public", Action::Allow, Clients::Identity(IdentityMatch::AnyLocal))
                    .on(path(PathKind::PrefixElement, "/public")),
                RuleSettings::new("admin", Action::Allow, only("spiffe://mesh.example/admin"))
                    .on(path(PathKind::PrefixElement, "/admin")),
                RuleSettings::new("watch", Action::Audit, Clients::Anyone).on(path(PathKind::Exact, "/new")),
            ],
            Action::Deny,
        );
        let web = Some("spiffe://mesh.example/web");
        check(&policy, web, &get("/public/a"), (Action::Allow, "public"));
        check(&policy, web, &get("/public?x=/admin"), (Action::Allow, "public"));
        check(&policy, web, &get("/publicity"), (Action::Deny, "default"));
        check(&policy, web, &get("/xpublic"), (Action::Deny, "default"));
        check(&policy, web, &get("/admin?x=/public"), (Action::Deny, "default"));
        check(&policy, Some("spiffe://mesh.example/admin"), &get("/admin/x"), (Action::Allow, "admin"));
        check(&policy, Some("spiffe://mesh.example/dev"), &get("/public"), (Action::Deny, "no-dev"));
        check(&policy, None, &get("/public"), (Action::Deny, "default"));
        check(&policy, None, &get("/new"), (Action::Audit, "watch"));
    }

    #[test]
    fn methods_are_the_real_ones_and_hosts_are_names() {
        let policy = policy(
            vec![
                RuleSettings::new("no-delete", Action::Deny, Clients::Anyone)
                    .on(Condition::Method(vec![Method::DELETE])),
                RuleSettings::new("host", Action::Allow, Clients::Anyone)
                    .on(Condition::Host(vec![HostMatch::Exact("example.com".into())])),
            ],
            Action::Deny,
        );
        for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
            let request = Request::post("http://example.com/").header(name, "DELETE").body(()).unwrap();
            check(&policy, None, &request, (Action::Allow, "host"));
        }
        for host in ["example.com", "Example.COM", "example.com.", "example.com:80"] {
            let request = Request::get("/").header("host", host).body(()).unwrap();
            check(&policy, None, &request, (Action::Allow, "host"));
        }
        let other = Request::get("/").header("host", "example.com.evil").body(()).unwrap();
        check(&policy, None, &other, (Action::Deny, "default"));
    }

    #[test]
    fn headers_that_cannot_be_read_for_certain_never_help() {
        let deny = policy(
            vec![
                RuleSettings::new("no-admin", Action::Deny, Clients::Anyone)
                    .on(header("x-role", TextMatch::Regex("adm.*in".into()))),
            ],
            Action::Allow,
        );
        let allow = policy(
            vec![
                RuleSettings::new("admin", Action::Allow, Clients::Anyone)
                    .on(header("x-role", TextMatch::Regex("adm.*in".into()))),
            ],
            Action::Deny,
        );
        let with = |values: &[&[u8]]| {
            let mut request = get("/");
            for value in values {
                request.headers_mut().append("x-role", HeaderValue::from_bytes(value).unwrap());
            }
            request
        };
        check(&deny, None, &with(&[b"admin"]), (Action::Deny, "no-admin"));
        check(&deny, None, &with(&[b"user"]), (Action::Allow, "default"));
        check(&allow, None, &with(&[b"admin"]), (Action::Allow, "admin"));
        check(&allow, None, &with(&[b"xadmin"]), (Action::Deny, "default"));
        for unclear in [&[&b"adm\xffin"[..]][..], &[b"\x80"], &[b"user", b"admin"], &[b"admin", b"user"]] {
            check(&deny, None, &with(unclear), (Action::Deny, "no-admin"));
            check(&allow, None, &with(unclear), (Action::Deny, "default"));
        }
    }

    #[test]
    fn a_host_that_is_not_said_slips_past_no_rule() {
        let host = Condition::Host(vec![HostMatch::Exact("admin.example".into())]);
        let rule = |action| vec![RuleSettings::new("r", action, Clients::Anyone).on(host.clone())];
        let (deny, allow) =
            (policy(rule(Action::Deny), Action::Allow), policy(rule(Action::Allow), Action::Deny));
        let unreadable = || {
            let mut request = get("/");
            request.headers_mut().insert("host", HeaderValue::from_bytes(b"adm\xffin").unwrap());
            request
        };
        for request in [get("/"), unreadable()] {
            check(&deny, None, &request, (Action::Deny, "r"));
            check(&allow, None, &request, (Action::Deny, "default"));
        }
        check(&deny, None, &get("http://other.example/"), (Action::Allow, "default"));
    }

    #[test]
    fn encodings_in_either_case_do_not_slip_past_a_rule() {
        let deny = policy(
            vec![
                RuleSettings::new("no", Action::Deny, Clients::Anyone)
                    .on(path(PathKind::Exact, "/caf%C3%A9")),
            ],
            Action::Allow,
        );
        check(&deny, None, &get("/caf%C3%A9"), (Action::Deny, "no"));
        check(&deny, None, &get("/caf%c3%a9"), (Action::Deny, "no"));
        check(&deny, None, &get("/cafe"), (Action::Allow, "default"));
    }

    #[test]
    fn tunnels_need_a_rule_that_means_them() {
        let all = RuleSettings::new("all", Action::Allow, Clients::Anyone);
        let connect = Request::builder().method(Method::CONNECT).uri("host:443").body(()).unwrap();
        let upgrade = Request::get("/").header("upgrade", "websocket").body(()).unwrap();
        for (rules, otherwise, expected) in [
            (vec![all.clone()], Action::Deny, (Action::Deny, "default")),
            (vec![], Action::Allow, (Action::Deny, "default")),
            (vec![RuleSettings { upgrades: true, ..all.clone() }], Action::Deny, (Action::Allow, "all")),
            (
                vec![RuleSettings { action: Action::Deny, ..all.clone() }],
                Action::Allow,
                (Action::Deny, "all"),
            ),
        ] {
            let policy = policy(rules, otherwise);
            check(&policy, None, &connect, expected);
            check(&policy, None, &upgrade, expected);
        }
    }

    #[test]
    fn rules_that_cannot_be_kept_are_refused_by_their_place() {
        let rule = |request| RuleSettings::new("r", Action::Allow, Clients::Anyone).on(request);
        let nested = (0..40).fold(Condition::Always, |inner, _| Condition::Not(Box::new(inner)));
        let rules = vec![
            rule(Condition::Caller(Default::default())),
            rule(path(PathKind::Regex, "(")),
            rule(nested),
            rule(path(PathKind::Regex, &"a".repeat(2000))),
        ];
        let settings = AuthzSettings { rules, ..AuthzSettings::default() };
        let text = AuthzPolicy::compile(&settings).unwrap_err().to_string();
        for place in ["rules[0].request", "rules[1].request", "rules[2].request", "rules[3].request"] {
            assert!(text.contains(place), "{place} in {text}");
        }
        let many = vec![rule(Condition::Always); RULES_MAX + 1];
        assert!(AuthzPolicy::compile(&AuthzSettings { rules: many, ..AuthzSettings::default() }).is_err());
    }
}
