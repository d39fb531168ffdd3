//! Floor 7: `enmesh tap`.

use crate::output::{self, Done, Failure, Verdict};
use crate::stream::{self, Query, Streams};
use enmesh::admin::fleet::Peer;
use enmesh::profile::duration;
use enmesh::profile::write::emit;
use enmesh::tap::event::Event;
use enmesh::tap::text::{Width, lines};
use std::time::Duration;

/// Shows live requests of running processes, a line for each begin, answer and end, as `linkerd viz tap` does.
///
/// Conditions of one kind are alternatives, those of different kinds must all hold. A trailing `*` stands for any rest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  enmesh tap --admin localhost:4191 --path '/api/*' --status 5xx\n  \
                        enmesh tap --admin web:4191 --admin voting:4191 --outcome failure -o wide\n  \
                        enmesh tap --max 100 -o json | jq .responseEndEvent.error")]
pub(crate) struct Args {
    /// Admin servers, http://host:port each: several processes are watched together; a name that has many addresses stands for
    /// all of them. One that is asked alone speaks for its peers too
    #[arg(long, value_name = "URL", num_args = 1.., value_delimiter = ',', default_value = stream::ADMIN)]
    admin: Vec<Peer>,
    /// Requests of this method
    #[arg(long)]
    method: Vec<String>,
    /// Requests for this path
    #[arg(long)]
    path: Vec<String>,
    /// Requests that name this authority
    #[arg(long)]
    authority: Vec<String>,
    /// Requests for this service
    #[arg(long)]
    service: Vec<String>,
    /// Requests of this route; `[DEFAULT]` is the one that no profile names
    #[arg(long)]
    route: Vec<String>,
    /// Requests that arrive (inbound) or are sent (outbound)
    #[arg(long, value_parser = ["inbound", "outbound"])]
    direction: Option<String>,
    /// Requests from this address, network or port: 10.0.0.1, 10.0.0.0/8, :4040
    #[arg(long, value_name = "ADDRESS")]
    from: Vec<String>,
    /// Requests of this caller's identity
    #[arg(long, value_name = "IDENTITY")]
    from_identity: Vec<String>,
    /// Requests to this address, network or port
    #[arg(long, value_name = "ADDRESS")]
    to: Vec<String>,
    /// Requests to this identity
    #[arg(long, value_name = "IDENTITY")]
    to_identity: Vec<String>,
    /// Requests to endpoints with this label
    #[arg(long, value_name = "NAME:VALUE")]
    label: Vec<String>,
    /// Requests that are answered so: 503, 5xx, 500-599
    #[arg(long)]
    status: Vec<String>,
    /// Requests that end so; `audited` are those that an authorization rule on trial would refuse
    #[arg(long, value_parser = ["success", "failure", "cancelled", "audited"])]
    outcome: Vec<String>,
    /// The share of requests to show, 0 to 1
    #[arg(long)]
    sample: Option<f64>,
    /// At most so many requests a second of each process; 0 for all
    #[arg(long, default_value_t = enmesh::tap::filter::RATE)]
    rate: u32,
    /// Ends after so many requests
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Ends after this time, such as 30s
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// Shows headers too; those that prove who somebody is are hidden
    #[arg(long)]
    headers: bool,
    /// How events are written
    #[arg(short, long, default_value = "text", value_parser = ["text", "wide", "json", "yaml"])]
    output: String,
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    duration::go(text).map_err(|problem| format!("{problem}; write such as 30s"))
}

impl Args {
    fn query(&self) -> Query {
        let mut query = Query::default();
        for (key, values) in [
            ("method", &self.method),
            ("path", &self.path),
            ("authority", &self.authority),
            ("service", &self.service),
            ("route", &self.route),
            ("source", &self.from),
            ("source_identity", &self.from_identity),
            ("destination", &self.to),
            ("destination_identity", &self.to_identity),
            ("label", &self.label),
            ("status", &self.status),
            ("outcome", &self.outcome),
        ] {
            values.iter().for_each(|value| query.add(key, value));
        }
        if let Some(direction) = &self.direction {
            query.add("direction", direction);
        }
        if let Some(sample) = self.sample {
            query.add("sample", &sample.to_string());
        }
        if let Some(max) = self.max {
            query.add("max", &max.to_string());
        }
        query.add("rate", &self.rate.to_string());
        query.add("headers", if self.headers { "1" } else { "0" });
        query
    }

    fn write(&self, event: &Event) -> Result<(), Failure> {
        let text = match self.output.as_str() {
            "json" => serde_json::to_string(event).unwrap_or_default(),
            // A document for each.
            "yaml" => {
                format!("---\n{}", emit::yaml(&serde_json::to_value(event).unwrap_or_default()).trim_end())
            }
            "wide" => lines(event, Width::Wide),
            _ => lines(event, Width::Usual),
        };
        output::write(&(text + "\n"))
    }
}

pub(crate) fn run(args: &Args) -> Done {
    stream::runtime()?.block_on(async {
        let shown = show(args);
        match args.time {
            None => shown.await,
            Some(time) => tokio::time::timeout(time, shown).await.unwrap_or(Ok(Verdict::Good)),
        }
    })
}

async fn show(args: &Args) -> Done {
    let mut events = Streams::open(&args.admin, &args.query()).await?;
    let mut left = args.max;
    while let Some(event) = events.next().await {
        let event = event?;
        args.write(&event)?;
        if event.response_end_event.is_some()
            && let Some(left) = &mut left
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                break;
            }
        }
    }
    Ok(Verdict::Good)
}
