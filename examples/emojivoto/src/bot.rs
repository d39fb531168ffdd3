//! The vote-bot. It has a sweet tooth: 15 % of its votes are for the doughnut, and the rest for anything at all.

use crate::catalogue::DOUGHNUT;
use crate::mesh::Mesh;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use std::time::Duration;

/// The share of votes that go to the doughnut whatever chance says.
const SWEET_TOOTH: f64 = 0.15;

/// The most bytes read of an answer; the list of a hundred takes 6 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The vote-bot's settings.
#[derive(Clone)]
pub struct Bot {
    /// What it sends through.
    pub mesh: Mesh,
    /// The web service, `host:port`.
    pub web: String,
    /// The `Host` header, if not `web`.
    pub host: Option<HeaderValue>,
    /// Rounds each second.
    pub rate: u32,
    /// How long it runs; `None` is for ever. (Upstream, an unset `TTL` ended the bot at once.)
    pub ttl: Option<Duration>,
    /// What chooses.
    pub rng: Rng,
    /// Told of each vote before it is cast, and of each failure to cast one.
    pub say: fn(&str),
}

#[derive(Deserialize)]
struct Emoji {
    shortcode: String,
}

impl Bot {
    /// Votes until its time is over.
    pub async fn run(self) {
        let start = clock::now();
        let pause = Duration::from_secs(1) / self.rate.max(1);
        while self.ttl.is_none_or(|ttl| start.elapsed() < ttl) {
            tokio::time::sleep(pause).await;
            if let Err(error) = self.round().await {
                (self.say)(&format!("✘ {error}"));
            }
        }
    }

    async fn round(&self) -> Result<(), String> {
        let (status, body) = self.get("/api/list").await?;
        if status != StatusCode::OK {
            return Err(format!("/api/list answered {status}"));
        }
        let list: Vec<Emoji> =
            serde_json::from_slice(&body).map_err(|error| format!("/api/list: {error}"))?;
        let Some(choice) = choose(&list, &self.rng) else { return Err("/api/list is empty".to_owned()) };
        (self.say)(&format!("✔ Voting for {choice}"));
        // A vote that fails is nothing to a bot; the mesh counts it.
        self.get(&format!("/api/vote?choice={choice}")).await.map(drop)
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Vec<u8>), String> {
        let uri = format!("http://{}{path}", self.web);
        self.mesh.get(&uri, self.host.as_ref(), ANSWER_BYTES_MAX).await
    }
}

fn choose<'a>(list: &'a [Emoji], rng: &Rng) -> Option<&'a str> {
    if rng.unit() < SWEET_TOOTH {
        return Some(DOUGHNUT);
    }
    let bound = u32::try_from(list.len()).unwrap_or(u32::MAX);
    list.get(rng.below(bound) as usize).map(|emoji| emoji.shortcode.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doughnuts_get_almost_sixteen_percent_and_every_emoji_gets_some() {
        let list: Vec<Emoji> =
            crate::catalogue::list().into_iter().map(|e| Emoji { shortcode: e.shortcode }).collect();
        let rng = Rng::seeded(3);
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..100_000 {
            *counts.entry(choose(&list, &rng).unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(counts.len(), 100);
        let doughnuts = counts[DOUGHNUT];
        assert!((15_400..16_300).contains(&doughnuts), "{doughnuts} of 100000; 15.85 % is right");
    }

    #[test]
    fn an_empty_list_leaves_nothing_but_doughnuts() {
        let rng = Rng::seeded(3);
        assert!((0..50).filter_map(|_| choose(&[], &rng)).all(|choice| choice == DOUGHNUT));
    }
}
