//! Floor 7: `enmesh check`.

use crate::config;
use crate::output::{self, Done, Format, Verdict};
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::invalid::Fault;
use serde_json::{Value, json};

/// Parses and compiles documents of any dialect, many a file, and tells every fault and every diagnostic.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  enmesh check profiles/ gateway.yaml\n  \
                        kubectl get httproutes,services -A -o yaml | enmesh check -")]
pub(crate) struct Args {
    /// Files or directories; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Counts diagnostics as faults: what is ignored or approximated, or fails when it is used
    #[arg(long)]
    strict: bool,
    /// The namespace of documents that name none
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// What the names of services end in
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
    /// How the result is written
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Done {
    let settings = ImportSettings {
        cluster_domain: args.cluster_domain.as_str().into(),
        namespace: args.namespace.as_str().into(),
    };
    let config = config::read(&args.files, &settings)?;
    config.tell();
    let documents = config.notes.len();
    let refused = config.notes.iter().filter(|note| note.is_refused()).count();
    let told: usize = config.notes.iter().map(|note| note.faults.len()).sum();
    let text = match args.output {
        Format::Table => format!(
            "{documents} documents, {refused} refused; {} profiles; {told} faults and diagnostics\n",
            config.profiles.len()
        ),
        format => {
            let document = |note: &config::Note| {
                json!({
                    "file": note.file,
                    "origin": &*note.origin,
                    "object": &*note.object,
                    "refused": note.is_refused(),
                    "faults": note.faults.iter().map(fault).collect::<Vec<_>>(),
                })
            };
            let documents: Vec<Value> = config.notes.iter().map(document).collect();
            output::document(&json!({ "documents": documents }), format)
        }
    };
    output::write(&text)?;
    Ok(Verdict::faulty_if(refused > 0 || args.strict && told > 0))
}

fn fault(fault: &Fault) -> Value {
    json!({
        "severity": fault.severity.to_string(),
        "line": fault.place.map(|place| place.line),
        "column": fault.place.map(|place| place.column),
        "path": fault.path,
        "problem": fault.problem,
        "remedy": fault.remedy,
    })
}
