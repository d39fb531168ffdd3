//! Floor 7: `enmesh top`.

use crate::live::{Shown, percent, table};
use crate::output::{self, Done, Verdict};
use crate::stream::{self, Query, Streams};
use enmesh::admin::fleet::Peer;
use enmesh::tap::top::{Line, Top};
use serde_json::json;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

/// Shows who asks whom for what most, by path, from live requests.
///
/// On a terminal it is drawn anew each second until it is stopped; else, and with --for, it is written once.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enmesh top\n  enmesh top --admin http://web:4191 http://voting:4191 --path '/api/*'\n  \
                        enmesh top --for 30s -o json"
)]
pub(crate) struct Args {
    /// Admin servers, http://host:port each: several processes are watched together; a name that has many addresses stands for
    /// all of them. One that is asked alone speaks for its peers too
    #[arg(long, value_name = "URL", num_args = 1.., value_delimiter = ',', default_value = stream::ADMIN)]
    admin: Vec<Peer>,
    /// Requests for this path; a trailing `*` stands for any rest
    #[arg(long)]
    path: Vec<String>,
    /// Requests of this method
    #[arg(long)]
    method: Vec<String>,
    /// Requests that arrive (inbound) or are sent (outbound)
    #[arg(long, value_parser = ["inbound", "outbound"])]
    direction: Option<String>,
    /// At most so many requests a second of each process; 0 for all
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Counts for this time and ends, such as 30s
    #[arg(long = "for", value_name = "TIME", value_parser = crate::tap::time)]
    time: Option<Duration>,
    /// How many lines are shown
    #[arg(long, default_value_t = 40, value_name = "N")]
    lines: usize,
    /// How the result is written
    #[arg(short, long, default_value = "table", value_parser = ["table", "json", "yaml"])]
    output: String,
}

/// How long it counts where nobody looks on and nothing is said.
const USUAL: Duration = Duration::from_secs(10);

/// How often it is drawn.
const DRAWN: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &Args) -> Done {
    stream::runtime()?.block_on(count(args))
}

async fn count(args: &Args) -> Done {
    let mut query = Query::default();
    args.path.iter().for_each(|path| query.add("path", path));
    args.method.iter().for_each(|method| query.add("method", method));
    args.direction.iter().for_each(|direction| query.add("direction", direction));
    query.add("rate", &args.rate.to_string());
    let mut events = Streams::open(&args.admin, &query).await?;
    let draws = stdout().is_terminal() && args.time.is_none() && args.output == "table";
    let mut top = Top::default();
    let mut end = std::pin::pin!(tokio::time::sleep(args.time.unwrap_or(USUAL)));
    let mut drawn = tokio::time::interval(DRAWN);
    loop {
        tokio::select! {
            () = end.as_mut(), if !draws => break,
            _ = drawn.tick(), if draws => output::write(&format!("\x1b[2J\x1b[H{}", Shows(&top, args.lines).table(false)))?,
            event = events.next() => match event {
                None => break,
                Some(event) => top.take(&*event?),
            },
        }
    }
    let text = match args.output.as_str() {
        "table" => Shows(&top, args.lines).table(false),
        format => output::document(
            &json!({ "lines": top.lines().iter().map(told).collect::<Vec<_>>() }),
            if format == "yaml" { output::Format::Yaml } else { output::Format::Json },
        ),
    };
    output::write(&text)?;
    Ok(Verdict::Good)
}

fn told(line: &Line) -> serde_json::Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "source": line.key.source, "destination": line.key.destination, "method": line.key.method, "path": line.key.path,
        "count": line.count, "best_ms": ms(line.best), "worst_ms": ms(line.worst), "last_ms": ms(line.last),
        "success_rate": line.success_rate(),
    })
}

/// So many lines of it.
struct Shows<'a>(&'a Top, usize);

impl Shown for Shows<'_> {
    fn table(&self, _: bool) -> String {
        let headings =
            ["SOURCE", "DESTINATION", "METHOD", "PATH", "COUNT", "BEST", "WORST", "LAST", "SUCCESS_RATE"];
        let cells = |line: Line| {
            let time = |time: Duration| format!("{:.1}ms", time.as_secs_f64() * 1e3);
            let rate = percent(line.success_rate());
            let Line { key, count, best, worst, last, .. } = line;
            vec![
                key.source,
                key.destination,
                key.method,
                key.path,
                count.to_string(),
                time(best),
                time(worst),
                time(last),
                rate,
            ]
        };
        table(&headings, &self.0.lines().into_iter().take(self.1).map(cells).collect::<Vec<_>>())
    }
}
