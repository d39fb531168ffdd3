//! The voting service: counts votes in memory, and fails for doughnuts as often as it is told to.

use crate::catalogue::{self, with_emoji};
use crate::proto::voting_service_server::VotingService;
use crate::proto::{ResultsRequest, ResultsResponse, VoteRequest, VoteResponse, VotingResult};
use enmesh::metrics::registry::Registry;
use enmesh::stdx::rng::Rng;
use metrics::Label;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// The votes so far, by shortcode. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Poll {
    votes: Arc<Mutex<BTreeMap<&'static str, i32>>>,
}

impl Poll {
    fn vote(&self, shortcode: &'static str) {
        let mut votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        let count = votes.entry(shortcode).or_default();
        *count = count.saturating_add(1);
    }

    /// Most votes first, equals by name; only emoji that have votes.
    pub fn results(&self) -> Vec<VotingResult> {
        let votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results: Vec<_> = votes
            .iter()
            .map(|(shortcode, votes)| VotingResult { shortcode: (*shortcode).to_owned(), votes: *votes })
            .collect();
        results.sort_by_key(|result| std::cmp::Reverse(result.votes));
        results
    }
}

/// One replica of the service.
#[derive(Debug, Clone)]
pub struct Voting {
    /// Where votes are counted.
    pub poll: Poll,
    /// The share of doughnut votes that fail, 0 to 1.
    pub failure_rate: f64,
    /// How long each vote takes before it counts; a doughnut that fails does so at once.
    pub delay: Duration,
    /// What decides which doughnuts fail.
    pub rng: Rng,
    /// Where votes are counted for Prometheus.
    pub metrics: Registry,
}

impl Voting {
    async fn vote(&self, shortcode: &'static str) -> Result<Response<VoteResponse>, Status> {
        if shortcode == catalogue::DOUGHNUT && self.rng.unit() < self.failure_rate {
            return Err(Status::unknown("ERROR"));
        }
        // A caller that gives up while we wait cancels this future, and its vote never counts: a retry of it
        // elsewhere is no second vote.
        tokio::time::sleep(self.delay).await;
        self.poll.vote(shortcode);
        let labels = vec![Label::new("emoji", shortcode)];
        self.metrics.counter("emojivoto_votes_total", labels).increment(1);
        Ok(Response::new(VoteResponse {}))
    }
}

macro_rules! serve_votes {
    ($($method:ident $shortcode:literal $unicode:literal,)*) => {
        #[tonic::async_trait]
        impl VotingService for Voting {
            $(
                async fn $method(&self, _: Request<VoteRequest>) -> Result<Response<VoteResponse>, Status> {
                    self.vote($shortcode).await
                }
            )*

            async fn results(
                &self,
                _: Request<ResultsRequest>,
            ) -> Result<Response<ResultsResponse>, Status> {
                Ok(Response::new(ResultsResponse { results: self.poll.results() }))
            }
        }
    };
}
with_emoji!(serve_votes);

#[cfg(test)]
mod tests {
    use super::*;

    fn voting(failure_rate: f64, delay: Duration) -> Voting {
        let (poll, metrics) = (Poll::default(), Registry::global());
        Voting { poll, failure_rate, delay, rng: Rng::seeded(1), metrics }
    }

    async fn counts(voting: &Voting) -> Vec<(String, i32)> {
        voting.poll.results().into_iter().map(|r| (r.shortcode, r.votes)).collect()
    }

    #[tokio::test]
    async fn results_have_the_most_votes_first_and_only_what_was_voted_for() {
        let voting = voting(0.0, Duration::ZERO);
        assert!(counts(&voting).await.is_empty());
        voting.vote_ghost(Request::new(VoteRequest {})).await.unwrap();
        for _ in 0..2 {
            voting.vote_joy(Request::new(VoteRequest {})).await.unwrap();
        }
        voting.vote_doughnut(Request::new(VoteRequest {})).await.unwrap();
        let expected = [(":joy:", 2), (":doughnut:", 1), (":ghost:", 1)];
        assert_eq!(counts(&voting).await, expected.map(|(code, n)| (code.to_owned(), n)));
    }

    #[tokio::test]
    async fn only_doughnuts_fail_and_they_fail_before_the_delay() {
        let voting = voting(1.0, Duration::from_secs(3600));
        let status = voting.vote_doughnut(Request::new(VoteRequest {})).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unknown, "ERROR"));
        let quick = Voting { delay: Duration::ZERO, ..voting };
        assert!(quick.vote_joy(Request::new(VoteRequest {})).await.is_ok());
    }

    #[tokio::test]
    async fn a_rate_of_a_half_fails_about_half() {
        let voting = voting(0.5, Duration::ZERO);
        let mut failures = 0;
        for _ in 0..1000 {
            failures += i32::from(voting.vote_doughnut(Request::new(VoteRequest {})).await.is_err());
        }
        assert!((430..570).contains(&failures), "{failures}");
    }

    #[tokio::test]
    async fn a_vote_given_up_during_the_delay_does_not_count() {
        let voting = voting(0.0, Duration::from_secs(3600));
        let call = voting.vote_joy(Request::new(VoteRequest {}));
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
        assert!(counts(&voting).await.is_empty());
    }
}
