package dsse_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
)

const kind = "application/vnd.keelson.test.v1+json"

func edKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
}

func p256Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, kind string, payload []byte, key crypto.Signer) []byte {
	t.Helper()
	signed, err := dsse.Sign(kind, payload, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func wantFault(t *testing.T, err error, want dsse.Fault) {
	t.Helper()
	var e *dsse.Error
	if !errors.As(err, &e) || e.Fault != want {
		t.Errorf("got %v, want fault %s", err, want)
	}
}

func TestBothKindsOfKeySignAndAnyChangedByteIsRefused(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"ed25519": edKey(), "ECDSA P-256": p256Key(t)} {
		t.Run(name, func(t *testing.T) {
			payload := []byte(`{"a":"b"}`)
			signed := sign(t, kind, payload, key)
			id, err := dsse.KeyID(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			got, by, err := dsse.Open(kind, signed, []crypto.PublicKey{p256Key(t).Public(), key.Public()})
			if err != nil || !bytes.Equal(got, payload) || by != id {
				t.Fatalf("%q by %s, %v", got, by, err)
			}
			if most := base64.StdEncoding.EncodedLen(len(payload)) + dsse.Overhead; len(signed) > most {
				t.Errorf("the envelope has %d bytes, want at most %d", len(signed), most)
			}
			for i := range signed {
				for _, bit := range []byte{1, 0x20, 0x80} {
					changed := bytes.Clone(signed)
					changed[i] ^= bit
					if _, _, err := dsse.Open(kind, changed, []crypto.PublicKey{key.Public()}); err == nil {
						t.Fatalf("byte %d (%q) changed to %q: accepted", i, signed[i], changed[i])
					}
				}
				if _, _, err := dsse.Open(kind, signed[:i], []crypto.PublicKey{key.Public()}); err == nil {
					t.Fatalf("cut to %d bytes: accepted", i)
				}
			}
		})
	}
}

func TestEnvelopesThatAreRefused(t *testing.T) {
	key, other := edKey(), p256Key(t)
	signed := sign(t, kind, []byte("x"), key)
	trusted := []crypto.PublicKey{key.Public()}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	claim := func(id string) []byte { // other's signature under another key's name
		var e map[string]any
		if err := json.Unmarshal(sign(t, kind, []byte("x"), other), &e); err != nil {
			t.Fatal(err)
		}
		first, ok := e["signatures"].([]any)[0].(map[string]any)
		if !ok {
			t.Fatal("no signature")
		}
		sig, ok := first["sig"].(string)
		if !ok {
			t.Fatal("no sig")
		}
		return []byte(`{"payloadType":"` + kind + `","payload":"eA==","signatures":[{"keyid":"` + id + `","sig":"` + sig + `"}]}`)
	}
	id, err := dsse.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		data    []byte
		signers []crypto.PublicKey
		want    dsse.Fault
	}{
		"nothing":                              {nil, trusted, dsse.BadEnvelope},
		"a text":                               {[]byte("name: good"), trusted, dsse.BadEnvelope},
		"another type":                         {sign(t, "application/json", []byte("x"), key), trusted, dsse.BadEnvelope},
		"two signatures":                       {[]byte(`{"payloadType":"` + kind + `","payload":"eA==","signatures":[{"keyid":"","sig":""},{"keyid":"","sig":""}]}`), trusted, dsse.BadEnvelope},
		"no signature":                         {[]byte(`{"payloadType":"` + kind + `","payload":"eA==","signatures":[]}`), trusted, dsse.BadEnvelope},
		"white space":                          {append(bytes.Clone(signed), '\n'), trusted, dsse.BadEnvelope},
		"a stranger's signature":               {sign(t, kind, []byte("x"), other), trusted, dsse.BadSigner},
		"a stranger who claims a trusted key":  {claim(id), trusted, dsse.BadSignature},
		"no signer is trusted":                 {signed, nil, dsse.BadSigner},
		"a configured signer that may not be":  {signed, []crypto.PublicKey{&rsaKey.PublicKey}, dsse.BadSigner},
		"a configured signer that is cut":      {signed, []crypto.PublicKey{ed25519.PublicKey("short")}, dsse.BadSigner},
		"a payload type that is a prefix only": {sign(t, kind+" 1 x", []byte("x"), key), trusted, dsse.BadEnvelope},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			payload, by, err := dsse.Open(kind, c.data, c.signers)
			wantFault(t, err, c.want)
			if payload != nil || by != "" {
				t.Errorf("gave out %q by %q", payload, by)
			}
		})
	}
	if payload, by, err := dsse.Unverified(kind, signed); err != nil || string(payload) != "x" || by != id {
		t.Errorf("unverified: %q by %q, %v", payload, by, err)
	}
	_, _, err = dsse.Unverified(kind, []byte("{}"))
	wantFault(t, err, dsse.BadEnvelope)
}

func TestKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{"ed25519": {edKey(), true}, "ECDSA P-256": {p256Key(t), true}, "ECDSA P-384": {p384, false}} {
		t.Run(name, func(t *testing.T) {
			private, err := x509.MarshalPKCS8PrivateKey(c.key)
			if err != nil {
				t.Fatal(err)
			}
			public, err := x509.MarshalPKIXPublicKey(c.key.Public())
			if err != nil {
				t.Fatal(err)
			}
			_, err = dsse.ParseSigningKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
			_, err2 := dsse.ParseSigners(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
			_, err3 := dsse.Sign(kind, nil, c.key, rand.Reader)
			if (err == nil) != c.ok || (err2 == nil) != c.ok || (err3 == nil) != c.ok {
				t.Errorf("signing key %v, signer %v, signature %v", err, err2, err3)
			}
		})
	}
	for name, data := range map[string]string{"nothing": "", "garbage": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "another block": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		t.Run(name+" is no key", func(t *testing.T) {
			if _, err := dsse.ParseSigners([]byte(data)); err == nil {
				t.Error("signers: no error")
			}
			if _, err := dsse.ParseSigningKey([]byte(strings.ReplaceAll(data, "PUBLIC", "PRIVATE"))); err == nil {
				t.Error("signing key: no error")
			}
		})
	}
}

// FuzzOpen: one thing was signed, so nothing but that one envelope opens.
func FuzzOpen(f *testing.F) {
	key := edKey()
	signed := sign(f, kind, []byte(`{"a":"b"}`), key)
	f.Add(signed)
	f.Add(sign(f, "other", []byte("x"), key))
	f.Add([]byte(`{"payloadType":"` + kind + `","payload":"","signatures":[{"keyid":"","sig":""}]}`))
	f.Add([]byte(`{"payloadType":"` + kind + `","payload":null,"signatures":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, err := dsse.Open(kind, data, []crypto.PublicKey{key.Public()})
		if (err == nil) != bytes.Equal(data, signed) && !bytes.Equal(data, sign(t, "other", []byte("x"), key)) {
			t.Errorf("%q: %v", data, err)
		}
	})
}
