//! Floor 6: the pages of the admin server that show a mesh: what it knows, and what it would do with a request.

use crate::admin::asked::Asked;
use crate::admin::fleet::Question as Passed;
use crate::admin::guard::Access;
use crate::admin::page;
use crate::admin::server::{self, Admin};
use crate::admin::told::Told;
use crate::mesh::api::{Answered, Figures, json};
use crate::mesh::look::Look;
use crate::metrics::names::Direction;
use crate::metrics::report::Process;
use crate::policy::question::Question;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Adds them.
pub(crate) fn add(admin: Admin, figures: &Figures, look: Look) -> Admin {
    let (asked_figures, asked_look, shown) = (figures.clone(), look.clone(), look.clone());
    let figures = figures.clone();
    page::add(admin)
        .inspect(move || shown.value())
        .route(Method::GET, "/api/v1/inspect", Access::Read, move |asked| {
            let (figures, look) = (figures.clone(), look.clone());
            Box::pin(async move { json(inspect(figures, look, asked).await) })
        })
        .route(Method::POST, "/api/v1/explain", Access::Read, move |asked| {
            let (figures, look) = (asked_figures.clone(), asked_look.clone());
            Box::pin(async move { json(explain(figures, look, asked).await) })
        })
}

/// What processes know, by their ids.
#[derive(Default, Serialize, Deserialize)]
struct Inspections {
    processes: Vec<Process>,
    inspections: BTreeMap<String, Value>,
}

impl Told for Inspections {
    fn processes(&mut self) -> &mut Vec<Process> {
        &mut self.processes
    }

    /// A process that was asked by two ways counts once.
    fn merge(all: Vec<Self>) -> Result<Self, String> {
        let mut whole = Self::default();
        for mut told in all {
            let known =
                |process: &Process| process.id.as_ref().is_some_and(|id| whole.inspections.contains_key(id));
            told.processes.retain(|process| !known(process));
            whole.processes.append(&mut told.processes);
            whole.inspections.append(&mut told.inspections);
        }
        Ok(whole)
    }
}

impl Look {
    fn value(&self) -> Value {
        serde_json::to_value(self.inspect()).unwrap_or_default()
    }
}

async fn inspect(figures: Figures, look: Look, asked: Asked) -> Answered<Inspections> {
    let process = figures.live.process();
    let inspection = figures.turn.take(move || look.value()).await?;
    let inspections = process.id.clone().zip(Some(inspection)).into_iter().collect();
    let own = Inspections { processes: vec![process], inspections };
    figures.with_peers(own, "/api/v1/inspect", &asked, Inspections::merge).await
}

/// A question with what only the page asks.
#[derive(Deserialize)]
struct PageQuestion {
    /// The id of the process that is asked; `None`: this one.
    #[serde(default)]
    process: Option<String>,
    /// Whether it sends the request or gets it.
    #[serde(default)]
    direction: Way,
    #[serde(flatten)]
    question: Question,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    #[default]
    Outbound,
    Inbound,
}

async fn explain(figures: Figures, look: Look, asked: Asked) -> Answered<Value> {
    let bad = |error: serde_json::Error| {
        let remedy = r#"write {"host":"web.ns:80","path":"/"}"#;
        server::text(StatusCode::BAD_REQUEST, &format!("the body is no request: {error}; {remedy}\n"))
    };
    let body: Value = serde_json::from_slice(&asked.body).map_err(bad)?;
    let PageQuestion { process, direction, question } = PageQuestion::deserialize(&body).map_err(bad)?;
    let own = figures.live.process().id;
    match process.filter(|id| Some(id) != own.as_ref()) {
        Some(_) if asked.flag("local") => Ok(Value::Null),
        Some(id) => {
            // Nobody knows which peer has the id but that peer.
            let passed = Passed { path: "/api/v1/explain?local=1".to_owned(), body: Some(body) };
            let said = figures.ask(&passed).await?.into_iter().filter_map(|said| said.answer.ok());
            said.into_iter().find(|answer| !answer.is_null()).ok_or_else(|| {
                server::text(
                    StatusCode::NOT_FOUND,
                    &format!("no process {id} answers; leave `process` out\n"),
                )
            })
        }
        None => {
            let direction = match direction {
                Way::Outbound => Direction::Outbound,
                Way::Inbound => Direction::Inbound,
            };
            figures.turn.take(move || look.explain(&question, direction)).await
        }
    }
}
