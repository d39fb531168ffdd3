//! One service in a process of its own, as a container runs it: configured by the environment.

use crate::args::Service;
use crate::bot::Bot;
use crate::emoji::Emojis;
use crate::env::Env;
use crate::mesh::Mesh;
use crate::prom::Metrics;
use crate::proto::emoji_service_server::EmojiServiceServer;
use crate::proto::voting_service_server::VotingServiceServer;
use crate::voting::{Poll, Voting};
use crate::web::{self, Page};
use crate::{demo, listen, stop};
use enmesh::metrics::prometheus::Prometheus;
use enmesh::metrics::registry::Registry;
use enmesh::stdx::rng::Rng;
use http::HeaderValue;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::service::Routes;

/// Runs it until it is asked to end, or, for a vote-bot with a `TTL`, until its time is over.
pub async fn run(service: Service) -> Result<(), String> {
    let lookup = |name: &str| std::env::var(name).ok();
    let env = Env::new(&lookup);
    if env.text("OC_AGENT_HOST").is_some() {
        tracing::warn!("OC_AGENT_HOST is ignored: OpenCensus is no more, and traces leave by the mesh");
    }
    match service {
        Service::Web => web(env).await,
        Service::Emoji => {
            let routes = |_| Ok(Routes::new(EmojiServiceServer::new(Emojis)));
            grpc(env, service, demo::EMOJI, routes).await
        }
        Service::Voting => {
            let routes = |metrics| {
                let voting = Voting {
                    poll: Poll::default(),
                    failure_rate: env.share("FAILURE_RATE")?.unwrap_or(0.0),
                    delay: env.duration("ARTIFICIAL_DELAY")?.unwrap_or(Duration::ZERO),
                    rng: Rng::thread(),
                    metrics,
                };
                Ok(Routes::new(VotingServiceServer::new(voting)))
            };
            grpc(env, service, demo::VOTING, routes).await
        }
        Service::VoteBot => bot(env).await,
    }
}

async fn web(env: Env<'_>) -> Result<(), String> {
    env.required("WEB_PORT", "8080")?;
    let port = env.port("WEB_PORT")?.unwrap_or_default();
    let emoji = env.required("EMOJISVC_HOST", "emoji-svc.emojivoto:8080")?;
    let voting = env.required("VOTINGSVC_HOST", "voting-svc.emojivoto:8080")?;
    let page = Page {
        message: env.text("MESSAGE_OF_THE_DAY").unwrap_or_default(),
        index_bundle: env.text("INDEX_BUNDLE").map(Into::into),
        dev_server: env.text("WEBPACK_DEV_SERVER"),
    };
    let listener = listen::everywhere(port, "set WEB_PORT to another").await?;
    let mesh = Mesh::from_env(demo::WEB, None)?;
    let client = |name, host: &str| {
        mesh.service(host).map_err(|fault| format!("{name}={host} cannot be used: {fault}"))
    };
    let app = web::router(client("EMOJISVC_HOST", &emoji)?, client("VOTINGSVC_HOST", &voting)?, page);
    serve(&mesh, Service::Web, listener, app).await
}

async fn grpc(
    env: Env<'_>,
    service: Service,
    name: &str,
    routes: impl FnOnce(Registry) -> Result<Routes, String>,
) -> Result<(), String> {
    env.required("GRPC_PORT", "8080")?;
    let port = env.port("GRPC_PORT")?.unwrap_or_default();
    let prometheus = Prometheus::new().map_err(|error| error.to_string())?;
    let metrics = match env.port("PROM_PORT")? {
        Some(port) => Some(Metrics::at(port, prometheus.clone()).await?),
        None => None,
    };
    let app = routes(prometheus.registry().clone())?.into_axum_router();
    let listener = listen::everywhere(port, "set GRPC_PORT to another").await?;
    let mesh = Mesh::from_env(name, Some(prometheus))?;
    let show = async {
        match metrics {
            Some(metrics) => metrics.serve().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = serve(&mesh, service, listener, app) => served,
        () = show => Err("the metrics server ended before it was asked to".to_owned()),
    }
}

async fn serve(
    mesh: &Mesh,
    service: Service,
    listener: TcpListener,
    app: axum::Router,
) -> Result<(), String> {
    let addr = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!("{} listens at {addr}", service.name());
    let drain = async {
        stop::asked().await;
        tracing::info!("{} finishes its requests and ends", service.name());
        mesh.shutdown().await;
    };
    let work = async { tokio::join!(mesh.serve(listener, app), drain).0 };
    tokio::select! {
        served = work => served,
        () = mesh.tell_faults() => Ok(()),
    }
}

async fn bot(env: Env<'_>) -> Result<(), String> {
    let host = env.text("HOST_OVERRIDE").map(|host| {
        HeaderValue::from_str(&host).map_err(|_| format!("HOST_OVERRIDE={host} cannot be used: write a host"))
    });
    let bot = Bot {
        web: env.required("WEB_HOST", "web-svc.emojivoto:80")?,
        host: host.transpose()?,
        rate: env.rate("REQUEST_RATE")?.unwrap_or(1),
        ttl: env.seconds("TTL")?.filter(|ttl| !ttl.is_zero()),
        rng: Rng::thread(),
        say: |text| println!("{text}"),
        mesh: Mesh::from_env(demo::BOT, None)?,
    };
    let mesh = bot.mesh.clone();
    tokio::select! {
        () = bot.run() => {}
        () = stop::asked() => {}
        () = mesh.tell_faults() => {}
    }
    mesh.shutdown().await;
    Ok(())
}
