//! Floor 7: `enmesh profile`.

use crate::config::text;
use crate::output::{self, Done, Failure, Format, Verdict, fault_line};
use enmesh::profile::generate::draft::Generated;
use enmesh::profile::generate::openapi::from_openapi;
use enmesh::profile::generate::proto::from_proto;
use enmesh::profile::generate::refine::Refinements;
use enmesh::profile::generate::target::{Sources, Target};
use enmesh::profile::generate::template::template;
use enmesh::profile::invalid::Invalid;
use enmesh::profile::parse::parse;
use enmesh::profile::write::emit;

/// Writes a `linkerd.io/v1alpha2` ServiceProfile, as `linkerd profile` does for the same input.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  enmesh profile --open-api web.swagger -n emojivoto web-svc > web.yaml\n  \
                        enmesh profile --proto Voting.proto -n emojivoto voting-svc\n  \
                        enmesh profile --template -n emojivoto emoji-svc"
)]
pub(crate) struct Args {
    /// The service: a DNS-1035 label
    #[arg(default_value = "", hide_default_value = true)]
    service: String,
    /// Writes a profile to begin with, its fields explained beside them
    #[arg(long)]
    template: bool,
    /// Makes a route for each operation of an OpenAPI description (2.0, 3.0 or 3.1, YAML or JSON)
    #[arg(long, value_name = "FILE")]
    open_api: Option<String>,
    /// Makes a route for each rpc of a protobuf file
    #[arg(long, value_name = "FILE")]
    proto: Option<String>,
    /// The namespace of the service
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// What the names of services end in
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
    /// Has no effect: no cluster is ever asked. For scripts written for `linkerd profile`
    #[arg(long)]
    ignore_cluster: bool,
    /// How the document is written
    #[arg(short, long, default_value = "yaml", value_parser = ["yaml", "json"])]
    output: String,
    /// Puts literal path segments before parameters, whatever the order of the input
    #[arg(long)]
    by_specificity: bool,
    /// Makes routes of idempotent methods retryable where the input says nothing
    #[arg(long)]
    infer_retryable: bool,
    /// Gives no two routes one name
    #[arg(long)]
    unique_names: bool,
    /// Makes path segments that look like ids parameters
    #[arg(long)]
    generalize: bool,
    /// Puts the path of OpenAPI 3's first server before all paths
    #[arg(long)]
    server_paths: bool,
}

pub(crate) fn run(args: &Args) -> Done {
    let sources =
        Sources { template: args.template, open_api: args.open_api.is_some(), proto: args.proto.is_some() };
    sources.check().map_err(|refusal| Failure::Usage(refusal.to_string()))?;
    let target = Target {
        service: args.service.clone(),
        namespace: args.namespace.clone(),
        cluster_domain: args.cluster_domain.clone(),
    };
    target.check().map_err(|refusal| Failure::Usage(refusal.to_string()))?;
    let refinements = Refinements {
        generalize: args.generalize,
        by_specificity: args.by_specificity,
        infer_retryable: args.infer_retryable,
        unique_names: args.unique_names,
        timeouts: false,
        server_paths: args.server_paths,
    };
    match (&args.open_api, &args.proto) {
        (Some(file), _) => write(args, file, from_openapi(&text(file)?, &target, refinements)),
        (None, Some(file)) => write(args, file, from_proto(&text(file)?, &target, refinements)),
        (None, None) => {
            write_template(args, &template(&target))?;
            Ok(Verdict::Good)
        }
    }
}

fn write(args: &Args, file: &str, generated: Result<Generated, Invalid>) -> Done {
    let generated = generated.map_err(|invalid| {
        let lines: Vec<String> = invalid.faults.iter().map(|fault| fault_line(file, fault, None)).collect();
        Failure::Unreadable(lines.join("\n"))
    })?;
    for fault in &generated.faults {
        eprintln!("{}", fault_line(file, fault, None));
    }
    let text = match args.output.as_str() {
        "json" => generated.to_json() + "\n",
        _ => generated.to_yaml(),
    };
    output::write(&text)?;
    Ok(Verdict::faulty_if(!generated.faults.is_empty()))
}

/// The template's comments are its point, and JSON has none: there the profile itself is written.
fn write_template(args: &Args, text: &str) -> Result<(), Failure> {
    if args.output == "yaml" {
        return output::write(text);
    }
    let Some(profile) = parse(text, "template").into_profiles().pop() else {
        return Err(Failure::Usage("the service's name makes no profile".to_owned()));
    };
    let written = profile.to_linkerd().document.map(emit::sorted).unwrap_or_default();
    output::write(&output::document(&written, Format::Json))
}
