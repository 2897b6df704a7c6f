//! nginx's stream module with one worker.

use std::net::SocketAddr;
use std::path::Path;

use sluicegate::sys::cpu::Cpu;

use super::relay::Launch;
use super::{Contender, Facts, Missing, StartError, Started, find_or_missing, line_with, output_of};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::Work;

pub(super) struct Nginx;

impl Contender for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn facts(&self) -> Result<Facts, Missing> {
        let program = find_or_missing("nginx", "nginx")?;
        let built = output_of(&program, &["-V"])?;
        if stream_module(&built).is_none() {
            return Err(Missing::NginxStream);
        }
        let settings = format!(
            "stream, 1 worker, proxy_buffer_size {BULK_BUFFER} for bulk, else {BUFFER}, multi_accept on"
        );
        Ok(Facts { version: line_with(&built, "nginx/"), settings })
    }

    fn joins(&self, _: Work, extent: Extent) -> bool {
        extent == Extent::Full
    }

    fn start(&self, work: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        let program = find_or_missing("nginx", "nginx").map_err(std::io::Error::other)?;
        let built = output_of(&program, &["-V"]).map_err(std::io::Error::other)?;
        let module = stream_module(&built).ok_or(Missing::NginxStream).map_err(std::io::Error::other)?;
        let mut launch = Launch::prepare(cpu)?;
        let folder = launch.folder.path().display().to_string();
        let config = launch.write("nginx.conf", &config(&module, &folder, work, launch.port, backend))?;
        let words = [&program.display().to_string(), "-e", "stderr", "-p", &folder, "-c", &config];
        launch.command = words.map(str::to_owned).to_vec();
        let target = Target { address: launch.address(), opening: Opening::Plain };
        Ok(Started::new(target, Some(launch.start()?)))
    }
}

/// The line that loads the stream module, empty where it is built in; `None` where there is none.
fn stream_module(built: &str) -> Option<String> {
    let option = |name: &str| {
        let rest = built.split_once(name)?.1;
        Some(rest.split_whitespace().next().unwrap_or_default().to_owned())
    };
    if built.split_whitespace().any(|word| word == "--with-stream") {
        return Some(String::new());
    }
    let path = Path::new(&option("--modules-path=")?).join("ngx_stream_module.so");
    path.is_file().then(|| format!("load_module {};\n", path.display()))
}

fn config(load_module: &str, folder: &str, work: Work, port: u16, backend: SocketAddr) -> String {
    let buffer = match work {
        Work::Bulk { .. } | Work::Mixed { .. } => BULK_BUFFER,
        _ => BUFFER,
    };
    // Without it root's workers become somebody who must not read the folder.
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    format!(
        "{load_module}{user}daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; multi_accept on; }}\n\
         stream {{ server {{\n\
         listen 127.0.0.1:{port} backlog={BACKLOG};\n\
         proxy_pass {backend};\n\
         proxy_buffer_size {buffer};\n\
         proxy_timeout 1h;\n\
         }} }}\n"
    )
}

/// The default: a larger one only costs memory where little is in it.
const BUFFER: &str = "16k";

/// Measured: 16 KiB and 64 KiB cost a fifth more CPU.
const BULK_BUFFER: &str = "256k";

/// A session takes two; 5,000 sessions are the most that the plan asks for.
const CONNECTIONS_MAX: u32 = 12_000;

/// More than ever connect at the same time.
const BACKLOG: u32 = 4_096;
