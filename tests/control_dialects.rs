//! Documents of other meshes in a watched directory: files refer to each other, and callers get what is for them.

#![cfg(feature = "files")]
use enmesh::control::documents;
use enmesh::control::scan::{Directory, SETTLE, Scanner, Settings};
use enmesh::control::screen::Screen;
use enmesh::control::source::Rejections;
use enmesh::profile::name::ServiceName;
use enmesh::profile::route::{Action, Backend};
use enmesh::profile::service::ServiceProfile;
use enmesh::stdx::clock;
use std::path::PathBuf;
use std::sync::Arc;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("enmesh-dialects-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Eye(Scanner, clock::Instant);

impl Eye {
    fn new(folder: &Folder, home: Option<&str>) -> Self {
        let settings = Settings {
            path: folder.0.clone(),
            parse: Arc::new(documents::parse),
            screen: Screen::default(),
            cluster_domain: "cluster.local".into(),
            home: home.map(Arc::from),
        };
        Self(Scanner::new(settings, Rejections::default()), clock::now())
    }

    fn look(&mut self) -> Arc<Directory> {
        for _ in 0..2 {
            self.1 += SETTLE;
            let _ = self.0.look(self.1, clock::wall());
        }
        self.0.look(self.1, clock::wall()).0
    }
}

fn profile<'a>(directory: &'a Directory, name: &str) -> Option<&'a ServiceProfile> {
    directory.profiles.get(&name.parse::<ServiceName>().unwrap()).map(|profile| &**profile)
}

/// Where the first route of a profile leads.
fn leads(directory: &Directory, name: &str) -> Vec<String> {
    let Some(profile) = profile(directory, name) else { return Vec::new() };
    let Some(Action::Forward(forward)) = profile.routes.first().map(|route| &route.action) else {
        panic!("{profile:?}");
    };
    let backends = forward.backends.iter().map(|weighted| match &weighted.backend {
        Backend::Service { name, .. } => name.to_string(),
        Backend::Invalid { reason, .. } => format!("! {reason}"),
    });
    backends.collect()
}

fn route(namespace: &str, name: &str, to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: web, namespace: shop}}]\n  \
         rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]\n"
    )
}

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\n\
                        apiVersion: v1\nkind: Service\nmetadata: {name: web-v2, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

#[test]
fn files_of_gateway_api_are_read_together() {
    let folder = Folder::new("together", &[("route.yaml", &route("shop", "r", "web-v2"))]);
    let mut eye = Eye::new(&folder, None);
    let seen = eye.look();
    assert_eq!(leads(&seen, "web.shop"), ["web-v2.shop.svc.cluster.local:80"]);
    assert_eq!(seen.faults.len(), 0, "{:?}", seen.faults);

    folder.write("services.yaml", SERVICES);
    assert_eq!(eye.look().faults.len(), 0);
    folder.write("route.yaml", &route("shop", "r", "web-v3"));
    let seen = eye.look();
    assert!(leads(&seen, "web.shop")[0].contains("does not exist"), "{seen:?}");
    assert!(seen.faults[0].to_string().starts_with("route.yaml: "), "{:?}", seen.faults);

    folder.write("route.yaml", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nspec: 1\n");
    let seen = eye.look();
    assert!(leads(&seen, "web.shop")[0].contains("does not exist"), "the last good one stays");
    assert!(seen.faults.len() > 1, "{:?}", seen.faults);
    std::fs::remove_file(folder.0.join("route.yaml")).unwrap();
    assert!(profile(&eye.look(), "web.shop").is_none());
}

#[test]
fn a_profile_and_routes_in_two_files_are_merged() {
    let profile_text = "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: web.shop.svc.cluster.local, namespace: shop}\n\
                        spec:\n  routes:\n  - name: GET /a\n    condition: {method: GET, pathRegex: /a}\n    isRetryable: true\n";
    let folder = Folder::new(
        "merged",
        &[("profile.yaml", profile_text), ("route.yaml", &route("shop", "r", "web-v2"))],
    );
    let seen = Eye::new(&folder, None).look();
    let names: Vec<&str> =
        profile(&seen, "web.shop").unwrap().routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["GET /a", "r"]);
    assert_eq!(leads(&seen, "web.shop"), ["web-v2.shop.svc.cluster.local:80"]);
}

#[test]
fn each_caller_gets_the_profile_that_is_for_it() {
    let all = [route("shop", "producer", "web-v1"), route("a", "consumer", "web-a")].join("---\n");
    let folder = Folder::new("callers", &[("routes.yaml", &all)]);
    let seen = |home| Eye::new(&folder, home).look();
    assert_eq!(leads(&seen(Some("a")), "web.shop"), ["web-a.a.svc.cluster.local:80"]);
    assert_eq!(leads(&seen(Some("b")), "web.shop"), ["web-v1.shop.svc.cluster.local:80"]);
    assert_eq!(leads(&seen(Some("shop")), "web.shop"), ["web-v1.shop.svc.cluster.local:80"]);
    let told = seen(Some("b")).faults.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(told[0].contains("is for callers in namespace a, and this process lives in b"), "{told:?}");
    assert_eq!(seen(Some("a")).faults.len(), 0, "the service's own profile is no mistake");
}

#[test]
fn splits_of_smi_are_read_from_a_directory_too() {
    let split = "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {name: s, namespace: shop}\n\
                 spec: {service: web, backends: [{service: web-v1, weight: 9}, {service: web-v2, weight: 1}]}\n";
    let folder = Folder::new("smi", &[("split.yaml", split)]);
    let seen = Eye::new(&folder, Some("shop")).look();
    let weights: Vec<u32> =
        profile(&seen, "web.shop").unwrap().backends.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [9_000, 1_000]);
}
