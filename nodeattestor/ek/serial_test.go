package ek_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// zeroSerial is an EK certificate as Nuvoton's TPMs have them: zeros in front of its serial number, and signed so.
func zeroSerial(t testing.TB, zeros int) (der []byte, root *x509.Certificate, key crypto.PublicKey) {
	t.Helper()
	rootKey, ekKey := newKey(t), newKey(t)
	san, err := tpmtest.SubjectAltName("id:4E544300", "NPCT75x", "id:00070002")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, template, template, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(0x7f01020304050607), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}}
	plain, err := x509.CreateCertificate(rand.Reader, leaf, root, ekKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(plain, &c); err != nil {
		t.Fatal(err)
	}
	number := []byte{0x7f, 1, 2, 3, 4, 5, 6, 7}
	old := append([]byte{2, 8}, number...)
	longer := slices.Concat([]byte{2, byte(8 + zeros)}, make([]byte, zeros), number)
	if bytes.Count(c.TBS.Bytes, old) != 1 {
		t.Fatal("the serial number is not once in it")
	}
	tbs, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Replace(c.TBS.Bytes, old, longer, 1)})
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, rootKey, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	c.TBS, c.Signature = asn1.RawValue{FullBytes: tbs}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	if der, err = asn1.Marshal(c); err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(der); err == nil && zeros > 0 {
		t.Fatal("Go reads it: the case is no longer one")
	}
	return der, root, ekKey.Public()
}

func TestASerialNumberWithZerosInFrontIsReadAndVerifiedAsItWasSigned(t *testing.T) {
	for _, zeros := range []int{1, 4} {
		der, root, key := zeroSerial(t, zeros)
		c, err := ek.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if c.SerialNumber.Text(16) != "7f01020304050607" || !bytes.Equal(c.Raw, der) || !bytes.Contains(der, c.RawTBSCertificate) {
			t.Errorf("serial %x", c.SerialNumber)
		}
		anchors := ek.Anchors{Roots: []*x509.Certificate{root}, Mode: ek.Certificate}
		id, err := ek.Verify([][]byte{der}, nil, anchors, now)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := ek.HashKey(key); id.Hash() != want || id.Manufacturer() != "id:4E544300" {
			t.Errorf("EK %s of %s", id.Hash(), id.Manufacturer())
		}
		for i := range 8 * len(der) {
			mutated := bytes.Clone(der)
			mutated[i/8] ^= 1 << (i % 8)
			if _, err := ek.Verify([][]byte{mutated}, nil, anchors, now); err == nil {
				t.Errorf("bit %d of byte %d may be flipped", i%8, i/8)
			}
		}
		_, other, _ := zeroSerial(t, 0)
		_, err = ek.Verify([][]byte{der}, nil, ek.Anchors{Roots: []*x509.Certificate{other}, Mode: ek.Certificate}, now)
		wantRefusal(t, err, "ek.chain")
		for name, bad := range map[string][]byte{"trailing bytes": append(bytes.Clone(der), 0), "a cut end": der[:len(der)-1], "nothing": nil} {
			if _, err := ek.ParseCertificate(bad); err == nil {
				t.Errorf("read with %s", name)
			}
		}
	}
}

func TestCertificatesOfAnOperatorAreReadFromPEMAndDER(t *testing.T) {
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	text := func(c *x509.Certificate) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	root, issuer := text(ca.Root()), text(ca.Issuer())
	for name, c := range map[string]struct {
		data string
		n    int // 0: refused
	}{
		"DER":                       {string(ca.Root().Raw), 1},
		"PEM":                       {root, 1},
		"a bundle":                  {root + issuer, 2},
		"text around the blocks":    {"subject=root\n" + root + "subject=issuer\n" + issuer + "that is all\n", 2},
		"DER and more":              {string(ca.Root().Raw) + "x", 0},
		"DER that is cut":           {string(ca.Root().Raw[:100]), 0},
		"two in DER":                {string(ca.Root().Raw) + string(ca.Issuer().Raw), 0},
		"a damaged block between":   {root + strings.Replace(issuer, "MII", "M*I", 1) + root, 0},
		"a block that is cut off":   {root + issuer[:len(issuer)/2], 0},
		"another block behind them": {root + "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", 0},
	} {
		certs, err := ek.ParseCertificates([]byte(c.data))
		if len(certs) != c.n || (err == nil) != (c.n > 0) {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
}
