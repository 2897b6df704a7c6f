//! The command line: one file per command.

mod admin_client;
pub mod authz;
pub mod canary;
pub mod check;
pub mod demo;
pub mod device;
mod doctor;
mod generate;
pub mod grant;
mod log;
mod node;
pub mod output;
pub mod principal;
mod reload;
pub mod run;
pub mod sessions;
pub mod status;
pub mod store;
mod systemd;
pub mod token;
pub mod top;
pub mod tunnel;
mod values;
mod vpn;
mod watch;

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
#[command(name = "sluicegate", version, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
struct Global {
    /// The configuration file. Without one, /etc/sluicegate/sluicegate.toml where it is there, else the
    /// embedded defaults. The environment's SLUICEGATE_SECTION__KEY, such as SLUICEGATE_TIMEOUTS__HEAD=3s or
    /// SLUICEGATE_LISTEN__0__ADDRESS=127.0.0.1:3128, goes before either.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a whole relay on embedded parts, real tunnels through it, and figures.
    Demo(demo::DemoArgs),
    /// Run the relay.
    Run,
    /// Say what is wrong with the configuration and the store, or that nothing is.
    Check,
    /// The store that rights come from.
    Store(OnStore<store::StoreCommand>),
    /// Who may hold tokens and grants.
    Principal(OnStore<principal::PrincipalCommand>),
    /// What a client shows to be somebody.
    Token(OnStore<token::TokenCommand>),
    /// What tunnels end at.
    Device(OnStore<device::DeviceCommand>),
    /// Who may reach which ports of which devices.
    Grant(OnStore<grant::GrantCommand>),
    /// What decides on a running relay, and what its guard holds back.
    #[command(subcommand)]
    Authz(authz::AuthzCommand),
    /// Say how a running relay is doing, on one screen.
    Status,
    /// List the sessions of a running relay, or end one.
    Sessions(sessions::SessionsArgs),
    /// Watch a running relay, and end sessions.
    Top,
    /// What this machine's tuning is, what it should be for this configuration, and why; changes nothing.
    Doctor(doctor::DoctorArgs),
    /// Write what packages need beside the binary.
    #[command(subcommand, hide = true)]
    Generate(generate::GenerateCommand),
    /// The nodes that hand requests to each other.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Open tunnels to a device, as a client.
    Tunnel(tunnel::TunnelArgs),
    /// Check from outside that a relay does what it should, as a client would.
    Canary(canary::CanaryArgs),
    /// What a VPN server calls.
    #[command(subcommand)]
    Vpn(vpn::VpnCommand),
}

/// A command on a store, which can be another one than the relay's.
#[derive(Debug, Args)]
struct OnStore<C: Subcommand> {
    #[command(subcommand)]
    command: C,
    /// The store to work on, such as sqlite:PATH or postgres://USER@HOST/DATABASE, instead of the configuration's.
    #[arg(long, global = true, value_name = "URL", value_parser = |url: &str| StoreUrl::try_from(url.to_owned()))]
    store: Option<StoreUrl>,
}

/// Runs the command that the process was given.
pub fn main() -> ExitCode {
    match CommandLine::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluicegate: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

impl CommandLine {
    fn run(self) -> Result<(), CommandError> {
        let global = self.global;
        match self.command {
            Command::Demo(args) => demo::run(&args),
            Command::Run => run::run(&global.loaded()?),
            Command::Check => check::run(&global.loaded()?, global.output()),
            Command::Store(on) => store::run(on.command, &global.context(on.store)?),
            Command::Principal(on) => principal::run(on.command, &global.context(on.store)?),
            Command::Token(on) => token::run(on.command, &global.context(on.store)?),
            Command::Device(on) => device::run(on.command, &global.context(on.store)?),
            Command::Grant(on) => grant::run(on.command, &global.context(on.store)?),
            Command::Authz(command) => authz::run(command, &global.loaded()?, global.output()),
            Command::Status => status::run(&global.loaded()?, global.output()),
            Command::Sessions(args) => sessions::run(&args, &global.loaded()?, global.output()),
            Command::Top => top::run(&global.loaded()?, global.output()),
            Command::Node(command) => node::run(command, &global.loaded()?, global.output()),
            Command::Doctor(args) => doctor::run(args, &global.loaded()?.config, global.output()),
            Command::Generate(command) => generate::run(command),
            Command::Tunnel(args) => tunnel::run(args),
            Command::Canary(args) => canary::run(args, global.output()),
            Command::Vpn(command) => vpn::run(command),
        }
    }
}

/// A configuration, and whether anybody wrote it.
pub struct Loaded {
    pub config: Config,
    /// The TLS settings that it names the files of.
    pub tls: TlsConfigs,
    /// `None` for the embedded defaults.
    pub file: Option<PathBuf>,
}

impl Global {
    fn loaded(&self) -> Result<Loaded, CommandError> {
        let file = match &self.config {
            Some(file) => Some(file.clone()),
            None => installed_config()?,
        };
        let environment = config::environment().map_err(CommandError::failed)?;
        let (config, tls) = Config::load_with(file.as_deref(), environment, TlsConfigs::load)
            .map_err(CommandError::failed)?;
        Ok(Loaded { config, tls, file })
    }

    /// For a command on `store`, or on the configuration's where none was given.
    fn context(&self, store: Option<StoreUrl>) -> Result<StoreContext, CommandError> {
        let store = match store {
            Some(url) => Store { url, ..Store::default() },
            None => self.loaded()?.config.store,
        };
        if store.profile == Profile::OpenBalena {
            return Err(CommandError::failed(
                "store.profile is openbalena, where rights are kept by openBalena itself; name a store of \
                 sluicegate's own with --store",
            ));
        }
        Ok(StoreContext { store, output: self.output() })
    }

    fn output(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { OutputFormat::Text }
    }
}

/// A file that is there and cannot be looked at is no reason to run on the embedded defaults instead.
fn installed_config() -> Result<Option<PathBuf>, CommandError> {
    let path = PathBuf::from(INSTALLED_CONFIG);
    match path.try_exists() {
        Ok(exists) => Ok(exists.then_some(path)),
        Err(error) => Err(CommandError::failed(format!(
            "{INSTALLED_CONFIG} cannot be looked for ({error}); run as a user who may, or name a --config"
        ))),
    }
}

const INSTALLED_CONFIG: &str = "/etc/sluicegate/sluicegate.toml";
