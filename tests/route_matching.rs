//! The traps of matching that meshes differ in, one test each, through the public door.

use enmesh::profile::matching::{
    CallerMatch, Condition, GrpcMatch, HostMatch, KeyMatch, Multi, PathKind, PathMatch, TextMatch, ValueMatch,
};
use enmesh::profile::settings::Share;
use enmesh::route::explain::explain;
use enmesh::route::head::{Caller, RequestHead};
use enmesh::route::matcher::Matcher;
use enmesh::stdx::rng::Rng;
use http::{Method, Request};

/// Written `METHOD URI`, then headers `name: value`.
fn request(head: &str, headers: &[&str]) -> Request<()> {
    let (method, uri) = head.split_once(' ').unwrap();
    let mut builder = Request::builder().method(method).uri(uri);
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        builder = builder.header(name, value);
    }
    builder.body(()).unwrap()
}

fn holds(condition: &Condition, head: &str, headers: &[&str]) -> bool {
    let matcher = Matcher::compile([condition]).unwrap();
    let request = request(head, headers);
    let head = RequestHead::of_request(&request);
    let found = matcher.find(&head);
    assert_eq!(found, matcher.find_in_order(&head));
    found.is_some()
}

fn check(condition: &Condition, yes: &[(&str, &[&str])], no: &[(&str, &[&str])]) {
    for (head, headers) in yes {
        assert!(holds(condition, head, headers), "{condition:?} should hold for {head} {headers:?}");
    }
    for (head, headers) in no {
        assert!(!holds(condition, head, headers), "{condition:?} should not hold for {head} {headers:?}");
    }
}

fn check_paths(condition: &Condition, yes: &[&str], no: &[&str]) {
    let heads = |paths: &[&str]| paths.iter().map(|path| format!("GET {path}")).collect::<Vec<_>>();
    heads(yes).iter().for_each(|head| check(condition, &[(head, &[])], &[]));
    heads(no).iter().for_each(|head| check(condition, &[], &[(head, &[])]));
}

fn path(kind: PathKind, text: &str) -> Condition {
    Condition::Path(PathMatch::new(kind, text))
}

fn exactly(name: &str, value: &str) -> KeyMatch {
    KeyMatch::new(name, ValueMatch::Text(TextMatch::Exact(value.into())))
}

fn regex(name: &str, pattern: &str) -> KeyMatch {
    KeyMatch::new(name, ValueMatch::Text(TextMatch::Regex(pattern.into())))
}

fn hosts(host: HostMatch) -> Condition {
    Condition::Host(vec![host])
}

#[test]
fn an_element_prefix_ends_at_a_slash_and_a_string_prefix_anywhere() {
    check_paths(
        &path(PathKind::PrefixElement, "/foo"),
        &["/foo", "/foo/", "/foo/x", "/foo?q"],
        &["/foobar", "/fo"],
    );
    check_paths(&path(PathKind::PrefixElement, "/foo/"), &["/foo", "/foo/", "/foo/x"], &["/foobar"]);
    check_paths(&path(PathKind::PrefixElement, "/"), &["/", "/x", "/x/y"], &[]);
    check_paths(&path(PathKind::PrefixString, "/foo"), &["/foo", "/foobar", "/foo/x"], &["/fo", "/x/foo"]);
}

#[test]
fn an_exact_path_is_literal_and_a_prefix_with_a_slash_wants_it() {
    check_paths(&path(PathKind::Exact, "/foo"), &["/foo", "/foo?a=b"], &["/foo/", "/Foo", "/foo%2F"]);
    check_paths(&path(PathKind::PrefixString, "/prefix/"), &["/prefix/debug", "/prefix/"], &["/prefix"]);
    check_paths(&path(PathKind::Exact, "/a b"), &[], &["/a%20b"]);
}

#[test]
fn a_regex_matches_the_whole_path_and_as_a_group() {
    check_paths(&path(PathKind::Regex, "/a|/b"), &["/a", "/b"], &["/a/anything", "/x/b"]);
    check_paths(&path(PathKind::Regex, "^/api/\\d+$"), &["/api/7"], &["/api/7/", "/v1/api/7", "/api/"]);
    check_paths(&path(PathKind::RegexPrefix, "/api"), &["/api", "/api/x", "/apix"], &["/v1/api"]);
    check_paths(&path(PathKind::Regex, "/a|/ab"), &["/a", "/ab"], &["/abc"]);
}

#[test]
fn ends_middles_and_case_are_compared_as_said() {
    check_paths(&path(PathKind::Suffix, ".png"), &["/a.png", "/.png"], &["/a.png/", "/a.PNG"]);
    check_paths(&path(PathKind::Contains, "/v1/"), &["/v1/x", "/a/v1/b"], &["/v1", "/v2/"]);
    let any_case =
        |kind, text: &str| Condition::Path(PathMatch { ignore_case: true, ..PathMatch::new(kind, text) });
    check_paths(&any_case(PathKind::Exact, "/Foo"), &["/foo", "/FOO"], &["/foo/"]);
    check_paths(&any_case(PathKind::PrefixElement, "/Foo"), &["/foo/X", "/FOO"], &["/foobar"]);
    check_paths(&any_case(PathKind::Regex, "/foo/[a-c]"), &["/FOO/A"], &["/foo/d"]);
    check_paths(&any_case(PathKind::Contains, "Bar"), &["/fooBARx"], &["/ba"]);
}

#[test]
fn methods_are_case_sensitive() {
    let get = Condition::Method(vec![Method::GET, Method::from_bytes(b"PURGE").unwrap()]);
    check(&get, &[("GET /", &[]), ("PURGE /", &[])], &[("get /", &[]), ("POST /", &[])]);
}

#[test]
fn header_names_ignore_case_and_values_do_not() {
    let exact = Condition::Header(exactly("X-Version", "two"));
    check(&exact, &[("GET /", &["x-version: two"])], &[("GET /", &["x-version: Two"]), ("GET /", &[])]);
    let any_case = Condition::Header(KeyMatch { ignore_case: true, ..exactly("x-version", "two") });
    check(&any_case, &[("GET /", &["x-version: TWO"])], &[("GET /", &["x-version: three"])]);
}

#[test]
fn several_values_are_taken_each_or_first_or_joined() {
    let multi = |multi, pattern: &str| Condition::Header(KeyMatch { multi, ..regex("x", pattern) });
    let two: &[&str] = &["x: a", "x: b"];
    check(&multi(Multi::Any, "b"), &[("GET /", two)], &[]);
    check(&multi(Multi::First, "b"), &[("GET /", &["x: b", "x: a"])], &[("GET /", two)]);
    check(&multi(Multi::Joined, "a,b"), &[("GET /", two), ("GET /", &["x: a,b"])], &[("GET /", &["x: a"])]);
    check(&multi(Multi::Joined, "b"), &[("GET /", &["x: b"])], &[("GET /", two)]);
}

#[test]
fn an_absent_header_matches_nothing_but_its_own_opposite() {
    let present = KeyMatch::new("x", ValueMatch::Present);
    check(&Condition::Header(present.clone()), &[("GET /", &["x: "])], &[("GET /", &[])]);
    let absent = Condition::Header(KeyMatch { invert: true, ..present });
    check(&absent, &[("GET /", &[])], &[("GET /", &["x: 1"])]);
    let not_one = Condition::Header(KeyMatch { invert: true, ..exactly("x", "1") });
    check(&not_one, &[("GET /", &[]), ("GET /", &["x: 2"])], &[("GET /", &["x: 1"])]);
    check(&Condition::Header(regex("x", ".*")), &[("GET /", &["x: "])], &[("GET /", &[])]);
}

#[test]
fn an_integer_range_takes_whole_numbers_alone() {
    let range = Condition::Header(KeyMatch::new("x", ValueMatch::Integer(100..=149)));
    let yes: [(&str, &[&str]); 2] = [("GET /", &["x: 100"]), ("GET /", &["x: 149"])];
    let no: [(&str, &[&str]); 4] =
        [("GET /", &["x: 150"]), ("GET /", &["x: 100.5"]), ("GET /", &["x: "]), ("GET /", &[])];
    check(&range, &yes, &no);
}

#[test]
fn a_query_parameter_is_decoded_and_its_name_has_case() {
    let query = Condition::Query(exactly("foo", "bar baz"));
    check(
        &query,
        &[("GET /?foo=bar+baz", &[]), ("GET /?x&foo=bar%20baz", &[]), ("GET /?f%6fo=bar%20baz", &[])],
        &[("GET /?Foo=bar+baz", &[]), ("GET /?foo=bar", &[]), ("GET /", &[])],
    );
    let first = Condition::Query(KeyMatch { multi: Multi::First, ..exactly("a", "1") });
    check(&first, &[("GET /?a=1&a=2", &[])], &[("GET /?a=2&a=1", &[])]);
    check(&Condition::Query(regex("foo", ".*")), &[("GET /?foo", &[])], &[("GET /?food", &[])]);
}

#[test]
fn a_path_never_sees_the_query() {
    check_paths(&path(PathKind::Exact, "/exact/debug"), &["/exact/debug?env=dump"], &[]);
    check_paths(&path(PathKind::Regex, "/authors/\\d+"), &["/authors/12?x=/authors/zz"], &[]);
    check_paths(&path(PathKind::Contains, "env"), &[], &["/debug?env=dump"]);
}

#[test]
fn a_host_ignores_port_case_and_a_trailing_dot() {
    let exact = hosts(HostMatch::Exact("Example.com".into()));
    let yes: [(&str, &[&str]); 4] = [
        ("GET http://example.com/", &[]),
        ("GET http://EXAMPLE.com:8080/", &["host: other"]),
        ("GET /", &["host: example.com.:81"]),
        ("GET /", &["host: example.com"]),
    ];
    check(&exact, &yes, &[("GET http://foo.example.com/", &[]), ("GET /", &[])]);
}

#[test]
fn a_wildcard_host_wants_one_label_or_more() {
    let suffix = hosts(HostMatch::Suffix("example.com".into()));
    let yes: [(&str, &[&str]); 3] = [
        ("GET http://a.example.com/", &[]),
        ("GET http://a.b.Example.com:1/", &[]),
        ("GET /", &["host: a.example.com."]),
    ];
    let no: [(&str, &[&str]); 3] = [
        ("GET http://example.com/", &[]),
        ("GET http://fooexample.com/", &[]),
        ("GET /", &["host: .example.com"]),
    ];
    check(&suffix, &yes, &no);
}

#[test]
fn a_grpc_call_is_a_post_to_two_names() {
    let grpc = |service: Option<&str>, method: Option<&str>| {
        let exact = |name: &str| TextMatch::Exact(name.into());
        Condition::Grpc(GrpcMatch { service: service.map(exact), method: method.map(exact) })
    };
    let calls: [(&str, &[&str]); 2] = [("POST /foo/bar", &[]), ("POST http://h/foo/bar?x", &[])];
    let others: [(&str, &[&str]); 4] =
        [("GET /foo/bar", &[]), ("POST /foo", &[]), ("POST /foo/", &[]), ("POST /foo/bar/x", &[])];
    check(&grpc(None, None), &calls, &others);
    check(&grpc(Some("foo"), None), &calls, &others);
    check(&grpc(None, Some("bar")), &calls, &others);
    check(&grpc(Some("foo"), Some("bar")), &calls, &others);
    check(&grpc(Some("foo"), Some("baz")), &[], &calls);
    check(&grpc(Some("fo"), Some("bar")), &[], &calls);
}

#[test]
fn ports_and_schemes_have_their_usual_values() {
    check(
        &Condition::Port(80),
        &[("GET http://a/", &[]), ("GET /", &["host: a"])],
        &[("GET http://a:81/", &[])],
    );
    check(&Condition::Port(443), &[("GET https://a/", &[])], &[("GET http://a/", &[])]);
    check(&Condition::Scheme("HTTPS".into()), &[("GET https://a/", &[])], &[("GET /", &["host: a"])]);
}

#[test]
fn a_caller_is_matched_by_all_that_is_said() {
    let condition = Condition::Caller(CallerMatch {
        namespaces: vec!["shop".into(), "web".into()],
        labels: vec![("app".into(), "cart".into())],
        identities: vec![TextMatch::Suffix("/sa/cart".into())],
    });
    let matcher = Matcher::compile([&condition, &Condition::Caller(CallerMatch::default())]).unwrap();
    let caller = Caller {
        namespace: Some("shop".into()),
        labels: [("app".into(), "cart".into()), ("tier".into(), "1".into())].into(),
        identity: Some("spiffe://td/ns/shop/sa/cart".into()),
    };
    let request = request("GET /", &[]);
    let head = || RequestHead::of_request(&request);
    let find = |caller: &Caller| matcher.find(&head().from_caller(caller));
    assert_eq!(find(&caller), Some(0));
    assert_eq!(find(&Caller { namespace: Some("x".into()), ..caller.clone() }), Some(1));
    assert_eq!(find(&Caller { identity: None, ..caller.clone() }), Some(1));
    assert_eq!(find(&Caller { labels: Default::default(), ..caller }), Some(1));
    assert_eq!(matcher.find(&head()), Some(1), "nobody is known: only what asks nothing holds");
}

#[test]
fn lists_without_parts_and_what_they_deny_keep_their_meaning() {
    let (all, any) = (Condition::All(vec![]), Condition::Any(vec![]));
    check_paths(&all, &["/"], &[]);
    check_paths(&any, &[], &["/"]);
    check_paths(&Condition::Not(Box::new(any)), &["/"], &[]);
    check_paths(&Condition::Not(Box::new(all)), &[], &["/"]);
}

#[test]
fn a_fraction_takes_its_share_and_one_request_is_drawn_once() {
    let tenth = Condition::Fraction(Share { numerator: 1, denominator: 10 });
    let both = Condition::Any(vec![
        Condition::All(vec![path(PathKind::PrefixString, "/a"), tenth.clone()]),
        Condition::All(vec![path(PathKind::PrefixString, "/a/b"), tenth.clone()]),
    ]);
    let nested = [both, tenth.clone(), tenth];
    let matcher = Matcher::compile(&nested).unwrap();
    let (request, rng) = (request("GET /a/b/c", &[]), Rng::seeded(7));
    let mut counts = [0u32; 4];
    for _ in 0..100_000 {
        let head = RequestHead::of_request(&request).with_rng(&rng);
        let found = matcher.find(&head);
        assert_eq!(found, matcher.find(&head), "asking again gives the same answer");
        counts[found.unwrap_or(3)] += 1;
    }
    let expected = [19_000, 8_100, 7_290, 65_610];
    for (count, expected) in counts.into_iter().zip(expected) {
        assert!(count.abs_diff(expected) < expected / 20, "{counts:?} {expected}");
    }
    for share in [Share { numerator: 0, denominator: 1 }, Share { numerator: 3, denominator: 3 }] {
        assert_eq!(holds(&Condition::Fraction(share), "GET /", &[]), share.numerator == 3);
    }
}

#[test]
fn an_explanation_names_the_part_that_does_not_hold() {
    let routes = [
        path(PathKind::Exact, "/api/vote"),
        Condition::All(vec![Condition::Method(vec![Method::GET]), Condition::Header(exactly("x-user", "1"))]),
        Condition::Any(vec![path(PathKind::PrefixElement, "/b"), path(PathKind::Regex, "/c.*")]),
        Condition::Not(Box::new(path(PathKind::PrefixElement, "/api"))),
        path(PathKind::PrefixElement, "/api"),
        Condition::Always,
        Condition::Any(vec![]),
        hosts(HostMatch::Suffix("example.com".into())),
    ];
    let matcher = Matcher::compile(&routes).unwrap();
    let request = request("GET /api/list", &["host: web"]);
    let explanation = explain(&matcher, &RequestHead::of_request(&request));
    assert_eq!(explanation.found, Some(4));
    let said: Vec<_> = explanation.others.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "routes[0]: path /api/vote does not match",
            "routes[1]: header x-user: 1 does not match",
            "routes[2]: path /b/… does not match, and path ~/c.* does not match",
            "routes[3]: path /api/… matches, and must not",
            "routes[5]: matches, but an earlier route does too",
            "routes[6]: it matches nothing",
            "routes[7]: host *.example.com does not match",
        ]
    );
}

#[test]
fn what_has_no_limit_of_its_own_is_bounded() {
    let mut deep = Condition::Always;
    for _ in 0..100 {
        deep = Condition::Not(Box::new(deep));
    }
    let faults = Matcher::compile([&deep]).unwrap_err();
    assert!(faults[0].1.problem.contains("deeper than 64"), "{}", faults[0].1);
    let bad = [
        Condition::Header(exactly("no header", "x")),
        Condition::Fraction(Share { numerator: 1, denominator: 0 }),
        path(PathKind::Contains, &"x".repeat(2_000)),
        path(PathKind::Regex, "(\\p{L}{100}){100}"),
    ];
    let faults = Matcher::compile(&bad).unwrap_err();
    assert_eq!(faults.iter().map(|(route, _)| *route).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let many: Vec<_> = (0..3_000).map(|n| path(PathKind::Regex, &format!("/{n}/[a-z]{{1000}}"))).collect();
    let faults = Matcher::compile(&many).unwrap_err();
    assert!(faults[0].1.problem.contains("more than 64 MiB"), "{}", faults[0].1);
}
