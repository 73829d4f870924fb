package image_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

func pemOf(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestKeysOfEveryKindVerify(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{
		"ECDSA P-256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"ECDSA P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"RSA 2048":    must(rsa.GenerateKey(rand.Reader, 2048)),
		"Ed25519":     ed,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.key = key
			a := f.app()
			f.push(f.repo+":a", a.image)
			f.sign(a.manifest)
			c := f.checker(f.verifier("release-key", pemOf(t, key.Public())))
			f.want(c, image.Running{ID: a.config, Name: f.repo + ":a"}, proved(a, []string{a.manifest}, "release-key"))
		})
	}
}

func TestKeyVerifierRefuses(t *testing.T) {
	_, good, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes})
	cases := map[string]struct {
		name string
		keys []byte
		want string
	}{
		"a name that is no label":        {"Release Key", good, "verifier's name"},
		"no name":                        {"", good, "verifier's name"},
		"no key":                         {"k", nil, "no PEM block"},
		"text that is no PEM":            {"k", []byte("hello"), "no PEM block"},
		"text after the key":             {"k", append(append([]byte(nil), good...), "hello"...), "not PEM"},
		"a private key":                  {"k", private, `"PRIVATE KEY", want "PUBLIC KEY"`},
		"a key that is cut":              {"k", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: block.Bytes[:20]}), "key 1"},
		"the second key is bad":          {"k", append(append([]byte(nil), good...), private...), "key 2"},
		"RSA of 1024 bits":               {"k", pemOf(t, must(rsa.GenerateKey(rand.Reader, 1024)).Public()), "key 1"},
		"ECDSA on a curve that is small": {"k", pemOf(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public()), "key 1"},
		"17 keys":                        {"k", []byte(strings.Repeat(string(good), 17)), "more than 16 keys"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := image.NewKeyVerifier(tc.name, tc.keys); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestDigestVerifierRefuses(t *testing.T) {
	if _, err := image.NewDigestVerifier("k", image.DigestList{}); err == nil {
		t.Error("a list of nothing is accepted")
	}
	if _, err := image.NewDigestVerifier("K", image.DigestList{}); err == nil {
		t.Error("a name that is no label is accepted")
	}
}
