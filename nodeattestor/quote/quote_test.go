package quote_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// good is the evidence of a real machine: its AK's area, the quote, and what was asked.
func good(t testing.TB) (akArea []byte, ev quote.Evidence, sel nodeclaim.Selection) {
	t.Helper()
	sel = nodeclaim.Selection{Bank: nodeclaim.SHA256}
	ev = quote.Evidence{
		Attest:    vectors.Read(t, "good", "quote.attest"),
		Signature: vectors.Read(t, "good", "quote.sig"),
		Values:    map[int][]byte{},
	}
	all := vectors.ReadPCRs(t, "good", "pcrs.txt")
	for i := range 15 {
		sel.PCRs = append(sel.PCRs, i)
		ev.Values[i] = all[i]
	}
	return vectors.Read(t, "good", "ak.tpmpub"), ev, sel
}

func parse(t testing.TB, area []byte) ak.Key {
	t.Helper()
	key, err := ak.Parse(area)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// wantRefusal fails unless err is a refusal of this check.
func wantRefusal(t *testing.T, err error, check string) {
	t.Helper()
	var r *nodeclaim.Refusal
	if !errors.As(err, &r) || r.Check != check {
		t.Errorf("error is %v, want a refusal of %s", err, check)
	}
}

func TestQuotesOfRealMachinesVerify(t *testing.T) {
	for _, boot := range vectors.Boots() {
		t.Run(boot, func(t *testing.T) {
			pcrs := vectors.Quoted(t, boot)
			if diff := cmp.Diff([]nodeclaim.HashAlg{nodeclaim.SHA256}, pcrs.Banks()); diff != "" {
				t.Errorf("banks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCountersOfARealQuote(t *testing.T) {
	area, ev, sel := good(t)
	got, err := quote.Verify(parse(t, area), ev, []byte(vectors.Nonce), sel)
	if err != nil {
		t.Fatal(err)
	}
	got.PCRs, got.QualifiedSigner = quote.PCRs{}, nil
	// From the bytes of the file: clock 0x6175, obfuscated counters and firmware version.
	want := quote.Quoted{Clock: 0x6175, ResetCount: 0xe7e0ff7a, RestartCount: 0x83e0fb4b, Safe: true, FirmwareVersion: 0x5124634f1e19a74e}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(quote.PCRs{})); diff != "" {
		t.Errorf("quoted (-want +got):\n%s", diff)
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	area, ev, sel := good(t)
	name := parse(t, area).Name()
	flip := func(b []byte, accepted func(mutated []byte) bool) int {
		n := 0
		for i := range 8 * len(b) {
			mutated := bytes.Clone(b)
			mutated[i/8] ^= 1 << (i % 8)
			if accepted(mutated) {
				t.Errorf("bit %d of byte %d may be flipped", i%8, i/8)
			}
			n++
		}
		return n
	}
	verify := func(area []byte, ev quote.Evidence) (ak.Key, bool) {
		key, err := ak.Parse(area)
		if err != nil {
			return key, false
		}
		_, err = quote.Verify(key, ev, []byte(vectors.Nonce), sel)
		return key, err == nil
	}
	if _, ok := verify(area, ev); !ok {
		t.Fatal("the evidence itself is refused")
	}
	t.Run("quote", func(*testing.T) {
		flip(ev.Attest, func(b []byte) bool { e := ev; e.Attest = b; _, ok := verify(area, e); return ok })
	})
	t.Run("signature", func(*testing.T) {
		flip(ev.Signature, func(b []byte) bool { e := ev; e.Signature = b; _, ok := verify(area, e); return ok })
	})
	t.Run("AK", func(*testing.T) {
		// An attribute that does not matter here may change; then the name does, for which
		// the TPM activates no credential.
		flip(area, func(b []byte) bool { key, ok := verify(b, ev); return ok && bytes.Equal(key.Name(), name) })
	})
	t.Run("values", func(*testing.T) {
		for _, pcr := range sel.PCRs {
			flip(ev.Values[pcr], func(b []byte) bool {
				e := ev
				e.Values = map[int][]byte{}
				for i, v := range ev.Values {
					e.Values[i] = v
				}
				e.Values[pcr] = b
				_, ok := verify(area, e)
				return ok
			})
		}
	})
}

func TestThreat04_OnlyQuotedValuesCanBeRead(t *testing.T) {
	f := newForgery(t)
	got, err := f.verify(f.evidence(t, tpm2.Marshal(f.attest())))
	if err != nil {
		t.Fatal(err)
	}
	for bank, indices := range map[nodeclaim.HashAlg][]int{
		nodeclaim.SHA256: {-1, 1, 8, 23, 24},
		nodeclaim.SHA1:   {0, 4, 7},
	} {
		for _, i := range indices {
			if v, ok := got.PCRs.Value(bank, i); ok || v != nil {
				t.Errorf("PCR %d of bank %s reads %x, though it was not quoted", i, bank, v)
			}
		}
	}
	v, ok := got.PCRs.Value(nodeclaim.SHA256, 4)
	if !ok || !bytes.Equal(v, f.values[4]) {
		t.Fatalf("PCR 4 reads %x, %t", v, ok)
	}
	v[0] ^= 1
	f.values[4][0] ^= 1
	got.PCRs.All()[nodeclaim.SHA256][4][0] ^= 1
	if again, _ := got.PCRs.Value(nodeclaim.SHA256, 4); again[0] != v[0]^1 {
		t.Error("a quoted value can be changed from outside")
	}
	if v, ok := (quote.PCRs{}).Value(nodeclaim.SHA256, 0); ok || v != nil {
		t.Error("the zero value has PCRs")
	}
}

func TestThreat04_ClaimedValuesAreExactlyTheSelectedOnes(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[int][]byte)
		check  string
	}{
		"a value is missing":              {func(v map[int][]byte) { delete(v, 4) }, "quote.values"},
		"a value that was not quoted":     {func(v map[int][]byte) { v[8] = make([]byte, 32) }, "quote.values"},
		"a missing value and a spare one": {func(v map[int][]byte) { delete(v, 4); v[8] = make([]byte, 32) }, "quote.values"},
		"a short value":                   {func(v map[int][]byte) { v[4] = v[4][:31] }, "quote.values"},
		"a byte moved to the next value":  {func(v map[int][]byte) { v[4], v[7] = v[4][:31], append([]byte{5}, v[7]...) }, "quote.values"},
		"two values swapped":              {func(v map[int][]byte) { v[4], v[7] = v[7], v[4] }, "quote.composite"},
		"another value":                   {func(v map[int][]byte) { v[4] = make([]byte, 32) }, "quote.composite"},
		"no value":                        {func(v map[int][]byte) { clear(v) }, "quote.values"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForgery(t)
			ev := f.evidence(t, tpm2.Marshal(f.attest()))
			c.change(ev.Values)
			_, err := f.verify(ev)
			wantRefusal(t, err, c.check)
		})
	}
}

// The composite is hashed with the AK scheme's hash, whatever the bank's.
func TestCompositeUsesTheSchemesHash(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key := parse(t, tpmtest.Sized(tpmtest.RSAArea(&private.PublicKey, tpm2.TPMAlgSHA384)))
	f := newForgery(t)
	sign := func(digest []byte) quote.Evidence {
		attest := tpm2.Marshal(tpmtest.QuoteAttest(f.nonce, digest, tpmtest.Select(f.sel.Bank, f.sel.PCRs...)))
		sum := sha512.Sum384(attest)
		sig, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA384, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return quote.Evidence{Attest: attest, Values: f.values, Signature: tpm2.Marshal(tpm2.TPMTSignature{
			SigAlg:    tpm2.TPMAlgRSASSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA384, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}}),
		})}
	}
	if _, err := quote.Verify(key, sign(quote.Composite(nodeclaim.SHA384, f.values, f.sel.PCRs)), f.nonce, f.sel); err != nil {
		t.Error(err)
	}
	_, err = quote.Verify(key, sign(quote.Composite(nodeclaim.SHA256, f.values, f.sel.PCRs)), f.nonce, f.sel)
	wantRefusal(t, err, "quote.composite")

	broken := sign(quote.Composite(nodeclaim.SHA384, f.values, f.sel.PCRs))
	broken.Signature[len(broken.Signature)-1] ^= 1
	_, err = quote.Verify(key, broken, f.nonce, f.sel)
	wantRefusal(t, err, "quote.signature")
}

func TestMergeJoinsBanksAndRefusesOneTwice(t *testing.T) {
	one := vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {7: make([]byte, 32)}})
	two := vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA1: {7: make([]byte, 20)}})
	both, err := quote.Merge(one, two)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]nodeclaim.HashAlg{nodeclaim.SHA1, nodeclaim.SHA256}, both.Banks()); diff != "" {
		t.Errorf("banks (-want +got):\n%s", diff)
	}
	_, err = quote.Merge(both, two)
	wantRefusal(t, err, "quote.bank")
}

func FuzzVerify(f *testing.F) {
	area, ev, sel := good(f)
	key := parse(f, area)
	f.Add(ev.Attest, ev.Signature)
	forged := newForgery(f)
	forgedEvidence := forged.evidence(f, tpm2.Marshal(tpmtest.NVAttest(forged.nonce, []byte{0, 0x0b}, make([]byte, 32), 0)))
	f.Add(forgedEvidence.Attest, forgedEvidence.Signature)
	f.Add([]byte("\xffTCG\x80\x18"), []byte{0, 0x10})
	f.Fuzz(func(t *testing.T, attest, signature []byte) {
		_, err := quote.Verify(key, quote.Evidence{Attest: attest, Signature: signature, Values: ev.Values}, []byte(vectors.Nonce), sel)
		if err == nil && !bytes.Equal(attest, ev.Attest) {
			t.Error("a quote that the TPM never made is accepted")
		}
		var r *nodeclaim.Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("%v is no refusal", err)
		}
	})
}
