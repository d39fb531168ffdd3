//! Floor 7: `enmesh convert`.

use crate::config;
use crate::output::{self, Done, Verdict};
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::invalid::{Fault, Severity};
use enmesh::profile::service::ServiceProfile;
use enmesh::profile::write::emit;
use serde_json::Value;
use std::sync::Arc;

/// Writes other meshes' documents as enmesh's own, Linkerd's or Gateway API's; tells what cannot be kept on standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  enmesh convert httproutes.yaml services.yaml > profiles.yaml\n  \
                        enmesh convert --to linkerd split.yaml\n  \
                        enmesh convert --to gateway-api --port 80 serviceprofiles.yaml")]
pub(crate) struct Args {
    /// Files or directories; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Which dialect to read; what is of another is refused
    #[arg(long, value_enum, default_value = "auto")]
    from: From,
    /// Which dialect to write
    #[arg(long, value_enum, default_value = "enmesh")]
    to: To,
    /// The namespace of documents that name none
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// What the names of services end in
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
    /// The port of Services whose name says none, for `--to gateway-api`
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// How the documents are written: YAML, or one JSON object a line
    #[arg(short, long, default_value = "yaml", value_parser = ["yaml", "json"])]
    output: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum From {
    Auto,
    Linkerd,
    GatewayApi,
    Smi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum To {
    Enmesh,
    Linkerd,
    GatewayApi,
}

impl From {
    /// Whether a document of this API group belongs to the dialect, or to Kubernetes itself.
    fn takes(self, group: &str) -> bool {
        let of =
            |names: &[&str]| names.iter().any(|name| group == *name || group.ends_with(&format!(".{name}")));
        let ours = match self {
            Self::Auto => true,
            Self::Linkerd => of(&["linkerd.io"]),
            Self::GatewayApi => of(&["gateway.networking.k8s.io", "gateway.networking.x-k8s.io"]),
            Self::Smi => of(&["smi-spec.io"]),
        };
        ours || matches!(group, "" | "apps" | "batch")
    }
}

pub(crate) fn run(args: &Args) -> Done {
    let settings = ImportSettings {
        cluster_domain: args.cluster_domain.as_str().into(),
        namespace: args.namespace.as_str().into(),
    };
    let config = config::read_only(&args.files, &settings, |group| args.from.takes(group))?;
    config.tell();
    let mut refused = config.any_refused();
    let mut documents = Vec::new();
    for profile in &config.profiles {
        let (document, faults) = written(profile, args);
        refused |= document.is_none();
        for fault in faults {
            eprintln!("{}", config.line(&profile.origin, &fault));
        }
        documents.extend(document);
    }
    let text: String = match args.output.as_str() {
        "json" => documents.iter().map(|document| format!("{document}\n")).collect(),
        _ => documents.iter().map(emit::yaml).collect::<Vec<_>>().join("---\n"),
    };
    output::write(&text)?;
    Ok(Verdict::faulty_if(refused))
}

fn written(profile: &Arc<ServiceProfile>, args: &Args) -> (Option<Value>, Vec<Fault>) {
    let written = match args.to {
        To::Enmesh => return (Some(profile.to_json()), Vec::new()),
        To::Linkerd => profile.to_linkerd(),
        To::GatewayApi => profile.to_gateway_api(args.port, &args.cluster_domain),
    };
    let refused = written.faults.iter().any(|fault| fault.severity == Severity::Rejected);
    (written.document.filter(|_| !refused), written.faults)
}
