package imasig_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/test/imatest"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "evmctl", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func key(t testing.TB, text []byte) imasig.Key {
	t.Helper()
	k, err := imasig.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func verify(k imasig.Key, raw []byte, d imasig.Digest) error {
	s, err := imasig.Parse(raw)
	if err != nil {
		return err
	}
	return k.Verify(s, d)
}

// digests are those of the file that evmctl signed.
func digests(t testing.TB) map[string]imasig.Digest {
	file := read(t, "file")
	a, b := sha256.Sum256(file), sha512.Sum512(file)
	return map[string]imasig.Digest{"sha256": {Alg: "sha256", Sum: a[:]}, "sha512": {Alg: "sha512", Sum: b[:]}}
}

func TestSignaturesOfEvmctlVerify(t *testing.T) {
	for _, name := range []string{"rsa", "ec"} {
		for alg, d := range digests(t) {
			raw := read(t, name+"-"+alg+".sig")
			for _, form := range []string{".crt", ".pub.pem"} {
				k := key(t, read(t, name+form))
				if err := verify(k, raw, d); err != nil {
					t.Errorf("%s%s, %s: %v", name, form, alg, err)
				}
				other := imasig.Digest{Alg: d.Alg, Sum: bytes.Clone(d.Sum)}
				other.Sum[0] ^= 1
				if err := verify(k, raw, other); err == nil {
					t.Errorf("%s%s, %s: a signature of another file verifies", name, form, alg)
				}
			}
		}
	}
}

// TestFlippedBitsOfASignatureAreRefused: of a header and signature, every bit counts; that of an ECDSA signature is no
// exception, for its DER form is strict.
func TestFlippedBitsOfASignatureAreRefused(t *testing.T) {
	for _, name := range []string{"rsa", "ec"} {
		for alg, d := range digests(t) {
			k := key(t, read(t, name+".crt"))
			raw := read(t, name+"-"+alg+".sig")
			for bit := range len(raw) * 8 {
				changed := bytes.Clone(raw)
				changed[bit/8] ^= 1 << (bit % 8)
				if err := verify(k, changed, d); err == nil {
					t.Errorf("%s, %s: accepted with bit %d flipped", name, alg, bit)
				}
			}
			for n := range len(raw) {
				if err := verify(k, raw[:n], d); err == nil {
					t.Errorf("%s, %s: accepted when cut to %d bytes", name, alg, n)
				}
			}
		}
	}
}

func TestWhatASignatureDoesNotVouchFor(t *testing.T) {
	signer := imatest.NewSigner(t)
	k := key(t, signer.PEM())
	sum := sha256.Sum256([]byte("content"))
	file, verity := imasig.Digest{Alg: "sha256", Sum: sum[:]}, imasig.Digest{Alg: "sha256", Sum: sum[:], Verity: true}
	v2, v3, onVerity := signer.Sign(t, 3, 2, sum[:]), signer.Sign(t, 3, 3, sum[:]), signer.Sign(t, 6, 3, sum[:])
	for name, raw := range map[string][]byte{"v2": v2, "v3": v3} {
		if err := verify(k, raw, file); err != nil {
			t.Errorf("%s of a file: %v", name, err)
		}
		if err := verify(k, raw, verity); err == nil {
			t.Errorf("%s of a file vouches for an fs-verity digest", name)
		}
	}
	if err := verify(k, onVerity, verity); err != nil {
		t.Errorf("of an fs-verity digest: %v", err)
	}
	if err := verify(k, onVerity, file); err == nil {
		t.Error("a signature of an fs-verity digest vouches for a file")
	}
	retyped := bytes.Clone(onVerity)
	retyped[0] = 3
	if err := verify(k, retyped, file); err == nil {
		t.Error("the type is in no signature")
	}
	downgraded := bytes.Clone(v3)
	downgraded[1] = 2
	if err := verify(k, downgraded, file); err == nil {
		t.Error("a version 3 passes for a version 2")
	}
	other := imatest.NewSigner(t)
	renamed := bytes.Clone(v2)
	copy(renamed[3:7], other.Sign(t, 3, 2, sum[:])[3:7])
	if err := verify(key(t, other.PEM()), renamed, file); err == nil {
		t.Error("another key's signature verifies under its name")
	}
	if err := verify(key(t, other.PEM()), v2, file); err == nil || !strings.Contains(err.Error(), "this is another") {
		t.Errorf("another key: %v", err)
	}
	for _, d := range []imasig.Digest{{Alg: "sha512", Sum: sum[:]}, {Alg: "sha256", Sum: sum[:31]}, {Alg: "sha512", Sum: make([]byte, 64)}, {}} {
		if err := verify(k, v2, d); err == nil {
			t.Errorf("vouches for %+v", d)
		}
	}
}

func TestMalformedSignaturesAreRefused(t *testing.T) {
	good := imatest.NewSigner(t).Sign(t, 3, 2, make([]byte, 32))
	with := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	for name, c := range map[string]struct {
		raw  []byte
		says string
	}{
		"nothing":                   {nil, "too few"},
		"a header alone":            {good[:9], "too few"},
		"a bare digest (0x04)":      {with(0, 4), "type 4 is no signature"},
		"an EVM signature (0x05)":   {with(0, 5), "type 5 is no signature"},
		"version 1":                 {with(1, 1), "version 1"},
		"version 4":                 {with(1, 4), "version 4"},
		"fs-verity with version 2":  {with(0, 6), "version 2 of signature type 6"},
		"SHA-1":                     {with(2, 2), "may not be signed"},
		"a hash that nobody knows":  {with(2, 99), "may not be signed"},
		"a size too small":          {with(8, good[8]-1), "announces"},
		"a byte too many":           {append(bytes.Clone(good), 0), "announces"},
		"one that is far too large": {make([]byte, imasig.MaxSize+1), "more than the"},
	} {
		if _, err := imasig.Parse(c.raw); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestKeysThatMayNotSign(t *testing.T) {
	public := func(k crypto.PublicKey) []byte {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := read(t, "ec.pub.pem")
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"nothing":                    {nil, "one PEM block"},
		"text":                       {[]byte("a key"), "one PEM block"},
		"two keys":                   {append(bytes.Clone(good), good...), "one PEM block"},
		"a private key":              {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), "wanted PUBLIC KEY or CERTIFICATE"},
		"a broken key":               {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}}), "key:"},
		"a broken certificate":       {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), "certificate:"},
		"RSA of 1024 bits":           {public(&small.PublicKey), "1024 bits"},
		"a curve that is too small":  {public(&p224.PublicKey), "P-224"},
		"ed25519, which IMA has not": {public(edwards), "use RSA or ECDSA"},
		"one that is far too large":  {make([]byte, 16<<10+1), "more than the"},
	} {
		if _, err := imasig.ParseKey(c.text); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestAKeyIsReadAsItWasWritten(t *testing.T) {
	for _, file := range []string{"rsa.crt", "rsa.pub.pem", "ec.crt", "ec.pub.pem"} {
		k := key(t, append(append([]byte("a comment\n"), read(t, file)...), "\n \n"...))
		again := key(t, []byte(k.PEM()))
		if again.PEM() != k.PEM() || again.ID() != k.ID() || len(k.ID()) != 64 {
			t.Errorf("%s: %s, again %s", file, k.ID(), again.ID())
		}
	}
	if key(t, read(t, "rsa.crt")).ID() != key(t, read(t, "rsa.pub.pem")).ID() {
		t.Error("a certificate has another ID than its key")
	}
}

// FuzzSignature: no bytes but evmctl's signature verify, and nothing panics.
func FuzzSignature(f *testing.F) {
	var keys []imasig.Key
	known := map[string]bool{}
	all := digests(f)
	for _, name := range []string{"rsa", "ec"} {
		keys = append(keys, key(f, read(f, name+".crt")))
		for alg := range all {
			raw := read(f, name+"-"+alg+".sig")
			known[string(raw)] = true
			f.Add(raw)
		}
	}
	f.Add(binary.BigEndian.AppendUint16([]byte{6, 3, 4, 1, 2, 3, 4}, 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, k := range keys {
			for alg, d := range all {
				if err := verify(k, raw, d); err == nil && !known[string(raw)] {
					t.Errorf("verifies over %s: %x", alg, raw)
				}
			}
		}
	})
}

// FuzzParseKey: what is read is read again as the same key.
func FuzzParseKey(f *testing.F) {
	for _, file := range []string{"rsa.crt", "rsa.pub.pem", "ec.crt", "ec.pub.pem"} {
		f.Add(read(f, file))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := imasig.ParseKey(text)
		if err != nil {
			return
		}
		again, err := imasig.ParseKey([]byte(k.PEM()))
		if err != nil || again.PEM() != k.PEM() || again.ID() != k.ID() {
			t.Errorf("%v: %s, again %s", err, k.PEM(), again.PEM())
		}
	})
}
