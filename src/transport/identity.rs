//! A node's identity: its Ed25519 key, and the DID that names it.

use crate::ids::NodeId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The name of the identity file in a data directory.
pub const IDENTITY_FILE: &str = "identity.pem";
/// Largest identity file read, bytes; a PEM of this key has 119.
const MAX_FILE: u64 = 4096;
/// PKCS#8 version 1 of an Ed25519 key without its seed (RFC 8410, section 7): what every common tool reads.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A node's Ed25519 key. Never printed; the copy of its encoding is wiped from memory when dropped.
pub struct Identity {
    pkcs8: Zeroizing<Vec<u8>>,
    key: Ed25519KeyPair,
    did: NodeId,
}

/// Why an identity file cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is one already.
    #[error("{path} exists already; an identity is made once, use another directory for another node")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error(
        "{path} can be read by others than its owner (mode {mode:04o}); it holds a secret key: run `chmod 600 {path}`"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error(
        "{path} is not an Ed25519 private key in PEM (PKCS#8); restore it, or make a new node with `concordat init`"
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("the operating system gives no random bytes")]
    Random,
    /// The file system failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Identity {
    /// Makes a new key and writes it to [`IDENTITY_FILE`] in `dir` with mode 0600, durably and whole or not at all.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when the directory has an identity, [`IdentityError::Random`], [`IdentityError::Io`].
    pub fn create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        let mut pkcs8 = Zeroizing::new(PKCS8_PREFIX.to_vec());
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(seed.as_mut()).map_err(|_| IdentityError::Random)?;
        pkcs8.extend_from_slice(seed.as_ref());
        let identity = Self::from_pkcs8(pkcs8, &path)?;
        identity.write(dir, &path)?;
        Ok(identity)
    }

    fn write(&self, dir: &Path, path: &Path) -> Result<(), IdentityError> {
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| IdentityError::Io { action, path, source }
        };
        let encoded = Zeroizing::new(STANDARD.encode(&*self.pkcs8));
        let pem = Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *encoded));
        let temporary = dir.join(format!("{IDENTITY_FILE}.{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("create", &temporary))?;
        let written =
            file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &temporary));
        // A link, not a rename: a rename would silently replace an identity made meanwhile.
        let placed = written.and_then(|()| match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(IdentityError::Exists { path: path.to_path_buf() })
            }
            other => other.map_err(failed("create", path)),
        });
        let removed = fs::remove_file(&temporary).map_err(failed("remove", &temporary));
        placed?;
        removed?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync", dir))
    }

    /// Reads an identity file.
    ///
    /// # Errors
    /// [`IdentityError::Permissions`] when anyone but the owner may touch it, [`IdentityError::NotAKey`],
    /// [`IdentityError::Io`].
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |action| move |source| IdentityError::Io { action, path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed("open"))?;
        // The open file's own permissions: the path may point elsewhere by the time it is asked again.
        let mode = file.metadata().map_err(failed("read the permissions of"))?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Permissions { path: path.to_path_buf(), mode });
        }
        let mut pem = Zeroizing::new(Vec::new());
        file.take(MAX_FILE).read_to_end(&mut pem).map_err(failed("read"))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| IdentityError::NotAKey { path: path.to_path_buf() })?;
        Self::from_pkcs8(Zeroizing::new(der.secret_pkcs8_der().to_vec()), path)
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>, path: &Path) -> Result<Self, IdentityError> {
        let not_a_key = || IdentityError::NotAKey { path: path.to_path_buf() };
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).map_err(|_| not_a_key())?;
        let did = NodeId(key.public_key().as_ref().try_into().map_err(|_| not_a_key())?);
        Ok(Self { pkcs8, key, did })
    }

    /// The DID over the public key.
    #[must_use]
    pub fn did(&self) -> NodeId {
        self.did
    }

    /// Signs with Ed25519 (RFC 8032). Deterministic.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.key.sign(message).as_ref());
        signature
    }

    /// The private key as the TLS stack takes it.
    pub(super) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pkcs8.to_vec().into()
    }

    /// A fresh self-signed certificate whose only name is the DID.
    pub(super) fn certificate(&self) -> Result<CertificateDer<'static>, rcgen::Error> {
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.private_key(), &rcgen::PKCS_ED25519)?;
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(self.did.to_string().try_into()?)];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "concordat");
        Ok(params.self_signed(&key)?.der().clone())
    }

    /// A secret of this node for one purpose, the same after every restart.
    pub(super) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"concordat:derive")
            .chain_update(purpose)
            .chain_update(&*self.pkcs8)
            .finalize()
            .into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("did", &self.did).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn an_identity_reads_back_as_it_was_made() {
        let dir = dir();
        let made = Identity::create(dir.path()).unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        let read = Identity::load(&path).unwrap();
        assert_eq!(read.did(), made.did());
        assert_eq!(read.sign(b"text"), made.sign(b"text"));
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, made.did().0);
        key.verify(b"text", &read.sign(b"text")).expect("the DID's key verifies the signature");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_second_identity_does_not_replace_the_first() {
        let dir = dir();
        let first = Identity::create(dir.path()).unwrap();
        assert!(matches!(Identity::create(dir.path()), Err(IdentityError::Exists { .. })));
        assert_eq!(Identity::load(&dir.path().join(IDENTITY_FILE)).unwrap().did(), first.did());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_that_others_may_touch_is_refused_with_the_remedy() {
        let dir = dir();
        drop(Identity::create(dir.path()).unwrap());
        let path = dir.path().join(IDENTITY_FILE);
        for mode in [0o640, 0o604, 0o620, 0o660, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Permissions { .. }), "{mode:o}");
            let text = error.to_string();
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_named() {
        let dir = dir();
        drop(Identity::create(dir.path()).unwrap());
        let path = dir.path().join(IDENTITY_FILE);
        let whole = fs::read(&path).unwrap();
        let cut = &whole[..whole.len() / 2];
        for bytes in [b"".as_slice(), b"not a key", cut, &[0xff; 8192]] {
            fs::write(&path, bytes).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(matches!(error, IdentityError::NotAKey { .. }), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()));
        }
    }

    #[test]
    fn the_debug_form_shows_no_secret() {
        let dir = dir();
        let identity = Identity::create(dir.path()).unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity {{ did: {}, .. }}", identity.did()));
    }
}
