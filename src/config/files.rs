//! The files that a configuration names, for a process that may open nothing else.

use std::path::Path;

use super::postgres::{ClientCertificate, RootCertificates};
use super::{
    AddressSource, CertificateFiles, ClientCertificates, Config, ForwardTls, KeyPlace, KeySource, ListenTls,
    OpenVpnInterface, PostgresUrl, Queries, SignerKeys, StoreUrl,
};

/// A file that a running relay opens, or the folder that it keeps its state in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamedFile<'a> {
    /// The key that names it.
    pub key: &'static str,
    pub path: &'a Path,
    pub access: FileAccess,
}

/// The use that a relay makes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileAccess {
    /// Reads it, and the one that takes its place.
    Read,
    /// Writes it, and makes, renames and removes files beside it.
    WriteBeside,
    /// Writes files in this folder.
    WriteInside,
}

impl Config {
    /// All files that a relay with this configuration opens after its start.
    pub fn files(&self) -> Vec<NamedFile<'_>> {
        let mut files = Vec::new();
        self.add_read(&mut files);
        let mut add = |key, path, access| files.push(NamedFile { key, path, access });
        for url in self.store_urls() {
            if let StoreUrl::Sqlite(path) = url {
                add("store.url", path.as_path(), FileAccess::WriteBeside);
            }
        }
        if let Some(path) = &self.audit.path {
            add("audit.path", path, FileAccess::WriteBeside);
        }
        if let Some(path) = &self.admin.socket {
            add("admin.socket", path, FileAccess::WriteBeside);
        }
        if let Some(path) = &self.authz.state {
            add("authz.state", path, FileAccess::WriteInside);
        }
        files
    }

    fn add_read<'a>(&'a self, files: &mut Vec<NamedFile<'a>>) {
        let mut add = |key, path: &'a Path| files.push(NamedFile { key, path, access: FileAccess::Read });
        let single = [
            ("store.password_file", &self.store.password_file),
            ("forward.directory_password_file", &self.forward.directory_password_file),
            ("admin.token_file", &self.admin.token_file),
            ("probe.token_file", &self.probe.token_file),
            ("vpn.wireguard_peers", &self.vpn.wireguard_peers),
        ];
        single.into_iter().for_each(|(key, path)| path.iter().for_each(|path| add(key, path)));
        for source in &self.vpn.addresses {
            if let AddressSource::File(path) | AddressSource::OpenVpn(OpenVpnInterface::Path(path)) = source {
                add("vpn.addresses", path);
            }
        }
        if let Some(ForwardTls { chain, key, ca }) = &self.forward.tls {
            [chain, key, ca].into_iter().for_each(|path| add("forward.tls", path));
        }
        for listen in &self.listen {
            let Some(ListenTls::Clients(tls)) = &listen.tls else { continue };
            for CertificateFiles { chain, key } in &tls.certificates {
                [chain, key].into_iter().for_each(|path| add("listen.tls.certificates", path));
            }
            if let ClientCertificates::Optional { ca } | ClientCertificates::Required { ca } =
                &tls.client_certificates
            {
                add("listen.tls.client_ca", ca);
            }
        }
        let Queries { credentials, grants, devices, ended } = &self.authz.queries;
        let queries = [credentials, grants, devices, ended].into_iter().flatten();
        queries.for_each(|query| add("authz.queries", &query.file));
        for signer in &self.authz.tokens {
            match &signer.keys {
                SignerKeys::One { file, .. } => add("authz.tokens", file),
                SignerKeys::Set(KeySource { place, ca, .. }) => {
                    if let KeyPlace::File { path, .. } = place {
                        add("authz.tokens", path);
                    }
                    ca.iter().for_each(|path| add("authz.tokens", path));
                }
            }
        }
        for url in self.postgres_urls() {
            if let RootCertificates::File(path) = &url.tls.root {
                add("store.url", path);
            }
            if let Some(ClientCertificate { certificate, key }) = &url.tls.client {
                [certificate, key].into_iter().for_each(|path| add("store.url", path));
            }
        }
    }

    /// True where the relay asks the system for names: of hosts, users or groups.
    pub fn needs_names(&self) -> bool {
        let asks_by_name =
            |source: &AddressSource| matches!(source, AddressSource::OpenVpn(OpenVpnInterface::Tcp(_)));
        self.postgres_urls().next().is_some()
            || self.vpn.addresses.iter().any(asks_by_name)
            || self.admin.socket_group.is_some()
            || self.fetches_token_keys()
    }

    /// True where keys of session tokens are fetched by https.
    pub fn fetches_token_keys(&self) -> bool {
        self.authz.key_sources().any(|source| !matches!(source.place, KeyPlace::File { .. }))
    }

    /// True where the store, or the directory, is an SQLite file.
    pub fn has_embedded_store(&self) -> bool {
        self.store_urls().any(|url| matches!(url, StoreUrl::Sqlite(_)))
    }

    fn store_urls(&self) -> impl Iterator<Item = &StoreUrl> {
        std::iter::once(&self.store.url).chain(&self.forward.directory_url)
    }

    fn postgres_urls(&self) -> impl Iterator<Item = &PostgresUrl> {
        self.store_urls().filter_map(|url| match url {
            StoreUrl::Postgres(url) => Some(&**url),
            StoreUrl::Sqlite(_) => None,
        })
    }
}
