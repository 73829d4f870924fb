package ak

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// RSA modulus sizes in bits that an AK may have. The upper bound keeps the cost of a
// verification low, which matters because anyone may present a key.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// parsePublicKey fills in the key and its scheme: ECDSA over P-256 or P-384, or
// RSASSA (PKCS#1 v1.5) with 2048 bits or more, each with SHA-256, SHA-384 or SHA-512
// (TPM 2.0 Part 2, sections 12.2.3.5 and 12.2.3.6).
func (k *Key) parsePublicKey(p *tpm2.TPMTPublic) error {
	if p.Type == tpm2.TPMAlgECC {
		return k.parseECC(p)
	}
	if p.Type == tpm2.TPMAlgRSA {
		return k.parseRSA(p)
	}
	return refuse("type", "the AK's type 0x%04x is neither ECC nor RSA", uint16(p.Type))
}

func (k *Key) parseECC(p *tpm2.TPMTPublic) error {
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return refuse("parse", "the AK's ECC parameters are missing: %v", err)
	}
	point, err := p.Unique.ECC()
	if err != nil {
		return refuse("parse", "the AK's ECC point is missing: %v", err)
	}
	if parms.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return refuse("scheme", "the AK's scheme 0x%04x is not ECDSA", uint16(parms.Scheme.Scheme))
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil {
		return refuse("scheme", "the AK's ECDSA scheme has no hash: %v", err)
	}
	if parms.Symmetric.Algorithm != tpm2.TPMAlgNull || parms.KDF.Scheme != tpm2.TPMAlgNull {
		return refuse("scheme", "the AK has a symmetric algorithm or a KDF, which no signing key has")
	}
	if err := k.setScheme(tpm2.TPMAlgECDSA, scheme.HashAlg); err != nil {
		return err
	}
	curve, ok := map[tpm2.TPMECCCurve]elliptic.Curve{
		tpm2.TPMECCNistP256: elliptic.P256(),
		tpm2.TPMECCNistP384: elliptic.P384(),
	}[parms.CurveID]
	if !ok {
		return refuse("curve", "the AK's curve 0x%04x is neither P-256 nor P-384", uint16(parms.CurveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return refuse("point", "the AK's coordinates have %d and %d bytes, more than the curve's %d", len(point.X.Buffer), len(point.Y.Buffer), size)
	}
	// Some TPMs strip leading zeros of a coordinate; SEC 1 wants them.
	raw := make([]byte, 1+2*size)
	raw[0] = 4
	copy(raw[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(raw[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil {
		return refuse("point", "the AK's point is not on its curve: %v", err)
	}
	k.public = pub
	return nil
}

func (k *Key) parseRSA(p *tpm2.TPMTPublic) error {
	parms, err := p.Parameters.RSADetail()
	if err != nil {
		return refuse("parse", "the AK's RSA parameters are missing: %v", err)
	}
	modulus, err := p.Unique.RSA()
	if err != nil {
		return refuse("parse", "the AK's RSA modulus is missing: %v", err)
	}
	if parms.Scheme.Scheme != tpm2.TPMAlgRSASSA {
		return refuse("scheme", "the AK's scheme 0x%04x is not RSASSA", uint16(parms.Scheme.Scheme))
	}
	scheme, err := parms.Scheme.Details.RSASSA()
	if err != nil {
		return refuse("scheme", "the AK's RSASSA scheme has no hash: %v", err)
	}
	if parms.Symmetric.Algorithm != tpm2.TPMAlgNull {
		return refuse("scheme", "the AK has a symmetric algorithm, which no signing key has")
	}
	if err := k.setScheme(tpm2.TPMAlgRSASSA, scheme.HashAlg); err != nil {
		return err
	}
	n := new(big.Int).SetBytes(modulus.Buffer)
	bits := n.BitLen()
	if bits < minRSABits || bits > maxRSABits || bits != int(parms.KeyBits) || len(modulus.Buffer) != bits/8 {
		return refuse("strength", "the AK's RSA modulus has %d bits and its area says %d; 2048 to 4096 are allowed", bits, parms.KeyBits)
	}
	if n.Bit(0) == 0 {
		return refuse("strength", "the AK's RSA modulus is even")
	}
	// 0 stands for 65537 (TPM 2.0 Part 2, section 12.2.3.5).
	if parms.Exponent != 0 && parms.Exponent != 65537 {
		return refuse("strength", "the AK's RSA exponent %d is not 65537", parms.Exponent)
	}
	if ek.HasROCA(n) {
		return refuse("roca", "the AK has the ROCA weakness (CVE-2017-15361): its private key can be computed, so anybody could sign with it; update the TPM's firmware, or set ak_type = \"ecdsa\"")
	}
	k.public = &rsa.PublicKey{N: n, E: 65537}
	return nil
}

func (k *Key) setScheme(scheme tpm2.TPMAlgID, hash tpm2.TPMIAlgHash) error {
	if !slices.Contains(signingHashes, hash) {
		return refuse("hash", "the AK's scheme hash 0x%04x is not SHA-256, SHA-384 or SHA-512", uint16(hash))
	}
	k.scheme = scheme
	k.hash = nodeclaim.HashAlg(hash)
	return nil
}
