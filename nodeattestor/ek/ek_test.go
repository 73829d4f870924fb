package ek_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

var now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

func wantRefusal(t *testing.T, err error, check string) {
	t.Helper()
	var r *nodeclaim.Refusal
	if !errors.As(err, &r) || r.Check != check {
		t.Errorf("error is %v, want a refusal of %s", err, check)
	}
}

func realRoots(t testing.TB) ek.Anchors {
	t.Helper()
	roots, err := ek.ParseCertificates(vectors.Read(t, "ca", "swtpm-localca-rootca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issuers, err := ek.ParseCertificates(vectors.Read(t, "ca", "issuercert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return ek.Anchors{Roots: roots, Intermediates: issuers, Mode: ek.Certificate}
}

func realCert(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(vectors.Read(t, "good", name))
	return block.Bytes
}

func TestEKCertificatesOfARealTPM(t *testing.T) {
	for name, keyBits := range map[string]int{"ek-rsa.pem": 2048, "ek-ecc384.pem": 384} {
		t.Run(name, func(t *testing.T) {
			der := realCert(t, name)
			id, err := ek.Verify([][]byte{der}, nil, realRoots(t), now)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if want := nodeclaim.EKHash(sha256.Sum256(cert.RawSubjectPublicKeyInfo)); id.Hash() != want {
				t.Errorf("EK hash is %s, want %s", id.Hash(), want)
			}
			if id.Manufacturer() != "id:00001014" || !id.Certified() || id.Node() != "" {
				t.Errorf("manufacturer %q, certified %t, node %q", id.Manufacturer(), id.Certified(), id.Node())
			}
			public := id.Public()
			back, err := tpm2.Pub(public)
			if err != nil {
				t.Fatal(err)
			}
			if !back.(interface{ Equal(crypto.PublicKey) bool }).Equal(id.Key()) {
				t.Error("the public area holds another key")
			}
			if size := len(tpm2.Marshal(public)) * 8; size < keyBits {
				t.Errorf("the public area has %d bits", size)
			}
		})
	}
}

type keys struct {
	ca       *tpmtest.CA
	rsa      *rsa.PrivateKey
	p256     *ecdsa.PrivateKey
	stranger *ecdsa.PrivateKey
}

func newKeys(t testing.TB) keys {
	t.Helper()
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	k := keys{ca: ca}
	var errs [3]error
	k.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	k.p256, errs[1] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.stranger, errs[2] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k keys) anchors() ek.Anchors {
	return ek.Anchors{Roots: []*x509.Certificate{k.ca.Root()}, Intermediates: []*x509.Certificate{k.ca.Issuer()}, Mode: ek.Certificate}
}

func (k keys) issue(t testing.TB, key crypto.PublicKey, o tpmtest.EKOptions) []byte {
	t.Helper()
	der, err := k.ca.IssueEK(key, o)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// template is the first template that fits, filled with a key: what an agent would send.
func template(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	for _, c := range ek.Templates() {
		if c.Fits(key) {
			return tpmtest.Sized(c.WithKey(key))
		}
	}
	t.Fatal("no template fits")
	return nil
}

func TestThreat01_CertificateWithAnotherKeyIsRefused(t *testing.T) {
	k := newKeys(t)
	attackerRSA, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		victim, attacker crypto.PublicKey
	}{
		"RSA":                {&k.rsa.PublicKey, &attackerRSA.PublicKey},
		"ECC":                {&k.p256.PublicKey, &k.stranger.PublicKey},
		"ECC beside RSA":     {&k.rsa.PublicKey, &k.stranger.PublicKey},
		"RSA beside an ECC":  {&k.p256.PublicKey, &attackerRSA.PublicKey},
		"same modulus, e=17": {&k.rsa.PublicKey, &rsa.PublicKey{N: k.rsa.N, E: 17}},
	} {
		t.Run(name, func(t *testing.T) {
			cert := k.issue(t, c.victim, tpmtest.EKOptions{})
			area := template(t, c.attacker)
			if r, ok := c.attacker.(*rsa.PublicKey); ok && r.E != 65537 {
				area = withExponent(t, area, uint32(r.E))
			}
			for _, mode := range []ek.Mode{ek.Certificate, ek.Both, ek.Inventory} {
				anchors := k.anchors()
				anchors.Mode = mode
				anchors.Inventory = machine(t, c.victim, "victim")
				_, err := ek.Verify([][]byte{cert}, area, anchors, now)
				wantRefusal(t, err, "ek.substitution")
			}
			// The victim's certificate alone yields the victim's key, whatever else was planned.
			id, err := ek.Verify([][]byte{cert}, nil, k.anchors(), now)
			if err != nil {
				t.Fatal(err)
			}
			if !id.Key().(interface{ Equal(crypto.PublicKey) bool }).Equal(c.victim) {
				t.Error("the key is not the certificate's")
			}
		})
	}
	t.Run("the attacker's certificate first, the victim's after it", func(t *testing.T) {
		own := selfSigned(t, k.stranger)
		victim := k.issue(t, &k.p256.PublicKey, tpmtest.EKOptions{})
		_, err := ek.Verify([][]byte{own, victim}, nil, k.anchors(), now)
		wantRefusal(t, err, "ek.chain")
	})
	t.Run("the victim's certificate as the attacker's issuer", func(t *testing.T) {
		victim, err := x509.ParseCertificate(k.issue(t, &k.p256.PublicKey, tpmtest.EKOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		own := signedBy(t, victim, k.p256, k.stranger)
		_, err = ek.Verify([][]byte{own, victim.Raw}, nil, k.anchors(), now)
		wantRefusal(t, err, "ek.chain")
	})
}

func withExponent(t *testing.T, area []byte, e uint32) []byte {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area[2:])
	if err != nil {
		t.Fatal(err)
	}
	parms, err := public.Parameters.RSADetail()
	if err != nil {
		t.Fatal(err)
	}
	parms.Exponent = e
	public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, parms)
	return tpmtest.Sized(*public)
}

func selfSigned(t *testing.T, key *ecdsa.PrivateKey) []byte { return signedBy(t, nil, key, key) }

func signedBy(t *testing.T, parent *x509.Certificate, signer, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	san, err := tpmtest.SubjectAltName("id:4B454C53", "model", "id:00")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func machine(t testing.TB, key crypto.PublicKey, node string) ek.Machines {
	t.Helper()
	hash, err := ek.HashKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return ek.Machines{hash: {Node: node, EKHashes: []nodeclaim.EKHash{hash}}}
}

func TestModes(t *testing.T) {
	k := newKeys(t)
	cert := [][]byte{k.issue(t, &k.p256.PublicKey, tpmtest.EKOptions{})}
	area := template(t, &k.p256.PublicKey)
	listed, unlisted := machine(t, &k.p256.PublicKey, "fra-1"), machine(t, &k.stranger.PublicKey, "par-1")
	for name, c := range map[string]struct {
		mode      ek.Mode
		certs     [][]byte
		pub       []byte
		inventory ek.Machines
		check     string // "" is accepted
		node      string
		certified bool
	}{
		"certificate: the certificate is enough":          {ek.Certificate, cert, nil, nil, "", "", true},
		"certificate: the inventory only names the node":  {ek.Certificate, cert, nil, listed, "", "fra-1", true},
		"certificate: an EK may be missing from it":       {ek.Certificate, cert, nil, unlisted, "", "", true},
		"certificate: the inventory is not enough":        {ek.Certificate, nil, area, listed, "ek.certificate", "", false},
		"inventory: the hash of the area is enough":       {ek.Inventory, nil, area, listed, "", "fra-1", false},
		"inventory: so is the hash of a certificate":      {ek.Inventory, cert, nil, listed, "", "fra-1", false},
		"inventory: an unlisted EK":                       {ek.Inventory, nil, area, unlisted, "ek.inventory", "", false},
		"inventory: a certificate is not enough":          {ek.Inventory, cert, nil, unlisted, "ek.inventory", "", false},
		"inventory: no inventory":                         {ek.Inventory, nil, area, nil, "ek.inventory", "", false},
		"both: certificate and inventory":                 {ek.Both, cert, area, listed, "", "fra-1", true},
		"both: the certificate alone":                     {ek.Both, cert, area, unlisted, "ek.inventory", "", false},
		"both: the inventory alone":                       {ek.Both, nil, area, listed, "ek.certificate", "", false},
		"the zero value of the mode is the strictest one": {0, nil, area, listed, "ek.certificate", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			anchors := k.anchors()
			anchors.Mode, anchors.Inventory = c.mode, c.inventory
			id, err := ek.Verify(c.certs, c.pub, anchors, now)
			if c.check != "" {
				wantRefusal(t, err, c.check)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id.Node() != c.node || id.Certified() != c.certified || (id.Manufacturer() != "") != c.certified {
				t.Errorf("node %q, certified %t, manufacturer %q", id.Node(), id.Certified(), id.Manufacturer())
			}
		})
	}
	for _, m := range []ek.Mode{ek.Both, ek.Certificate, ek.Inventory} {
		if got, err := ek.ParseMode(m.String()); err != nil || got != m {
			t.Errorf("mode %s reads as %s (%v)", m, got, err)
		}
	}
	if _, err := ek.ParseMode("none"); err == nil {
		t.Error("mode none is accepted")
	}
}

// Only the key is read from an area: an agent that writes weaker parameters into it gets
// the template's all the same.
func TestParametersComeFromTheTemplate(t *testing.T) {
	k := newKeys(t)
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](template(t, &k.p256.PublicKey)[2:])
	if err != nil {
		t.Fatal(err)
	}
	area.NameAlg = tpm2.TPMAlgSHA1
	area.ObjectAttributes = tpm2.TPMAObject{UserWithAuth: true, Decrypt: true}
	area.AuthPolicy = tpm2.TPM2BDigest{}
	id, err := ek.Verify(nil, tpmtest.Sized(*area), ek.Anchors{Mode: ek.Inventory, Inventory: machine(t, &k.p256.PublicKey, "n")}, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := tpmtest.Sized(id.Public()); !bytes.Equal(got, template(t, &k.p256.PublicKey)) {
		t.Errorf("public area is %x", got)
	}
}

func TestUnfitAreasAreRefused(t *testing.T) {
	k := newKeys(t)
	good := template(t, &k.p256.PublicKey)
	for name, c := range map[string]struct {
		pub   []byte
		check string
	}{
		"one byte":              {[]byte{0}, "ek.public"},
		"an empty area":         {[]byte{0, 0}, "ek.public"},
		"trailing bytes":        {append(bytes.Clone(good), 0), "ek.public"},
		"trailing bytes inside": {append([]byte{0, good[1] + 1}, append(bytes.Clone(good[2:]), 0)...), "ek.public"},
		"a truncated area":      {good[:len(good)-1], "ek.public"},
		"more than the limit":   {make([]byte, ek.MaxPublicSize+1), "ek.size"},
		"a keyed-hash object":   {[]byte{0, 14, 0, 8, 0, 0x0b, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0}, "ek.public"},
		"a point off the curve": {func() []byte { b := bytes.Clone(good); b[len(b)-1] ^= 1; return b }(), "ek.public"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ek.Verify(nil, c.pub, ek.Anchors{Mode: ek.Inventory}, now)
			wantRefusal(t, err, c.check)
		})
	}
}

func TestTemplatesAreThoseOfTheLibraryAndTheProfile(t *testing.T) {
	for _, c := range ek.Templates() {
		area := c.Area()
		switch c.Name {
		case "L-1":
			if diff := cmp.Diff(tpm2.Marshal(tpm2.RSAEKTemplate), tpm2.Marshal(area)); diff != "" {
				t.Errorf("L-1 (-want +got):\n%s", diff)
			}
		case "L-2":
			if diff := cmp.Diff(tpm2.Marshal(tpm2.ECCEKTemplate), tpm2.Marshal(area)); diff != "" {
				t.Errorf("L-2 (-want +got):\n%s", diff)
			}
		default:
			if !c.HighRange() || !area.ObjectAttributes.UserWithAuth {
				t.Errorf("%s is not of the high range", c.Name)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	k := newKeys(f)
	f.Add(realCert(f, "ek-rsa.pem"), []byte{})
	f.Add(realCert(f, "ek-ecc384.pem"), []byte{})
	f.Add(k.issue(f, &k.rsa.PublicKey, tpmtest.EKOptions{OAEP: true}), template(f, &k.rsa.PublicKey))
	f.Add([]byte{}, template(f, &k.p256.PublicKey))
	anchors := realRoots(f)
	trusted := map[nodeclaim.EKHash]bool{}
	for _, name := range []string{"ek-rsa.pem", "ek-ecc384.pem"} {
		id, err := ek.Verify([][]byte{realCert(f, name)}, nil, anchors, now)
		if err != nil {
			f.Fatal(err)
		}
		trusted[id.Hash()] = true
	}
	f.Fuzz(func(t *testing.T, cert, pub []byte) {
		var certs [][]byte
		if len(cert) > 0 {
			certs = [][]byte{cert}
		}
		id, err := ek.Verify(certs, pub, anchors, now)
		var r *nodeclaim.Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("%v is no refusal", err)
		}
		if err == nil && !trusted[id.Hash()] {
			t.Errorf("EK %s is trusted without a certificate", id.Hash())
		}
	})
}
