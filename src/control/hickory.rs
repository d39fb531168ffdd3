//! Floor 5: asks the name servers of the system, or given ones, by hickory.

use crate::control::answers::Reply;
use crate::control::answers::TTL_MAX;
use crate::control::dns::Family;
use crate::control::dns::ROUND_MAX;
use crate::control::dns::Resolve;
use crate::control::dns::Srv;
use crate::stdx::clock::Duration;
use futures::future::BoxFuture;
use hickory_resolver::Resolver;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A resolver of names.
///
/// It tries the search list of `resolv.conf` itself: a name is only believed not to exist when no server failed on
/// the way, where hickory reports the last answer alone. Names of `/etc/hosts` are read once.
#[derive(Clone)]
pub struct Hickory {
    resolver: TokioResolver,
    search: Arc<[Name]>,
    ndots: usize,
}

impl std::fmt::Debug for Hickory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hickory").field("search", &self.search).field("ndots", &self.ndots).finish()
    }
}

impl Hickory {
    /// As `/etc/resolv.conf` says, read now.
    ///
    /// # Errors
    ///
    /// When it cannot be read or understood.
    pub fn system() -> io::Result<Self> {
        let (config, options) =
            hickory_resolver::system_conf::read_system_conf().map_err(io::Error::other)?;
        Self::with(config, options)
    }

    /// Asks these name servers by UDP, and by TCP when an answer is too long. Names are complete: there is no
    /// search list.
    ///
    /// # Errors
    ///
    /// When hickory refuses them.
    pub fn servers(servers: impl IntoIterator<Item = SocketAddr>) -> io::Result<Self> {
        let servers = servers.into_iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        Self::with(ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
    }

    fn with(config: ResolverConfig, mut options: ResolverOpts) -> io::Result<Self> {
        let mut search: Vec<Name> = config.domain().into_iter().chain(config.search()).cloned().collect();
        search.dedup();
        let ndots = options.ndots;
        // `Dns` keeps the time; a cache below it would count it twice.
        options.cache_size = 0;
        options.timeout = options.timeout.min(ROUND_MAX / 2);
        options.attempts = options.attempts.clamp(1, 3);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(io::Error::other)?;
        Ok(Self { resolver, search: search.into(), ndots })
    }

    /// The full names that `name` may mean, in order (resolv.conf(5), `ndots` and `search`).
    fn names(&self, name: &str) -> Result<Vec<Name>, String> {
        let name = Name::from_utf8(name).map_err(|error| format!("`{name}` is no domain name: {error}"))?;
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return Ok(vec![absolute]);
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        // One that grows beyond 255 bytes means nothing.
        let searched = self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = searched.collect();
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, absolute);
        Ok(names)
    }

    async fn ask<R>(self, name: Arc<str>, kind: RecordType, read: impl Fn(&RData) -> Option<R>) -> Reply<R> {
        let names = match self.names(&name) {
            Ok(names) => names,
            Err(why) => return Reply::Failed(why),
        };
        let (mut failed, mut nothing): (Option<String>, Option<Duration>) = (None, None);
        for name in names {
            match self.resolver.lookup(name, kind).await {
                Ok(lookup) => {
                    let records: Vec<R> =
                        lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
                    let ttl = lookup.answers().iter().map(|record| record.ttl).min();
                    let ttl = ttl.map_or(TTL_MAX, |secs| Duration::from_secs(secs.into()));
                    if !records.is_empty() {
                        return Reply::Records { records, ttl };
                    }
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                    let ttl = none.negative_ttl.map(|secs| Duration::from_secs(secs.into()));
                    nothing = nothing.into_iter().chain(ttl).min();
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        failed.map_or(Reply::Nothing { ttl: nothing }, Reply::Failed)
    }
}

impl Resolve for Hickory {
    fn addresses(&self, host: Arc<str>, family: Family) -> BoxFuture<'static, Reply<IpAddr>> {
        let kind = if family == Family::V4 { RecordType::A } else { RecordType::AAAA };
        Box::pin(self.clone().ask(host, kind, |data| match data {
            RData::A(v4) => Some(IpAddr::V4(v4.0)),
            RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
            _ => None,
        }))
    }

    fn services(&self, name: Arc<str>) -> BoxFuture<'static, Reply<Srv>> {
        Box::pin(self.clone().ask(name, RecordType::SRV, |data| match data {
            RData::SRV(srv) => Some(Srv {
                priority: srv.priority,
                // With its dot at the end: it is complete, and no search list is tried for it.
                target: srv.target.to_utf8().to_ascii_lowercase().into(),
                port: srv.port,
                weight: srv.weight,
            }),
            _ => None,
        }))
    }
}
