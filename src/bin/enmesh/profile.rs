//! Floor 7: `enmesh profile`.

use crate::config::text;
use crate::output::{self, Done, Failure, Format, Verdict, fault_line};
use crate::stream::{self, Query, Streams};
use enmesh::admin::fleet::Peer;
use enmesh::profile::generate::draft::Generated;
use enmesh::profile::generate::openapi::from_openapi;
use enmesh::profile::generate::proto::from_proto;
use enmesh::profile::generate::refine::Refinements;
use enmesh::profile::generate::tap::{self, Direction, Seen, Stage};
use enmesh::profile::generate::target::{Sources, Target};
use enmesh::profile::generate::template::template;
use enmesh::profile::invalid::Invalid;
use enmesh::profile::parse::parse;
use enmesh::profile::write::emit;
use enmesh::tap::event::StreamId;
use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// Writes a `linkerd.io/v1alpha2` ServiceProfile, as `linkerd profile` does for the same input.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  enmesh profile --open-api web.swagger -n emojivoto web-svc > web.yaml\n  \
                        enmesh profile --proto Voting.proto -n emojivoto voting-svc\n  \
                        enmesh profile --template -n emojivoto emoji-svc\n  \
                        enmesh profile --tap localhost:4191 --generalize -n emojivoto web-svc"
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
    /// Makes a route for each request that a running process serves meanwhile: its admin server, as URL or host:port
    #[arg(long, value_name = "ADDR")]
    tap: Option<String>,
    /// How long --tap watches
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::tap::time)]
    tap_duration: Duration,
    /// How many routes --tap finds before it stops
    #[arg(long, value_name = "N", default_value_t = tap::ROUTES_MAX)]
    tap_route_limit: usize,
    /// Gives routes that --tap saw 100 times the 99.9th percentile of their latencies as timeout
    #[arg(long, requires = "tap")]
    suggest_timeouts: bool,
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
    // With --tap it is the only one.
    if args.tap.is_none() || sources != Sources::default() {
        let sources = if args.tap.is_some() { Sources::default() } else { sources };
        sources.check().map_err(|refusal| Failure::Usage(refusal.to_string()))?;
    }
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
        timeouts: args.suggest_timeouts,
        server_paths: args.server_paths,
    };
    if let Some(admin) = &args.tap {
        let generated = watch(args, admin, &target, refinements)?;
        return write(args, admin, Ok(generated));
    }
    match (&args.open_api, &args.proto) {
        (Some(file), _) => write(args, file, from_openapi(&text(file)?, &target, refinements)),
        (None, Some(file)) => write(args, file, from_proto(&text(file)?, &target, refinements)),
        (None, None) => {
            write_template(args, &template(&target))?;
            Ok(Verdict::Good)
        }
    }
}

/// Watches a process until the time is over, or enough routes are found.
fn watch(args: &Args, admin: &str, target: &Target, refinements: Refinements) -> Result<Generated, Failure> {
    let (sender, seen) = std::sync::mpsc::sync_channel(1024);
    let (time, admin): (_, Peer) = (args.tap_duration, admin.parse().map_err(Failure::Usage)?);
    let runtime = stream::runtime()?;
    let mut query = Query::default();
    query.add("direction", "inbound");
    query.add("rate", "0");
    query.add("local", "1");
    let mut stream = runtime.block_on(Streams::open(&[admin], &query))?;
    let watching = std::thread::spawn(move || {
        runtime.block_on(async {
            let all = pass(&mut stream, &sender);
            tokio::time::timeout(time, all).await.unwrap_or(Ok(()))
        })
    });
    let generated = tap::from_tap(seen, target, args.tap_route_limit, refinements);
    // It ends with the time, or when what it sees is not wanted any more.
    match watching.join() {
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(())) | Err(_) => Ok(generated),
    }
}

/// Passes on what a process tells of the requests that arrive there.
async fn pass(stream: &mut Streams, sender: &SyncSender<Seen>) -> Result<(), Failure> {
    let mut known: BTreeMap<StreamId, (String, String)> = BTreeMap::new();
    while let Some(event) = stream.next().await.transpose()? {
        let direction = match event.proxy_direction.as_str() {
            "INBOUND" => Direction::Inbound,
            _ => Direction::Outbound,
        };
        let (stage, (method, path)) = match (event.request_init_event, event.response_end_event) {
            (Some(init), _) => {
                let named = (init.method, init.path);
                if known.len() < UNDER_WAY_MAX {
                    known.insert(init.id, named.clone());
                }
                (Stage::Request, named)
            }
            (None, Some(end)) => match known.remove(&end.id) {
                Some(named) => (Stage::End(end.since_request_init.into()), named),
                None => continue,
            },
            (None, None) => continue,
        };
        if sender.send(Seen { direction, stage, method, path }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The requests under way whose end is waited for: beyond them only their route is seen.
const UNDER_WAY_MAX: usize = 10_000;

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
