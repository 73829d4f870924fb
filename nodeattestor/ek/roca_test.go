package ek_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	mathrand "math/rand/v2"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// rocaPrime is a number as RSALib makes primes of 1024 bits: k*M + (65537^a mod M), where M is the product of the first 126 primes.
func rocaPrime(t testing.TB, src *mathrand.Rand) *big.Int {
	t.Helper()
	m, count := big.NewInt(1), 0
	for p := int64(2); count < 126; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
			count++
		}
	}
	for range 10_000 {
		a := new(big.Int).Exp(big.NewInt(65537), new(big.Int).SetUint64(src.Uint64()), m)
		k := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(3), 1022), m)
		k.Add(k, new(big.Int).SetUint64(src.Uint64()>>40))
		if p := a.Add(a, k.Mul(k, m)); p.BitLen() == 1024 && p.ProbablyPrime(1) {
			return p
		}
	}
	t.Fatal("no prime")
	return nil
}

func rocaModulus(t testing.TB) *big.Int {
	src := mathrand.New(mathrand.NewPCG(1, 2))
	for {
		if n := new(big.Int).Mul(rocaPrime(t, src), rocaPrime(t, src)); n.BitLen() == 2048 {
			return n
		}
	}
}

func TestAKeyWithTheROCAWeaknessIsRefused(t *testing.T) {
	n := rocaModulus(t)
	if !ek.HasROCA(n) {
		t.Fatal("its fingerprint is not seen")
	}
	key := &rsa.PublicKey{N: n, E: 65537}
	hash, err := ek.HashKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var area []byte
	for _, l := range ek.Templates() {
		if l.Name == "L-1" {
			area = tpmtest.Sized(l.WithKey(key))
		}
	}
	anchors := ek.Anchors{Mode: ek.Inventory, Inventory: ek.Machines{hash: {Node: "n"}}}
	_, err = ek.Verify(nil, area, anchors, now)
	wantRefusal(t, err, "ek.roca")
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueEK(key, tpmtest.EKOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ek.Verify([][]byte{cert, ca.Issuer().Raw}, nil, ek.Anchors{Mode: ek.Certificate, Roots: []*x509.Certificate{ca.Root()}}, now)
	wantRefusal(t, err, "ek.roca")
}

func TestOtherKeysHaveNotTheROCAWeakness(t *testing.T) {
	src := mathrand.New(mathrand.NewPCG(3, 4))
	raw := make([]byte, 256)
	for range 20_000 {
		for i := range raw {
			raw[i] = byte(src.Uint32())
		}
		raw[0], raw[255] = raw[0]|0x80, raw[255]|1
		if n := new(big.Int).SetBytes(raw); ek.HasROCA(n) {
			t.Fatalf("%x has it", n)
		}
	}
	for range 3 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		if ek.HasROCA(k.N) {
			t.Errorf("%x has it", k.N)
		}
	}
	for _, n := range []*big.Int{nil, new(big.Int), big.NewInt(-1), big.NewInt(4)} {
		if ek.HasROCA(n) {
			t.Errorf("%v has it", n)
		}
	}
	if key, err := ek.CertificateKey(realCert(t, "ek-rsa.pem")); err != nil || ek.HasROCA(key.(*rsa.PublicKey).N) {
		t.Errorf("a real TPM's: %v", err)
	}
}
