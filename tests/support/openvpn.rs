//! A real OpenVPN server and its clients, each in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

use super::process::Running;
use super::skip::{root_or_skip, skip, tools_or_skip};
use super::{Namespace, wait_for};

/// True if this machine can run a VPN; else records that test `name` was skipped.
#[must_use]
pub fn vpn_or_skip(name: &str) -> bool {
    root_or_skip(name)
        && tools_or_skip(name, &["openvpn", "ip"])
        && (Path::new("/dev/net/tun").exists() || skip(name, "needs /dev/net/tun"))
}

/// A server with its folder, and a namespace with the server's end of the VPN in it.
pub struct Vpn {
    pub namespace: Namespace,
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    /// Lines of the server's configuration beside those that each server has.
    options: String,
    server: Mutex<Option<Running>>,
    clients: AtomicU8,
}

/// A client in a namespace of its own; it disconnects when it is dropped.
pub struct VpnClient {
    pub namespace: Namespace,
    name: String,
    process: Running,
}

impl Vpn {
    /// A server with these `options`, in which `FOLDER` is its folder. Clients are at 10.77.0.2 and so on, unless
    /// the options say otherwise.
    pub fn new(options: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("authority.pem"), authority.pem()).unwrap();
        let options = options.replace("FOLDER", &folder.path().display().to_string());
        let vpn = Self {
            namespace: Namespace::new(),
            folder,
            authority,
            options,
            server: Mutex::new(None),
            clients: AtomicU8::new(0),
        };
        vpn.write_pair("server", "server", ExtendedKeyUsagePurpose::ServerAuth);
        vpn.start();
        vpn
    }

    /// Starts the server, and waits until it can be connected to.
    pub fn start(&self) {
        let network = if self.options.contains("server") { "" } else { "server 10.77.0.0 255.255.255.0" };
        let configuration = format!(
            "dev tun\nproto udp\ntopology subnet\n{network}\ndh none\nkeepalive 1 4\nverb 3\n\
             ca authority.pem\ncert server.pem\nkey server.key\nscript-security 2\n{}\n",
            self.options
        );
        std::fs::write(self.path("server.conf"), configuration).unwrap();
        let server = self.namespace.enter(|| self.openvpn("server"));
        *self.server.lock() = Some(server);
        self.await_start("server");
    }

    /// Ends the server by a signal, and waits until it is gone.
    pub fn stop(&self, signal: Signal) {
        let mut server = self.server.lock().take().unwrap();
        kill(Pid::from_raw(server.0.id() as i32), signal).unwrap();
        server.0.wait().unwrap();
    }

    /// Has the server restart without ending, which a signal can ask for.
    pub fn signal(&self, signal: Signal) {
        let server = self.server.lock();
        kill(Pid::from_raw(server.as_ref().unwrap().0.id() as i32), signal).unwrap();
    }

    /// Connects a client with this common name, and waits until it is in the VPN.
    pub fn connect(&self, common_name: &str) -> VpnClient {
        let client = self.begin_to_connect(common_name);
        self.await_start(&client.name);
        client
    }

    /// Starts a client, which need not be let in.
    pub fn begin_to_connect(&self, common_name: &str) -> VpnClient {
        let number = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("client{number}");
        let namespace = Namespace::new();
        let (ours, theirs) = (format!("192.0.2.{}", 4 * number + 1), format!("192.0.2.{}", 4 * number + 2));
        self.namespace.ip(&format!("link add {name} type veth peer name uplink netns {}", namespace.id()));
        self.namespace.ip(&format!("addr add {ours}/30 dev {name}"));
        self.namespace.ip(&format!("link set {name} up"));
        namespace.ip(&format!("addr add {theirs}/30 dev uplink"));
        namespace.ip("link set uplink up");
        self.write_pair(&name, common_name, ExtendedKeyUsagePurpose::ClientAuth);
        let configuration = format!(
            "client\ndev tun\nproto udp\nnobind\nremote {ours}\nca authority.pem\ncert {name}.pem\nkey {name}.key\n\
             verb 3\nconnect-retry 1 1\nexplicit-exit-notify 1\n"
        );
        std::fs::write(self.path(&format!("{name}.conf")), configuration).unwrap();
        let process = namespace.enter(|| self.openvpn(&name));
        VpnClient { namespace, name, process }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The log of the server or of a client (`client1`) since it was last started.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    fn openvpn(&self, name: &str) -> Running {
        let _none_before = std::fs::remove_file(self.path(&format!("{name}.log")));
        let mut command = Command::new("openvpn");
        command.arg("--cd").arg(self.folder.path()).args(["--config", &format!("{name}.conf")]);
        command.args(["--log", &format!("{name}.log")]);
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        Running::start(&mut command)
    }

    fn await_start(&self, name: &str) {
        let started = || self.log(name).contains("Initialization Sequence Completed").then_some(());
        assert!(wait_for(started).is_some(), "openvpn did not start:\n{}", self.log(name));
    }

    fn write_pair(&self, name: &str, common_name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

impl VpnClient {
    /// Tells the server that it goes, and goes.
    pub fn disconnect(mut self) {
        kill(Pid::from_raw(self.process.0.id() as i32), Signal::SIGTERM).unwrap();
        self.process.0.wait().unwrap();
    }
}
