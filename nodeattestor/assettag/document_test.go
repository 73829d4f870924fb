package assettag_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
)

func TestDocumentsAreStrict(t *testing.T) {
	good, err := document().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := assettag.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(document(), got); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
	rep := func(old, with string) string {
		if !strings.Contains(string(good), old) {
			t.Fatalf("%s is not in %s", old, good)
		}
		return strings.Replace(string(good), old, with, 1)
	}
	for name, data := range map[string]string{
		"nothing":              "",
		"null":                 "null",
		"a list":               "[]",
		"an unknown key":       rep(`{"tags"`, `{"x":1,"tags"`),
		"a repeated key":       rep(`"serial":5`, `"serial":4,"serial":5`),
		"a repeated tag":       rep(`"country":"DE"`, `"country":"FR","country":"DE"`),
		"a key in capitals":    rep(`"serial"`, `"Serial"`),
		"white space":          rep(`"serial":5`, `"serial": 5`),
		"trailing bytes":       string(good) + " ",
		"a second document":    string(good) + string(good),
		"a serial with a dot":  rep(`"serial":5`, `"serial":5.0`),
		"a negative serial":    rep(`"serial":5`, `"serial":-5`),
		"a serial too large":   rep(`"serial":5`, `"serial":18446744073709551616`),
		"a tag that is a list": rep(`"DE"`, `["DE"]`),
		"more than the limit":  strings.Repeat(" ", assettag.MaxDocumentSize) + string(good),
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := assettag.Parse([]byte(data)); err == nil {
				t.Errorf("accepted as %+v", d)
			}
		})
	}
}

func TestDocumentRules(t *testing.T) {
	many := map[string]string{}
	for i := range assettag.MaxTags + 1 {
		many["k"+strings.Repeat("x", i)] = "v"
	}
	for name, change := range map[string]func(*assettag.Document){
		"no tag":                     func(d *assettag.Document) { d.Tags = nil },
		"too many tags":              func(d *assettag.Document) { d.Tags = many },
		"an empty key":               func(d *assettag.Document) { d.Tags = map[string]string{"": "v"} },
		"a key in capitals":          func(d *assettag.Document) { d.Tags = map[string]string{"Country": "DE"} },
		"a key with a prefix":        func(d *assettag.Document) { d.Tags = map[string]string{"example.org/country": "DE"} },
		"a key with a colon":         func(d *assettag.Document) { d.Tags = map[string]string{"a:b": "DE"} },
		"a key with a line feed":     func(d *assettag.Document) { d.Tags = map[string]string{"a\n": "DE"} },
		"a key too long for a label": func(d *assettag.Document) { d.Tags = map[string]string{strings.Repeat("a", 60): "DE"} },
		"an empty value":             func(d *assettag.Document) { d.Tags = map[string]string{"a": ""} },
		"a value with a space":       func(d *assettag.Document) { d.Tags = map[string]string{"a": "b c"} },
		"a value that ends in a dot": func(d *assettag.Document) { d.Tags = map[string]string{"a": "b."} },
		"a value too long":           func(d *assettag.Document) { d.Tags = map[string]string{"a": strings.Repeat("b", 64)} },
		"no EK":                      func(d *assettag.Document) { d.EKHashes = nil },
		"an EK in capitals":          func(d *assettag.Document) { d.EKHashes = []string{strings.ToUpper(ekA.String())} },
		"an EK twice":                func(d *assettag.Document) { d.EKHashes = append(d.EKHashes, d.EKHashes[0]) },
		"serial 0":                   func(d *assettag.Document) { d.Serial = 0 },
		"an end before the start":    func(d *assettag.Document) { d.NotAfter = d.NotBefore.Add(-time.Hour) },
		"no times":                   func(d *assettag.Document) { d.NotBefore, d.NotAfter = time.Time{}, time.Time{} },
		"no start":                   func(d *assettag.Document) { d.NotBefore = time.Time{} },
	} {
		t.Run(name, func(t *testing.T) {
			d := document()
			change(&d)
			if _, err := d.Marshal(); err == nil {
				t.Error("no error")
			}
			if _, err := assettag.Sign(d, newMachine(t).signer, rand.Reader); err == nil {
				t.Error("it was signed")
			}
		})
	}
}

func TestSigners(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	for name, c := range map[string]struct {
		signer crypto.Signer
		ok     bool
	}{"ed25519": {m.signer, true}, "ECDSA P-256": {p256, true}, "ECDSA P-384": {p384, false}, "RSA": {rsaKey, false}} {
		t.Run(name, func(t *testing.T) {
			signed, err := assettag.Sign(document(), c.signer, rand.Reader)
			if (err == nil) != c.ok {
				t.Fatalf("sign: %v", err)
			}
			private, err := x509.MarshalPKCS8PrivateKey(c.signer)
			if err != nil {
				t.Fatal(err)
			}
			public, err := x509.MarshalPKIXPublicKey(c.signer.Public())
			if err != nil {
				t.Fatal(err)
			}
			key, err := assettag.ParseSigningKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
			if (err == nil) != c.ok {
				t.Fatalf("signing key: %v", err)
			}
			signers, err := assettag.ParseSigners(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
			if (err == nil) != c.ok {
				t.Fatalf("signers: %v", err)
			}
			if !c.ok {
				return
			}
			if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(signers[0]) {
				t.Error("the keys differ")
			}
			want := m.expected()
			want.Signers = append(want.Signers, signers...)
			if _, err := assettag.Verify(m.evidence(t, signed), want); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a configured signer of another type", func(t *testing.T) {
		want := m.expected()
		want.Signers = []crypto.PublicKey{&rsaKey.PublicKey}
		_, err := assettag.Verify(m.evidence(t, m.issue(t, document())), want)
		wantRefusal(t, err, "tag.signer")
	})
	for name, data := range map[string]string{"nothing": "", "garbage": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "another block": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		t.Run(name+" is no key", func(t *testing.T) {
			if _, err := assettag.ParseSigners([]byte(data)); err == nil {
				t.Error("signers: no error")
			}
			if _, err := assettag.ParseSigningKey([]byte(strings.ReplaceAll(data, "PUBLIC", "PRIVATE"))); err == nil {
				t.Error("signing key: no error")
			}
		})
	}
}

func TestIndexMustBeTheOwners(t *testing.T) {
	for index, ok := range map[uint32]bool{0x017fffff: false, 0x01800000: true, assettag.DefaultIndex: true, 0x01bfffff: true, 0x01c00000: false, 0x81000000: false} {
		if err := assettag.CheckIndex(index); (err == nil) != ok {
			t.Errorf("index 0x%08x: %v", index, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := document().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"tags":{"a":"b"},"ekHashes":[],"serial":1}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := assettag.Parse(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(d)
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q reads as %q (%v)", data, again, err)
		}
	})
}
