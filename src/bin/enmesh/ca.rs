//! Floor 7: `enmesh ca`: a trust root and certificates for development, and what certificates say.

use crate::config::text;
use crate::output::{self, Done, Failure, Format, Verdict};
use enmesh::profile::duration;
use enmesh::stdx::clock;
use enmesh::tls::authority::{Authority, AuthoritySettings};
use enmesh::tls::identity::{Identity, TrustDomain};
use enmesh::tls::svid::{Names, Refusal, read_leaf, read_signer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Makes and shows certificates. What it makes is for development and tests, not for production.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  enmesh ca init --trust-domain dev.test --dir ca\n  \
                        enmesh ca issue --dir ca --out web spiffe://dev.test/ns/emojivoto/sa/web\n  \
                        enmesh ca inspect web/svid.pem")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Makes a trust root: `root.pem` and `root.key`
    #[command(after_help = "Example:\n  enmesh ca init --trust-domain dev.test --dir ca")]
    Init {
        /// The trust domain
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// Where the files are written
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// How long the root is valid
        #[arg(long, default_value = "720h", value_name = "DURATION")]
        life: String,
    },
    /// Issues a certificate: `svid.pem`, `svid.key` and `bundle.pem`
    #[command(
        after_help = "Example:\n  enmesh ca issue --dir ca --out web spiffe://dev.test/ns/emojivoto/sa/web"
    )]
    Issue {
        /// Who it is for: a SPIFFE ID
        identity: String,
        /// Where the trust root is
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// Where the files are written
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// How long the certificate is valid
        #[arg(long, default_value = "24h", value_name = "DURATION")]
        life: String,
    },
    /// Shows what certificates say, and what is wrong with them
    #[command(after_help = "Example:\n  enmesh ca inspect web/svid.pem -o json")]
    Inspect {
        /// PEM files; `-` is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<String>,
        /// How the result is written
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Writes the trust roots of several PEM files as one, each once
    #[command(after_help = "Example:\n  enmesh ca bundle old/root.pem new/root.pem > bundle.pem")]
    Bundle {
        /// PEM files; `-` is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<String>,
    },
}

pub(crate) fn run(args: Args) -> Done {
    match args.command {
        Command::Init { trust_domain, dir, life } => init(&trust_domain, &dir, &life),
        Command::Issue { identity, dir, out, life } => issue(&identity, &dir, &out, &life),
        Command::Inspect { files, output } => inspect(&files, output),
        Command::Bundle { files } => bundle(&files),
    }
}

fn init(domain: &str, dir: &Path, life: &str) -> Done {
    let domain: TrustDomain = domain.parse().map_err(usage)?;
    let settings = AuthoritySettings { ca_life: time(life)?, ..AuthoritySettings::default() };
    let authority = Authority::new(domain, settings).map_err(usage)?;
    let root = dir.join("root.pem");
    save(&root, authority.roots_pem().as_bytes())?;
    save(&dir.join("root.key"), authority.root_key_pem().as_bytes())?;
    output::write(&format!("{}\n{}\n", root.display(), dir.join("root.key").display()))?;
    Ok(Verdict::Good)
}

fn issue(identity: &str, dir: &Path, out: &Path, life: &str) -> Done {
    let identity: Identity = identity.parse().map_err(usage)?;
    let read = |name: &str| text(&dir.join(name).to_string_lossy());
    let (root, key) = (read("root.pem")?, zeroize::Zeroizing::new(read("root.key")?));
    let domain = root_domain(&root)?;
    let settings = AuthoritySettings { leaf_life: time(life)?, ..AuthoritySettings::default() };
    let authority = Authority::from_pem(domain, settings, &root, &key);
    let issued = authority.map_err(unreadable)?.issue_pem(&identity).map_err(usage)?;
    let files = [("svid.pem", &issued.chain), ("svid.key", &*issued.key), ("bundle.pem", &root)];
    for (name, content) in files {
        save(&out.join(name), content.as_bytes())?;
    }
    let names: Vec<String> =
        files.iter().map(|(name, _)| format!("{}\n", out.join(name).display())).collect();
    output::write(&names.concat())?;
    Ok(Verdict::Good)
}

fn root_domain(pem: &str) -> Result<TrustDomain, Failure> {
    let der = certificates("root.pem", pem)?;
    let signer = der.first().map(|der| read_signer(der)).transpose().map_err(unreadable)?;
    let domain = signer.and_then(|signer| signer.domain);
    domain.ok_or_else(|| {
        Failure::Unreadable("root.pem: names no trust domain; make one with ca init".to_owned())
    })
}

fn inspect(files: &[String], format: Format) -> Done {
    let now = clock::wall();
    let (mut shown, mut faulty) = (Vec::new(), false);
    for file in files {
        for (index, der) in certificates(file, &text(file)?)?.iter().enumerate() {
            let certificate = certificate(der, now);
            for fault in &certificate.faults {
                eprintln!("{file}: certificate[{index}]: {fault}");
            }
            faulty |= !certificate.faults.is_empty();
            shown.push((file, index, certificate));
        }
    }
    let values = shown.iter().map(|(file, index, shown)| {
        json!({
            "file": file, "index": index, "role": shown.role, "identity": shown.identity,
            "not_before": shown.not_before, "not_after": shown.not_after, "faults": shown.faults,
        })
    });
    let text = match format {
        Format::Table => shown.iter().map(|(file, index, shown)| row(file, *index, shown)).collect(),
        format => output::document(&Value::Array(values.collect()), format),
    };
    output::write(&text)?;
    Ok(Verdict::faulty_if(faulty))
}

/// What a certificate says about itself.
struct Shown {
    role: &'static str,
    identity: Vec<String>,
    not_before: Option<String>,
    not_after: Option<String>,
    faults: Vec<String>,
}

fn row(file: &str, index: usize, shown: &Shown) -> String {
    let time = |time: &Option<String>| time.as_deref().unwrap_or("-").to_owned();
    let identity = if shown.identity.is_empty() { "-".to_owned() } else { shown.identity.join(" ") };
    let validity = format!("valid from {} to {}", time(&shown.not_before), time(&shown.not_after));
    format!("{file}[{index}]  {}  {identity}\n  {validity}\n", shown.role)
}

fn certificate(der: &[u8], now: SystemTime) -> Shown {
    let (leaf, signer) = (read_leaf(der, Names::Spiffe), read_signer(der));
    let (role, identity, times, refusal) = match (leaf, signer) {
        (Ok(leaf), _) => ("workload", names(&leaf.names), Some((leaf.not_before, leaf.not_after)), None),
        (Err(_), Ok(signer)) => {
            let domain = signer.domain.map(|domain| format!("spiffe://{domain}"));
            ("signer", domain.into_iter().collect(), Some((signer.not_before, signer.not_after)), None)
        }
        (Err(strict), Err(Refusal::Usage("a signing certificate is not a ca"))) => {
            // What Linkerd's own certificates are is no SVID, but a workload's all the same.
            match read_leaf(der, Names::Linkerd) {
                Ok(leaf) => {
                    let times = (leaf.not_before, leaf.not_after);
                    ("workload", names(&leaf.names), Some(times), Some(strict))
                }
                Err(refusal) => ("unusable", Vec::new(), None, Some(refusal)),
            }
        }
        (Err(_), Err(refusal)) => ("unusable", Vec::new(), None, Some(refusal)),
    };
    let mut faults: Vec<String> = refusal.iter().map(ToString::to_string).collect();
    if let Some((from, to)) = times {
        if now < from {
            faults.push(format!("is not valid yet (from {})", date(from)));
        }
        if now > to {
            faults.push(format!("has expired ({}); renew it", date(to)));
        }
    }
    let (not_before, not_after) = (times.map(|(from, _)| date(from)), times.map(|(_, to)| date(to)));
    Shown { role, identity, not_before, not_after, faults }
}

fn names(names: &[Identity]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn date(time: SystemTime) -> String {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => httpdate::fmt_http_date(time),
        Err(_) => "before 1970".to_owned(),
    }
}

fn bundle(files: &[String]) -> Done {
    let mut roots: Vec<String> = Vec::new();
    let mut faulty = false;
    for file in files {
        let text = text(file)?;
        let ders = certificates(file, &text)?;
        for (index, (der, pem)) in ders.iter().zip(blocks(&text)).enumerate() {
            if let Err(refusal) = read_signer(der) {
                eprintln!("{file}: certificate[{index}]: {refusal}; it is left out");
                faulty = true;
            } else if !roots.contains(&pem) {
                roots.push(pem);
            }
        }
    }
    output::write(&roots.concat())?;
    Ok(Verdict::faulty_if(faulty))
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of a PEM text, as texts.
fn blocks(pem: &str) -> Vec<String> {
    let block = |rest: &str| {
        let inside = rest.split(END).next().unwrap_or_default();
        let lines: Vec<&str> = inside.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    };
    pem.split(BEGIN).skip(1).map(block).collect()
}

fn certificates(file: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(read) if read.is_empty() => {
            Err(Failure::Unreadable(format!("{file}: holds no certificate in PEM")))
        }
        Ok(read) => Ok(read),
        Err(error) => Err(Failure::Unreadable(format!("{file}: {error}"))),
    }
}

fn time(text: &str) -> Result<Duration, Failure> {
    let time = duration::go(text).ok().filter(|time| !time.is_zero());
    time.ok_or_else(|| Failure::Usage(format!("--life: is no duration ({text}); write one such as 24h")))
}

/// Writes a new file that its owner alone may read; what is there already is not touched.
fn save(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::Usage(format!("{}: is there already; remove it first", path.display()))
        }
        _ => Failure::Unreadable(format!("{}: {error}", path.display())),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).and_then(|mut file| file.write_all(content)).map_err(failed)
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(error.to_string())
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::Unreadable(error.to_string())
}
