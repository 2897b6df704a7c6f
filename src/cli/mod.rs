//! The command line: one file per command.

mod admin_client;
pub mod authz;
pub mod canary;
pub mod check;
mod confine;
pub mod demo;
pub mod device;
mod doctor;
mod drain;
mod generate;
pub mod grant;
mod journal_stream;
mod log;
mod maintenance;
mod manual;
mod manual_examples;
mod node;
pub mod output;
pub mod principal;
mod principal_names;
mod reload;
mod reloader;
mod run;
pub mod sessions;
pub mod status;
pub mod store;
mod systemd;
pub mod token;
pub mod top;
pub mod tunnel;
mod upgrade;
pub mod usage;
mod values;
mod vpn;
mod watch;

#[cfg(test)]
mod documented;
#[cfg(test)]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Profile, Store, StoreUrl};
use crate::wire::TlsConfigs;
use output::{CommandError, OutputFormat, StoreContext};

/// A relay node for device tunnels.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version = crate::VERSION, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file. Default: /etc/sluicegate/sluicegate.toml if it exists, else built-in values. Environment
    /// variables SLUICEGATE_SECTION__KEY override both, such as SLUICEGATE_TIMEOUTS__HEAD=3s or
    /// SLUICEGATE_LISTEN__0__ADDRESS=127.0.0.1:3128.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a complete relay on this machine, send traffic through it, and show the results.
    Demo(demo::DemoArgs),
    /// Run the relay.
    Run,
    /// Have a running relay read its configuration again, and wait for the outcome.
    Reload,
    /// Take a running relay out of service: refuse new clients, and let open tunnels go on.
    Drain(drain::DrainArgs),
    /// Hand over to the program that is on disk now, with its sockets and its tunnels.
    Upgrade,
    /// Check the configuration and the store.
    Check(check::CheckArgs),
    /// Create or migrate the store.
    Store(OnStore<store::StoreCommand>),
    /// Manage principals, the owners of tokens and grants.
    Principal(OnStore<principal::PrincipalCommand>),
    /// Manage tokens.
    Token(OnStore<token::TokenCommand>),
    /// Manage devices.
    Device(OnStore<device::DeviceCommand>),
    /// Manage grants, which let a principal reach devices.
    Grant(OnStore<grant::GrantCommand>),
    /// Show and control the authorization of a running relay.
    #[command(subcommand)]
    Authz(authz::AuthzCommand),
    /// Show the state of a running relay on one screen.
    Status,
    /// List the sessions of a running relay, or end one.
    Sessions(sessions::SessionsArgs),
    /// Show who used how much of a running relay.
    Usage(usage::UsageArgs),
    /// Watch a running relay in the terminal, and end sessions.
    Top,
    /// Check the tuning of this machine for this configuration, without changing anything.
    Doctor(doctor::DoctorArgs),
    /// Start programs for a relay that is confined; `run` starts it.
    #[command(hide = true)]
    Launcher,
    /// Write files for packages.
    #[command(subcommand, hide = true)]
    Generate(generate::GenerateCommand),
    /// List the nodes of this installation.
    #[command(subcommand)]
    Node(node::NodeCommand),
    Tunnel(tunnel::TunnelArgs),
    Canary(canary::CanaryArgs),
    /// Run hooks for a VPN server.
    #[command(subcommand)]
    Vpn(vpn::VpnCommand),
}

/// A command on a store, which may be another one than the relay's.
#[derive(Debug, Args)]
struct OnStore<C: Subcommand> {
    #[command(subcommand)]
    command: C,
    /// Store to use instead of the configured one, such as sqlite:PATH or postgres://USER@HOST/DATABASE.
    #[arg(long, global = true, value_name = "URL", value_parser = |url: &str| StoreUrl::try_from(url.to_owned()))]
    store: Option<StoreUrl>,
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    match CommandLine::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // An error of several lines is several errors.
            let prefix = journal_stream::error_prefix();
            error.to_string().lines().for_each(|line| eprintln!("{prefix}sluicegate: {line}"));
            ExitCode::from(error.exit_code())
        }
    }
}

impl CommandLine {
    fn run(self) -> Result<(), CommandError> {
        let global = self.global;
        match self.command {
            Command::Demo(args) => demo::run(&args),
            Command::Run => run::run(&global),
            Command::Reload => reload::run(&global),
            Command::Drain(args) => drain::run(&args, &global.loaded()?, global.output()),
            Command::Upgrade => upgrade::run(&global.loaded()?, global.output()),
            Command::Check(args) => check::run(&args, &global),
            Command::Store(on) => store::run(on.command, &global.context(on.store)?),
            Command::Principal(on) => principal::run(on.command, &global.context(on.store)?),
            Command::Token(on) => token::run(on.command, &global.context(on.store)?),
            Command::Device(on) => device::run(on.command, &global.context(on.store)?),
            Command::Grant(on) => grant::run(on.command, &global.context(on.store)?),
            Command::Authz(command) => authz::run(command, &global.loaded()?, global.output()),
            Command::Status => status::run(&global.loaded()?, global.output()),
            Command::Sessions(args) => sessions::run(&args, &global.loaded()?, global.output()),
            Command::Usage(args) => usage::run(&args, &global.loaded()?, global.output()),
            Command::Top => top::run(&global.loaded()?, global.output()),
            Command::Node(command) => node::run(command, &global.loaded()?, global.output()),
            Command::Doctor(args) => doctor::run(args, &global.loaded()?, global.output()),
            Command::Launcher => confine::run_launcher(),
            Command::Generate(command) => generate::run(command),
            Command::Tunnel(args) => tunnel::run(args),
            Command::Canary(args) => canary::run(args, global.output()),
            Command::Vpn(command) => vpn::run(command),
        }
    }
}

/// A configuration, and the file that it came from.
pub struct Loaded {
    pub config: Config,
    /// TLS settings, from the files that the configuration names.
    pub tls: TlsConfigs,
    /// `None` for the built-in values.
    pub file: Option<PathBuf>,
}

impl Global {
    fn loaded(&self) -> Result<Loaded, CommandError> {
        let file = self.file()?;
        let environment = config::environment().map_err(CommandError::failed)?;
        let (config, tls) = Config::load_with(file.as_deref(), environment, TlsConfigs::load_all)
            .map_err(CommandError::failed)?;
        Ok(Loaded { config, tls, file })
    }

    /// The configuration file; `None` for the built-in values.
    fn file(&self) -> Result<Option<PathBuf>, CommandError> {
        match &self.config {
            Some(file) => Ok(Some(file.clone())),
            None => installed_config(),
        }
    }

    /// Context for a command on `store`, or on the configured store.
    fn context(&self, store: Option<StoreUrl>) -> Result<StoreContext, CommandError> {
        let store = match store {
            Some(url) => Store { url, ..Store::default() },
            None => self.loaded()?.config.store,
        };
        if store.profile == Profile::OpenBalena {
            return Err(CommandError::failed(
                "store.profile is openbalena, where openBalena itself keeps the rights; name a store of \
                 sluicegate's own with --store",
            ));
        }
        Ok(StoreContext { store, output: self.output() })
    }

    fn output(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { OutputFormat::Text }
    }
}

/// Finds the installed configuration. Fails where the file may exist but cannot be checked, so that a relay does
/// not run on built-in values by mistake.
fn installed_config() -> Result<Option<PathBuf>, CommandError> {
    let path = PathBuf::from(INSTALLED_CONFIG);
    match path.try_exists() {
        Ok(exists) => Ok(exists.then_some(path)),
        Err(error) => Err(CommandError::failed(format!(
            "{INSTALLED_CONFIG} cannot be checked ({error}); run as a user who may read it, or pass --config"
        ))),
    }
}

const INSTALLED_CONFIG: &str = "/etc/sluicegate/sluicegate.toml";
