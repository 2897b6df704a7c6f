//! The client protocol: bytes in, values out. No I/O, apart from the certificate files of `tls::load`.

mod credentials;
mod framing;
mod head;
mod peer_request;
mod proxy;
mod reply;
mod session_token;
mod summary_request;
mod tls;

pub use credentials::{CredentialForm, TOKEN_BYTES_MAX, Token};
pub use head::{ConnectHead, HEAD_BYTES_MAX, HeadError, parse_head};
pub use peer_request::{PeerReply, PeerReplyError, PeerRequest, parse_hops, parse_peer_reply};
pub use proxy::{PROXY_HEADER_BYTES_MAX, ParsedProxyHeader, ProxyHeaderError, parse_proxy_header};
pub use reply::{HttpVersion, Reply};
pub use session_token::{
    Claims, EARLY_PAUSE, KeySetState, KeySets, LoginRights, OpenBalenaLogin, SessionTokenError, SharedKeySet,
    TokenSubject, Verifier,
};
pub use summary_request::{
    SUMMARY_HEAD_BYTES_MAX, is_summary_request, parse_summary_reply, summary_reply, summary_request,
};
pub use tls::{
    AnyCertificate, CertificateState, PemFileError, Sealed, ShownCertificate, TlsConfigs, TlsConnection,
    TlsError, TlsFileError, TlsLoadError, TrustError, TrustedCertificates, certificate_name, explain,
    explain_certificate, explain_io, instead, node_name, read_certificates, read_private_key,
};
