//! Who may connect: mutual TLS 1.3 in which a certificate is nothing but an envelope for a key.
//!
//! A peer's certificate is accepted only if it is a single one, its key is Ed25519, its only name is the DID of that
//! very key, and the DID is a member (when dialing: the member dialed). Nothing else in it is believed: not its
//! validity period (membership ends when the table says so, and no clock is needed) and not its own signature (whoever
//! holds the key could have signed anything; that the peer holds it is proved by TLS's `CertificateVerify`, which covers
//! the handshake and therefore cannot be replayed). Sessions are never resumed: a resumed session would skip all this
//! and let a removed member back in.

use super::identity::Identity;
use crate::ids::NodeId;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// The application protocol; its number changes when two versions cannot talk.
pub const ALPN: &[u8] = b"concordat/1";
/// What stands in the server-name field, which nobody reads: members are known by DID.
pub(super) const SERVER_NAME: &str = "concordat";
/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410, section 4) up to its 32 key bytes. The encoding has no choices.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a peer's certificate is refused.
#[derive(thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0} certificates where exactly one, self-signed, is expected")]
    Chain(usize),
    #[error("the certificate does not parse: {0:?}")]
    Malformed(webpki::Error),
    #[error("the certificate's key is not Ed25519")]
    NotEd25519,
    #[error("the certificate is for {actual}, but its name says {stated:?}")]
    Name { actual: NodeId, stated: String },
    #[error("{0} is not a member")]
    NotAMember(NodeId),
    #[error("{actual} answers where {expected} was dialed")]
    NotTheOneDialed { expected: NodeId, actual: NodeId },
    #[error("the handshake is signed with {0:?}, not Ed25519")]
    Scheme(SignatureScheme),
}

// The TLS stack shows the `Debug` form of application errors, to the log here and in the close reason to the peer.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// The DID that a certificate speaks for, if it has the one form that is accepted.
pub(super) fn certified_did(end_entity: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<NodeId, Refusal> {
    if !others.is_empty() {
        return Err(Refusal::Chain(others.len() + 1));
    }
    let certificate = webpki::EndEntityCert::try_from(end_entity).map_err(Refusal::Malformed)?;
    let spki = certificate.subject_public_key_info();
    let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|k| k.try_into().ok()).ok_or(Refusal::NotEd25519)?;
    let actual = NodeId(key);
    let mut names = certificate.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) if name == actual.to_string() => Ok(actual),
        (first, _) => Err(Refusal::Name { actual, stated: first.unwrap_or_default().chars().take(80).collect() }),
    }
}

/// Whether a DID may connect now.
pub(super) type IsMember = Arc<dyn Fn(&NodeId) -> bool + Send + Sync>;

/// Accepts certificates of members; when dialing, of one member.
struct Verifier {
    provider: Arc<CryptoProvider>,
    is_member: IsMember,
    dialed: Option<NodeId>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("dialed", &self.dialed).finish_non_exhaustive()
    }
}

impl Verifier {
    fn check(&self, end_entity: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let actual = certified_did(end_entity, others)?;
        match self.dialed {
            Some(expected) if expected != actual => Err(Refusal::NotTheOneDialed { expected, actual }),
            _ if !(self.is_member)(&actual) => Err(Refusal::NotAMember(actual)),
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme != SignatureScheme::ED25519 {
            return Err(Refusal::Scheme(signature.scheme).into());
        }
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }
}

const TLS12: Error = Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Why the node's own TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate.
    #[error("cannot make this node's certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS stack.
    #[error("cannot configure TLS")]
    Rustls(#[from] Error),
    /// QUIC needs a cipher suite that is missing.
    #[error("cannot configure QUIC's initial keys")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// This node's key and certificate, and how peers are judged.
pub(super) struct Credentials {
    provider: Arc<CryptoProvider>,
    certificate: CertificateDer<'static>,
    key: rustls::pki_types::PrivatePkcs8KeyDer<'static>,
    is_member: IsMember,
}

impl Credentials {
    pub(super) fn new(identity: &Identity, is_member: IsMember) -> Result<Self, TlsError> {
        Ok(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            certificate: identity.certificate()?,
            key: identity.private_key(),
            is_member,
        })
    }

    fn verifier(&self, dialed: Option<NodeId>) -> Arc<Verifier> {
        Arc::new(Verifier { provider: Arc::clone(&self.provider), is_member: Arc::clone(&self.is_member), dialed })
    }

    /// For incoming connections from any member.
    pub(super) fn server(&self) -> Result<quinn::crypto::rustls::QuicServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier(None))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key().into())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config.try_into()?)
    }

    /// For dialing one member.
    pub(super) fn client(&self, member: NodeId) -> Result<quinn::crypto::rustls::QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(Some(member)))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key().into())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config.try_into()?)
    }
}
