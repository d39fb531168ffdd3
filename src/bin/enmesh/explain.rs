//! Floor 7: `enmesh explain`: each request is given to the policy that the running stack would give it to.

use crate::authorize::Authorizer;
use crate::catalog::Catalog;
use crate::config;
use crate::output::{self, Done, Format, Verdict};
use enmesh::policy::question::Question;
use enmesh::policy::told::{told, unusable};
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::name::ServiceName;
use enmesh::route::head::RequestHead;
use serde_json::Value;

/// Says for each request which route, backends, changes, timeouts and retries it meets, and why no other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  echo '{\"host\":\"web-svc.emojivoto:80\",\"path\":\"/api/list\"}' | \
                        enmesh explain --config web.yaml\n  \
                        enmesh explain --config gateway.yaml services.yaml --requests requests.jsonl -o table")]
pub(crate) struct Args {
    /// Files or directories of any dialect; `-` is standard input
    #[arg(short, long, required = true, num_args = 1.., value_name = "FILE")]
    config: Vec<String>,
    /// The service of requests that name none in `to`
    #[arg(short, long, value_name = "NAME")]
    service: Option<String>,
    /// One JSON object a line
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    requests: String,
    /// The namespace of documents that name none
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// What the names of services end in
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
    /// How the answers are written: one JSON object a line, YAML documents, or a text for people
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Done {
    let settings = ImportSettings {
        cluster_domain: args.cluster_domain.as_str().into(),
        namespace: args.namespace.as_str().into(),
    };
    let config = config::read(&args.config, &settings)?;
    config.tell();
    let mut faulty = config.any_refused();
    let authorizer = Authorizer::new(config.own, config.authz, config.access, &args.cluster_domain)?;
    let mut catalog = Catalog::new(config.profiles, &args.cluster_domain);
    let mut text = String::new();
    for (number, line) in (1..).zip(config::text(&args.requests)?.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let answer = match serde_json::from_str::<Question>(line) {
            Ok(asked) => {
                let found = catalog.find(&asked, args.service.as_deref());
                let domain = &args.cluster_domain;
                let answered = found.and_then(|found| {
                    let authz = |head: &RequestHead<'_>| authorizer.decide(&asked, &found.name, head);
                    told(&asked, &found.policy, &found.name, &ServiceName::clone, authz, domain)
                });
                answered.unwrap_or_else(|why| unusable(&asked.id, &why))
            }
            Err(error) => {
                eprintln!("{}:{number}: is no request: {error}; see `enmesh explain --help`", args.requests);
                faulty = true;
                let id = serde_json::from_str::<Value>(line).ok().and_then(|asked| asked.get("id").cloned());
                unusable(&id.unwrap_or_default(), &error.to_string())
            }
        };
        text += &match args.output {
            Format::Json => output::document(&answer, Format::Json),
            Format::Yaml => format!("---\n{}", output::document(&answer, Format::Yaml)),
            Format::Table => for_people(&answer),
        };
        if text.len() > 1 << 16 {
            output::write(&std::mem::take(&mut text))?;
        }
    }
    output::write(&text)?;
    Ok(Verdict::faulty_if(faulty))
}

/// An answer for people.
fn for_people(answer: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let field = |name: &str| text(answer.get(name).unwrap_or(&Value::Null));
    let mut lines =
        format!("{}  {}  {}  {}\n", field("id"), field("outcome"), field("route"), field("status"));
    for name in
        ["rule", "backends", "request", "response", "redirect", "mirrors", "timeouts", "retry", "fault"]
    {
        let empty = |value: &&Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if let Some(value) = answer.get(name).filter(|value| !empty(value)) {
            lines += &format!("  {name}: {}\n", text(value));
        }
    }
    for line in answer.get("why").and_then(Value::as_array).into_iter().flatten() {
        lines += &format!("  why: {}\n", text(line));
    }
    lines
}
