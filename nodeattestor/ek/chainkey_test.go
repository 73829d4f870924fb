package ek_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// costly is what a stranger may send without holding any key: an EK certificate, and as many certificates as are allowed that
// could have signed it, each with an RSA key of so many bits and this exponent.
func costly(t testing.TB, bits, exponent int) [][]byte {
	t.Helper()
	san, err := tpmtest.SubjectAltName("id:4B454C53", "model", "id:00")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM EK CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}}
	issue := func(template *x509.Certificate, key *rsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	certs := [][]byte{resigned(t, issue(leaf, &signer.PublicKey), bits/8)}
	for len(certs) < ek.MaxCertificates {
		n := make([]byte, bits/8)
		if _, err := rand.Read(n); err != nil {
			t.Fatal(err)
		}
		n[0] |= 0x80
		n[len(n)-1] |= 1
		certs = append(certs, issue(issuer, &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: exponent}))
	}
	return certs
}

// resigned is a certificate with a signature of so many bytes that nobody made, for a signature of another size than the
// key's costs nothing to refuse.
func resigned(t testing.TB, der []byte, size int) []byte {
	t.Helper()
	var cert struct {
		Signed    asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		t.Fatal(err)
	}
	cert.Signature = asn1.BitString{Bytes: bytes.Repeat([]byte{1}, size), BitLength: 8 * size}
	out, err := asn1.Marshal(cert)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestThreat24_KeysThatCostMuchToVerifyWithAreRefusedFirst(t *testing.T) {
	anchors := newKeys(t).anchors()
	for name, tc := range map[string]struct {
		bits, exponent int
		check          string
	}{
		"of 2048 bits":                    {2048, 65537, "ek.chain"},
		"of 4096 bits":                    {4096, 65537, "ek.chain"},
		"of 4096 bits, a small exponent":  {4096, 3, "ek.chain"},
		"of 4104 bits":                    {4104, 65537, "ek.size"},
		"as large as a certificate holds": {56 << 10, 65537, "ek.size"},
		"of 4096 bits, a large exponent":  {4096, 1<<31 - 1, "ek.size"},
		"an exponent a little above":      {2048, 65539, "ek.size"},
		"large in both":                   {56 << 10, 1<<31 - 1, "ek.size"},
	} {
		t.Run(name, func(t *testing.T) {
			certs := costly(t, tc.bits, tc.exponent)
			begun := time.Now()
			_, err := ek.Verify(certs, nil, anchors, now)
			wantRefusal(t, err, tc.check)
			t.Logf("%d bits, exponent %d: %s", tc.bits, tc.exponent, time.Since(begun))
		})
	}
}

func TestTheOperatorsOwnCertificatesMayHaveAnyKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key.E = 65539
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(key.Primes[0], one), new(big.Int).Sub(key.Primes[1], one))
	if key.D.ModInverse(big.NewInt(int64(key.E)), phi) == nil {
		t.Skip("skipped: of some ten thousand keys, one takes no exponent of 65539")
	}
	key.Precomputed = rsa.PrecomputedValues{}
	key.Precompute()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	san, err := tpmtest.SubjectAltName("id:4B454C53", "model", "id:00")
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, root, &newKeys(t).p256.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	if _, err := ek.Verify([][]byte{der}, nil, ek.Anchors{Roots: []*x509.Certificate{root}, Mode: ek.Certificate}, now); err != nil {
		t.Error(err)
	}
	_, err = ek.Verify(slices.Concat([][]byte{der}, [][]byte{root.Raw}), nil, ek.Anchors{Roots: []*x509.Certificate{root}, Mode: ek.Certificate}, now)
	wantRefusal(t, err, "ek.size")
}
