package dsse_test

import (
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
)

func FuzzParseSigners(f *testing.F) {
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{0x30, 0x00}}))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("no key at all"))
	f.Fuzz(func(t *testing.T, data []byte) {
		signers, err := dsse.ParseSigners(data)
		switch {
		case err != nil && len(signers) > 0:
			t.Errorf("%d keys beside the error %v", len(signers), err)
		case err == nil && len(signers) == 0:
			t.Error("no key and no error")
		}
		for _, s := range signers {
			if s == nil {
				t.Error("an empty key")
			}
		}
	})
}

func FuzzParseSigningKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{0x30, 0x00}}))
	f.Add([]byte("no key at all"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := dsse.ParseSigningKey(data)
		if err != nil {
			return
		}
		if key == nil || key.Public() == nil {
			t.Fatal("no key and no error")
		}
		message := []byte("signed by whatever was read")
		signed, err := dsse.Sign("kind", message, key, rand.Reader)
		if err != nil {
			t.Fatalf("the key signs nothing: %v", err)
		}
		if got, _, err := dsse.Open("kind", signed, []crypto.PublicKey{key.Public()}); err != nil || string(got) != string(message) {
			t.Errorf("what the key signed is not believed: %v", err)
		}
	})
}
