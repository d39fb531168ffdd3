//! One service in a process of its own, as a container runs it: configured by the environment.

use crate::args::Service;
use crate::bot::Bot;
use crate::emoji::Emojis;
use crate::env::Env;
use crate::mesh::Mesh;
use crate::proto::emoji_service_server::EmojiServiceServer;
use crate::proto::voting_service_server::VotingServiceServer;
use crate::voting::{Poll, Voting};
use crate::web::{self, Page};
use crate::{demo, listen, stop};
use enmesh::stdx::rng::Rng;
use http::HeaderValue;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;
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
            grpc(env, service, Routes::new(EmojiServiceServer::new(Emojis)).into_axum_router()).await
        }
        Service::Voting => {
            let voting = Voting {
                poll: Poll::default(),
                failure_rate: env.share("FAILURE_RATE")?.unwrap_or(0.0),
                delay: env.duration("ARTIFICIAL_DELAY")?.unwrap_or(Duration::ZERO),
                rng: Rng::thread(),
            };
            grpc(env, service, Routes::new(VotingServiceServer::new(voting)).into_axum_router()).await
        }
        Service::VoteBot => bot(env).await,
    }
}

/// All addresses of this machine, IPv4 and IPv6.
fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
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
    let mesh = Mesh::from_env(demo::WEB, None)?;
    let app = web::router(mesh.service(&emoji)?, mesh.service(&voting)?, page);
    serve(&mesh, Service::Web, port, "WEB_PORT", app).await
}

async fn grpc(env: Env<'_>, service: Service, app: axum::Router) -> Result<(), String> {
    env.required("GRPC_PORT", "8080")?;
    let port = env.port("GRPC_PORT")?.unwrap_or_default();
    let name = if service == Service::Emoji { demo::EMOJI } else { demo::VOTING };
    let mesh = Mesh::from_env(name, env.port("PROM_PORT")?.map(everywhere))?;
    serve(&mesh, service, port, "GRPC_PORT", app).await
}

async fn serve(
    mesh: &Mesh,
    service: Service,
    port: u16,
    variable: &str,
    app: axum::Router,
) -> Result<(), String> {
    let listener = listen::everywhere(port, &format!("set {variable} to another")).await?;
    let addr = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!("{} listens at {addr}", service.name());
    let drain = async {
        stop::asked().await;
        tracing::info!("{} finishes its requests and ends", service.name());
        mesh.shutdown().await;
    };
    let (served, ()) = tokio::join!(mesh.serve(listener, app), drain);
    served
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
    }
    mesh.shutdown().await;
    Ok(())
}
