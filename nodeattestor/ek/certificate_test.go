package ek_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestGoodCertificates(t *testing.T) {
	k := newKeys(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa3072, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key     crypto.PublicKey
		options tpmtest.EKOptions
	}{
		"RSA 2048":                       {&k.rsa.PublicKey, tpmtest.EKOptions{}},
		"RSA 3072":                       {&rsa3072.PublicKey, tpmtest.EKOptions{}},
		"RSA 2048 marked id-RSAESOAEP":   {&k.rsa.PublicKey, tpmtest.EKOptions{OAEP: true}},
		"ECC P-256":                      {&k.p256.PublicKey, tpmtest.EKOptions{}},
		"ECC P-384":                      {&p384.PublicKey, tpmtest.EKOptions{}},
		"without an extended key usage":  {&k.p256.PublicKey, tpmtest.EKOptions{NoExtKeyUsage: true}},
		"one relative name for each one": {&k.p256.PublicKey, tpmtest.EKOptions{SAN: threeNames(t)}},
	} {
		t.Run(name, func(t *testing.T) {
			cert := k.issue(t, c.key, c.options)
			id, err := ek.Verify([][]byte{cert}, template(t, c.key), k.anchors(), now)
			if err != nil {
				t.Fatal(err)
			}
			if want, err := ek.HashKey(c.key); err != nil || id.Hash() != want {
				t.Errorf("EK hash is %s, want %s (%v)", id.Hash(), want, err)
			}
			if id.Manufacturer() != tpmtest.DefaultManufacturer {
				t.Errorf("manufacturer is %q", id.Manufacturer())
			}
			if id.Model() == "" || id.Version() == "" || id.Model() == id.Version() {
				t.Errorf("model %q, version %q", id.Model(), id.Version())
			}
		})
	}
	t.Run("the issuer's certificate comes from the agent", func(t *testing.T) {
		anchors := k.anchors()
		anchors.Intermediates = nil
		cert := k.issue(t, &k.p256.PublicKey, tpmtest.EKOptions{})
		if _, err := ek.Verify([][]byte{cert, k.ca.Issuer().Raw}, nil, anchors, now); err != nil {
			t.Error(err)
		}
		_, err := ek.Verify([][]byte{cert}, nil, anchors, now)
		wantRefusal(t, err, "ek.chain")
	})
}

// threeNames is a subject alternative name with the TPM attributes in three relative names.
func threeNames(t testing.TB) []byte {
	t.Helper()
	var name pkix.RDNSequence
	for i, v := range []string{tpmtest.DefaultManufacturer, "model", "id:01"} {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: v}})
	}
	return generalNames(t, name)
}

func generalNames(t testing.TB, names ...pkix.RDNSequence) []byte {
	t.Helper()
	var general []asn1.RawValue
	for _, n := range names {
		der, err := asn1.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		general = append(general, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der})
	}
	out, err := asn1.Marshal(general)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnfitCertificatesAreRefused(t *testing.T) {
	k := newKeys(t)
	san := func(manufacturer, model, version string) tpmtest.EKOptions {
		der, err := tpmtest.SubjectAltName(manufacturer, model, version)
		if err != nil {
			t.Fatal(err)
		}
		return tpmtest.EKOptions{SAN: der}
	}
	one := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:00000001"}, {Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "m"}, {Type: asn1.ObjectIdentifier{2, 23, 133, 2, 3}, Value: "v"}}}
	critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
	for name, c := range map[string]struct {
		options tpmtest.EKOptions
		check   string
	}{
		"it is a CA":                         {tpmtest.EKOptions{IsCA: true}, "ek.profile"},
		"it is a platform certificate":       {tpmtest.EKOptions{ExtKeyUsage: asn1.ObjectIdentifier{2, 23, 133, 8, 2}}, "ek.usage"},
		"it is an attestation key's":         {tpmtest.EKOptions{ExtKeyUsage: asn1.ObjectIdentifier{2, 23, 133, 8, 3}}, "ek.usage"},
		"its key may only sign":              {tpmtest.EKOptions{KeyUsage: x509.KeyUsageDigitalSignature}, "ek.usage"},
		"it has no subject alternative name": {tpmtest.EKOptions{NoSAN: true}, "ek.san"},
		"the name is garbage":                {tpmtest.EKOptions{SAN: []byte{0x30, 3, 0xa4, 1, 0}}, "ek.san"},
		"the name has trailing bytes":        {tpmtest.EKOptions{SAN: append(san("id:00000001", "m", "v").SAN, 5, 0)}, "ek.san"},
		"there is no directory name":         {tpmtest.EKOptions{SAN: []byte{0x30, 3, 0x88, 1, 0x2a}}, "ek.san"},
		"the manufacturer is missing":        {san("", "model", "id:01"), "ek.san"},
		"the model is missing":               {san("id:00000001", "", "id:01"), "ek.san"},
		"the version is missing":             {san("id:00000001", "model", ""), "ek.san"},
		"the manufacturer is no vendor id":   {san("Keelson", "model", "id:01"), "ek.san"},
		"the vendor id has a line feed":      {san("id:00000001\n", "model", "id:01"), "ek.san"},
		"two manufacturers":                  {tpmtest.EKOptions{SAN: generalNames(t, one, one)}, "ek.san"},
		"an unknown critical extension":      {tpmtest.EKOptions{Extra: critical}, "ek.chain"},
		"it is not valid yet":                {tpmtest.EKOptions{NotBefore: now.Add(time.Second)}, "ek.chain"},
		"it has expired":                     {tpmtest.EKOptions{NotAfter: now.Add(-time.Second)}, "ek.chain"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ek.Verify([][]byte{k.issue(t, &k.p256.PublicKey, c.options)}, nil, k.anchors(), now)
			wantRefusal(t, err, c.check)
		})
	}
}

func TestUnfitRootsChainsAndSizesAreRefused(t *testing.T) {
	k, other := newKeys(t), newKeys(t)
	good := k.issue(t, &k.p256.PublicKey, tpmtest.EKOptions{})
	_, err := ek.Verify([][]byte{good}, nil, k.anchors(), time.Time{})
	wantRefusal(t, err, "ek.time")
	for name, c := range map[string]struct {
		certs   [][]byte
		pub     []byte
		anchors ek.Anchors
		check   string
	}{
		"another manufacturer's root":   {[][]byte{good}, nil, other.anchors(), "ek.chain"},
		"no root at all":                {[][]byte{good}, nil, ek.Anchors{Mode: ek.Certificate}, "ek.chain"},
		"nothing":                       {nil, nil, k.anchors(), "ek.missing"},
		"an area without a certificate": {nil, template(t, &k.p256.PublicKey), k.anchors(), "ek.certificate"},
		"trailing bytes":                {[][]byte{append(bytes.Clone(good), 0)}, nil, k.anchors(), "ek.certificate"},
		"a truncated certificate":       {[][]byte{good[:len(good)-1]}, nil, k.anchors(), "ek.certificate"},
		"an empty certificate":          {[][]byte{{}}, nil, k.anchors(), "ek.certificate"},
		"a certificate too large":       {[][]byte{make([]byte, ek.MaxCertificateSize+1)}, nil, k.anchors(), "ek.size"},
		"too many certificates":         {make([][]byte, ek.MaxCertificates+1), nil, k.anchors(), "ek.size"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ek.Verify(c.certs, c.pub, c.anchors, now)
			wantRefusal(t, err, c.check)
		})
	}
}

func TestUnfitKeysAreRefused(t *testing.T) {
	k := newKeys(t)
	rsa4096 := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4095, 1), E: 65537}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{
		"RSA 4096":           rsa4096,
		"RSA 2048 with e=17": &rsa.PublicKey{N: k.rsa.N, E: 17},
		"ECC P-521":          &p521.PublicKey,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ek.Verify([][]byte{k.issue(t, key, tpmtest.EKOptions{})}, nil, k.anchors(), now)
			wantRefusal(t, err, "ek.key")
		})
	}
}

func TestEveryFlippedBitOfACertificateIsRefused(t *testing.T) {
	der := realCert(t, "ek-ecc384.pem")
	anchors := realRoots(t)
	want, err := ek.Verify([][]byte{der}, nil, anchors, now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(der) {
		mutated := bytes.Clone(der)
		mutated[i/8] ^= 1 << (i % 8)
		if _, err := ek.Verify([][]byte{mutated}, nil, anchors, now); err == nil {
			t.Errorf("bit %d of byte %d may be flipped in the certificate of %s", i%8, i/8, want.Hash())
		}
	}
}

func TestParseCertificatesRefusesWhatIsNone(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":       "",
		"text":          "hello",
		"another block": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"garbage":       "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ek.ParseCertificates([]byte(data)); err == nil {
				t.Error("no error")
			}
		})
	}
}
