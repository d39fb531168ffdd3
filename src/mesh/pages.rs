//! Floor 6: the pages of the admin server that show a mesh: what it knows, and what it would do with a request.

use crate::admin::asked::Asked;
use crate::admin::guard::Access;
use crate::admin::page;
use crate::admin::server::{self, Admin, AdminBody, Turn};
use crate::mesh::look::Look;
use crate::metrics::names::Direction;
use crate::policy::question::Question;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// Adds them.
pub(crate) fn add(admin: Admin, look: Look) -> Admin {
    let (shown, inspected, explained, turn) = (look.clone(), look.clone(), look, admin.turn());
    let explain_turn = turn.clone();
    page::add(admin)
        .inspect(move || shown.value())
        .route(Method::GET, "/api/v1/inspect", Access::Read, move |_| {
            Box::pin(inspect(inspected.clone(), turn.clone()))
        })
        .route(Method::POST, "/api/v1/explain", Access::Read, move |asked| {
            Box::pin(explain(explained.clone(), explain_turn.clone(), asked))
        })
}

impl Look {
    fn value(&self) -> Value {
        serde_json::to_value(self.inspect()).unwrap_or_default()
    }
}

async fn inspect(look: Look, turn: Turn) -> Response<AdminBody> {
    match turn.take(move || json!({"processes": [{"inspection": look.value()}]})).await {
        Ok(value) => server::json(StatusCode::OK, &value),
        Err(refusal) => refusal,
    }
}

/// A question with what only the page asks.
#[derive(Deserialize)]
struct PageQuestion {
    /// Whether the process sends the request or gets it.
    #[serde(default)]
    direction: Option<Way>,
    #[serde(flatten)]
    question: Question,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Outbound,
    Inbound,
}

async fn explain(look: Look, turn: Turn, asked: Asked) -> Response<AdminBody> {
    let question: PageQuestion = match serde_json::from_slice(&asked.body) {
        Ok(question) => question,
        Err(error) => {
            let why =
                format!("the body is no request: {error}; write {{\"host\":\"web.ns:80\",\"path\":\"/\"}}\n");
            return server::text(StatusCode::BAD_REQUEST, &why);
        }
    };
    let direction = match question.direction {
        Some(Way::Inbound) => Direction::Inbound,
        Some(Way::Outbound) | None => Direction::Outbound,
    };
    match turn.take(move || look.explain(&question.question, direction)).await {
        Ok(value) => server::json(StatusCode::OK, &value),
        Err(refusal) => refusal,
    }
}
