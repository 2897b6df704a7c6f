//! A login service's https server, which answers as a test wants.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::Authority;

/// The answer at one path.
#[derive(Clone)]
pub enum KeyAnswer {
    /// 200 with this body.
    Body(Vec<u8>),
    Status(u16),
    Redirect(String),
    /// 200 with this body, after a while.
    Slow(Vec<u8>, Duration),
    /// The connection ends without an answer.
    Closed,
}

/// The server. Dropped, it accepts nobody any more.
pub struct KeyServer {
    port: u16,
    ca: PathBuf,
    answers: Arc<Mutex<BTreeMap<String, KeyAnswer>>>,
    asked: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

impl KeyServer {
    /// A server at a port of `localhost`, with a certificate of a CA of its own, whose file is in `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::start_at(folder, 0)
    }

    pub fn start_at(folder: &Path, port: u16) -> Self {
        let authority = Authority::new(folder, "login-ca");
        let pair = authority.issue("localhost", &["localhost"]);
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            ca: authority.file,
            answers: Arc::default(),
            asked: Arc::default(),
            is_stopped: Arc::default(),
        };
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        let is_stopped = Arc::clone(&server.is_stopped);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (config, answers, asked) =
                    (Arc::clone(&config), Arc::clone(&answers), Arc::clone(&asked));
                let Ok(stream) = stream else { continue };
                std::thread::spawn(move || serve(stream, config, &answers, &asked));
            }
        });
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    pub fn answers(&self, path: &str, answer: KeyAnswer) {
        self.answers.lock().insert(path.to_owned(), answer);
    }

    /// Serves these keys as a set at `/keys`.
    pub fn serves(&self, keys: &[Value]) {
        self.answers("/keys", KeyAnswer::Body(json!({ "keys": keys }).to_string().into_bytes()));
    }

    /// Number of requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A signer with the set at `/keys`, as an element of `authz.tokens`, with `more` keys of it.
    pub fn entry(&self, more: &str) -> String {
        let (url, ca) = (self.url("/keys"), self.ca.display());
        format!("{{ keys_url = '{url}', keys_ca = '{ca}', {more} }}")
    }

    /// A signer whose issuer is described at `/realm`.
    pub fn entry_of_issuer(&self, more: &str) -> String {
        let (issuer, ca) = (self.url("/realm"), self.ca.display());
        format!("{{ issuer = '{issuer}', discover = true, keys_ca = '{ca}', {more} }}")
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        // The listener is closed by the thread that it wakes.
        let _wakes_it = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    answers: &Mutex<BTreeMap<String, KeyAnswer>>,
    asked: &AtomicUsize,
) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => head.extend(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let answer = answers.lock().get(path).cloned().unwrap_or(KeyAnswer::Status(404));
    let (status, headers, body) = match answer {
        KeyAnswer::Closed => return,
        KeyAnswer::Body(body) => (200, String::new(), body),
        KeyAnswer::Slow(body, pause) => {
            std::thread::sleep(pause);
            (200, String::new(), body)
        }
        KeyAnswer::Status(status) => (status, String::new(), Vec::new()),
        KeyAnswer::Redirect(to) => (302, format!("Location: {to}\r\n"), Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that has seen enough is gone.
    let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    stream.conn.send_close_notify();
    let _gone = stream.flush();
}
