//! Floor 7: `enmesh completions` and `enmesh man`: what is made of the arguments themselves.

use crate::output::{self, Done, Failure, Verdict};
use clap::Command;

/// Writes a shell's completions.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enmesh completions bash > ~/.local/share/bash-completion/completions/enmesh\n  \
                        enmesh completions zsh > \"${fpath[1]}/_enmesh\"\n  \
                        enmesh completions fish > ~/.config/fish/completions/enmesh.fish"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Writes the manual page, of the tool or of one subcommand.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  enmesh man > enmesh.1\n  enmesh man stat | man -l -")]
pub(crate) struct ManArgs {
    /// A subcommand
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,
}

pub(crate) fn completions(args: &CompletionsArgs, mut tool: Command) -> Done {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut tool, "enmesh", &mut text);
    output::write(&String::from_utf8_lossy(&text))?;
    Ok(Verdict::Good)
}

pub(crate) fn man(args: &ManArgs, mut tool: Command) -> Done {
    tool.build();
    let page = match &args.subcommand {
        None => tool,
        Some(name) => {
            let known = tool.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
            let found = tool.find_subcommand(name).cloned();
            found.ok_or_else(|| Failure::Usage(format!("`{name}` is no subcommand; there are: {known}")))?
        }
    };
    let mut text = Vec::new();
    let written = clap_mangen::Man::new(page).render(&mut text);
    written.map_err(|error| Failure::Unreadable(format!("the manual page: {error}")))?;
    output::write(&String::from_utf8_lossy(&text))?;
    Ok(Verdict::Good)
}
