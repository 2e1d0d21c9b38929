//! Certificates as an operator has them: an authority, and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::gateway::Setup;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Certified {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names, valid for a day around now.
    pub(crate) fn certify(&self, names: &[&str]) -> Certified {
        let now = super::order::now().as_second();
        self.certify_for(names, now - 3_600, now + 82_800)
    }

    /// A certificate with these bounds, in seconds since 1970.
    pub(crate) fn certify_for(&self, names: &[&str], not_before: i64, not_after: i64) -> Certified {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + std::time::Duration::from_secs(not_before.try_into().unwrap());
        params.not_after = epoch + std::time::Duration::from_secs(not_after.try_into().unwrap());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(name) = names.first() {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Certified { certificate, key: key.serialize_pem() }
    }
}

impl Setup {
    /// A public listener with TLS and this certificate.
    pub(crate) fn tls(self, certified: &Certified) -> Self {
        self.file("tls.crt", &certified.certificate)
            .file("tls.key", &certified.key)
            .listen("tls = { certificate = \"tls.crt\", key = \"tls.key\" }")
    }
}
