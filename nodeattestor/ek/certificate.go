package ek

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Object identifiers (TCG EK Credential Profile 2.x, sections 3.1.2 and 3.2; RFC 5280; RFC 8017).
var (
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSAN             = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidRSAESOAEP       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// certificate is a parsed X.509 certificate with the key that Go's parser may not know.
type certificate struct {
	*x509.Certificate
	key crypto.PublicKey
}

// parseChain parses what the agent sent. It trusts nothing.
func parseChain(certs [][]byte) ([]certificate, error) {
	if len(certs) > MaxCertificates {
		return nil, refuse("size", "the agent sent %d certificates, more than the %d allowed", len(certs), MaxCertificates)
	}
	chain := make([]certificate, len(certs))
	for i, der := range certs {
		if len(der) > MaxCertificateSize {
			return nil, refuse("size", "certificate %d has %d bytes, more than the %d allowed", i+1, len(der), MaxCertificateSize)
		}
		c, err := ParseCertificate(der) // refuses trailing bytes
		if err != nil {
			return nil, refuse("certificate", "certificate %d: %v", i+1, err)
		}
		if err := checkChainKey(i, c); err != nil {
			return nil, err
		}
		chain[i] = certificate{Certificate: c, key: c.PublicKey}
	}
	if len(chain) > 0 && chain[0].key == nil {
		key, err := parseOAEPKey(chain[0].RawSubjectPublicKeyInfo)
		if err != nil {
			return nil, refuse("key", "the EK certificate's key: %v", err)
		}
		chain[0].key = key
	}
	return chain, nil
}

// checkChainKey bounds what it costs to verify a signature with the key of a certificate that came with the EK's, which is judged by
// its template. The operator's own are not the agent's to choose.
func checkChainKey(i int, c *x509.Certificate) error {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || i == 0 || key.N.BitLen() <= MaxChainKey && key.E <= MaxChainExponent {
		return nil
	}
	return refuse("size", "certificate %d has an RSA key of %d bits with exponent %d, more than the %d bits and %d allowed", i+1, key.N.BitLen(), key.E, MaxChainKey, MaxChainExponent)
}

// parseOAEPKey reads an RSA key marked id-RSAESOAEP (RFC 4055, section 4.1), which the
// EK profile allows and crypto/x509 leaves nil. Its parameters say how to pad; the TPM's
// template fixes that already, so they are not read.
func parseOAEPKey(spki []byte) (*rsa.PublicKey, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	rest, err := asn1.Unmarshal(spki, &info)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errors.New("trailing bytes after the SubjectPublicKeyInfo")
	}
	if !info.Algorithm.Algorithm.Equal(oidRSAESOAEP) {
		return nil, fmt.Errorf("algorithm %s is unknown", info.Algorithm.Algorithm)
	}
	return x509.ParsePKCS1PublicKey(info.Key.RightAlign())
}

// verifyCertificate checks the leaf against the TCG EK Credential Profile 2.x and
// builds its chain, and returns who made the TPM:
//
//  1. X.509 version 3, not a CA (3.2, basicConstraints);
//  2. the extended key usage, where present, has tcg-kp-EKCertificate (3.2.16): the same
//     roots also sign platform and attestation certificates, which are no EKs;
//  3. the key usage, where present, allows encrypting to the key (3.2.11);
//  4. the subject alternative name has exactly one TPM manufacturer, model and version
//     (3.2.9); it is critical when the subject is empty, and Go leaves it unhandled;
//  5. no other critical extension is left unhandled;
//  6. a chain to a configured root, valid at time now (RFC 5280, section 6).
func verifyCertificate(chain []certificate, key crypto.PublicKey, a Anchors, now time.Time) (maker, error) {
	leaf := *chain[0].Certificate // a copy, because 5 changes a field
	if leaf.Version != 3 || leaf.IsCA {
		return maker{}, refuse("profile", "the EK certificate is of version %d with CA=%t; an EK certificate is of version 3 and no CA", leaf.Version, leaf.IsCA)
	}
	if err := checkUsage(&leaf, key); err != nil {
		return maker{}, err
	}
	made, err := tpmMaker(&leaf)
	if err != nil {
		return maker{}, err
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oidSAN.Equal)
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		// The usage that matters was checked above; Go has no name for it.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range a.Roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range a.Intermediates {
		opts.Intermediates.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c.Certificate)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return maker{}, refuse("chain", "the EK certificate (issuer %q, serial %x) is not vouched for by a configured root: %v", leaf.Issuer, leaf.SerialNumber, err)
	}
	return made, nil
}

func checkUsage(leaf *x509.Certificate, key crypto.PublicKey) error {
	if n := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage); n > 0 &&
		!slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return refuse("usage", "the certificate's extended key usage lacks tcg-kp-EKCertificate (2.23.133.8.1), so it is no EK certificate")
	}
	want, word := x509.KeyUsageKeyEncipherment, "keyEncipherment"
	if _, ok := key.(*ecdsa.PublicKey); ok {
		want, word = x509.KeyUsageKeyAgreement, "keyAgreement"
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&want == 0 {
		return refuse("usage", "the EK certificate's key usage lacks %s", word)
	}
	return nil
}

// vendorID is how the TCG Vendor ID Registry (section 4) writes a TPM manufacturer.
var vendorID = regexp.MustCompile(`^id:[0-9A-Fa-f]{8}$`)

// maker is what the certificate says of the TPM.
type maker struct{ manufacturer, model, version string }

// tpmMaker reads the TPM attributes out of the directoryName in the subject
// alternative name. Vendors write them as one or as three relative names.
func tpmMaker(leaf *x509.Certificate) (maker, error) {
	names, err := directoryNames(leaf)
	if err != nil {
		return maker{}, refuse("san", "the EK certificate's subject alternative name: %v", err)
	}
	found := map[string][]string{}
	for _, name := range names {
		for _, rdn := range name {
			for _, attr := range rdn {
				value, ok := attr.Value.(string)
				if !ok {
					continue // of a type that no TPM attribute has
				}
				found[attr.Type.String()] = append(found[attr.Type.String()], value)
			}
		}
	}
	for _, want := range []struct {
		oid  asn1.ObjectIdentifier
		name string
	}{{oidTPMManufacturer, "TPM manufacturer"}, {oidTPMModel, "TPM model"}, {oidTPMVersion, "TPM version"}} {
		if n := len(found[want.oid.String()]); n != 1 {
			return maker{}, refuse("san", "the EK certificate names its %s %d times, wanted once", want.name, n)
		}
	}
	one := func(oid asn1.ObjectIdentifier) string { return found[oid.String()][0] }
	manufacturer := one(oidTPMManufacturer)
	if !vendorID.MatchString(manufacturer) {
		return maker{}, refuse("san", "the EK certificate's TPM manufacturer %.40q is not \"id:\" and 8 hex digits", manufacturer)
	}
	return maker{manufacturer, one(oidTPMModel), one(oidTPMVersion)}, nil
}

// directoryNames lists the [4] directoryName entries of the subject alternative name
// (RFC 5280, section 4.2.1.6).
func directoryNames(leaf *x509.Certificate) ([]pkix.RDNSequence, error) {
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSAN) })
	if i < 0 {
		return nil, errors.New("it is absent")
	}
	var general []asn1.RawValue
	if rest, err := asn1.Unmarshal(leaf.Extensions[i].Value, &general); err != nil {
		return nil, err
	} else if len(rest) != 0 {
		return nil, errors.New("it has trailing bytes")
	}
	var names []pkix.RDNSequence
	for _, g := range general {
		if g.Class != asn1.ClassContextSpecific || g.Tag != 4 {
			continue
		}
		var name pkix.RDNSequence
		if rest, err := asn1.Unmarshal(g.Bytes, &name); err != nil {
			return nil, err
		} else if len(rest) != 0 {
			return nil, errors.New("a directoryName has trailing bytes")
		}
		names = append(names, name)
	}
	return names, nil
}

// CertificateFiles are the endings of files that [ParseCertificates] is meant for.
var CertificateFiles = []string{".pem", ".crt", ".cer", ".der"}

// ParseCertificates reads an operator's file of roots or intermediates: PEM with CERTIFICATE blocks, at least one, and no other
// blocks, between which there may be text, or one certificate in DER, as most TPM makers publish theirs. A block that cannot be
// read is an error and never skipped.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	const begin = "-----BEGIN "
	if !bytes.Contains(data, []byte(begin)) {
		c, err := ParseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("ek: no PEM certificate found, and it is not one certificate in DER: %w", err)
		}
		return []*x509.Certificate{c}, nil
	}
	var out []*x509.Certificate
	blocks, rest := bytes.Count(data, []byte(begin)), data
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("ek: PEM block %d is a %q, wanted CERTIFICATE", len(out)+1, block.Type)
		}
		c, err := ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ek: PEM block %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) != blocks {
		return nil, fmt.Errorf("ek: only %d of %d PEM blocks can be read: one is cut or damaged", len(out), blocks)
	}
	return out, nil
}

// CertificateKey is the key in a DER certificate, unverified. The agent's side uses it
// to tell which of its EKs a certificate is for.
func CertificateKey(der []byte) (crypto.PublicKey, error) {
	chain, err := parseChain([][]byte{der})
	if err != nil {
		return nil, err
	}
	return chain[0].key, nil
}
