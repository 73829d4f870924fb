package quote_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
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

// forgery is a quote by a key that signs anything, so that only the checks behind the
// signature stand in its way.
type forgery struct {
	soft   *tpmtest.SoftAK
	key    ak.Key
	nonce  []byte
	sel    nodeclaim.Selection
	values map[int][]byte
}

func newForgery(t testing.TB) forgery {
	t.Helper()
	soft, err := tpmtest.NewSoftAK()
	if err != nil {
		t.Fatal(err)
	}
	f := forgery{
		soft:   soft,
		key:    parse(t, soft.Public()),
		nonce:  bytes.Repeat([]byte{9}, 32),
		sel:    nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 4, 7}},
		values: map[int][]byte{},
	}
	for _, i := range f.sel.PCRs {
		f.values[i] = bytes.Repeat([]byte{byte(i + 1)}, 32)
	}
	return f
}

func (f forgery) digest() []byte { return quote.Composite(nodeclaim.SHA256, f.values, f.sel.PCRs) }

func (f forgery) attest() tpm2.TPMSAttest {
	return tpmtest.QuoteAttest(f.nonce, f.digest(), tpmtest.Select(f.sel.Bank, f.sel.PCRs...))
}

// evidence signs attest.
func (f forgery) evidence(t testing.TB, attest []byte) quote.Evidence {
	t.Helper()
	sig, err := f.soft.Sign(attest)
	if err != nil {
		t.Fatal(err)
	}
	return quote.Evidence{Attest: attest, Signature: sig, Values: f.values}
}

func (f forgery) verify(ev quote.Evidence) (quote.Quoted, error) {
	return quote.Verify(f.key, ev, f.nonce, f.sel)
}

func TestForgeryWithoutAFaultVerifies(t *testing.T) {
	f := newForgery(t)
	got, err := f.verify(f.evidence(t, tpm2.Marshal(f.attest())))
	if err != nil {
		t.Fatal(err)
	}
	if got.ResetCount != 2 || got.RestartCount != 3 {
		t.Errorf("counters %d, %d", got.ResetCount, got.RestartCount)
	}
}

func TestThreat02_OnlyTheSignedBytesAreParsed(t *testing.T) {
	f := newForgery(t)
	signed := tpm2.Marshal(f.attest())
	ev := f.evidence(t, signed)
	other := f.attest()
	other.ClockInfo.ResetCount = 77
	for name, c := range map[string]struct {
		attest, signature []byte
		check             string
	}{
		"another structure than the signed one":     {tpm2.Marshal(other), ev.Signature, "quote.signature"},
		"a byte appended to the quote":              {append(bytes.Clone(signed), 0), ev.Signature, "quote.parse"},
		"a second quote appended":                   {append(bytes.Clone(signed), tpm2.Marshal(other)...), ev.Signature, "quote.parse"},
		"a truncated quote":                         {signed[:len(signed)-1], ev.Signature, "quote.parse"},
		"no quote":                                  {nil, ev.Signature, "quote.magic"},
		"a quote of more than the size limit":       {append(bytes.Clone(signed), make([]byte, ak.MaxAttestSize)...), ev.Signature, "quote.size"},
		"a byte appended to the signature":          {signed, append(bytes.Clone(ev.Signature), 0), "quote.signature"},
		"no signature":                              {signed, nil, "quote.signature"},
		"a signature of more than the size limit":   {signed, make([]byte, ak.MaxSignatureSize+1), "quote.size"},
		"a signature of the null scheme":            {signed, []byte{0, 0x10}, "quote.scheme"},
		"a signature of another scheme":             {signed, append([]byte{0, 0x1a}, ev.Signature[2:]...), "quote.scheme"},
		"a signature of another hash than the AK's": {signed, append([]byte{0, 0x18, 0, 0x0c}, ev.Signature[4:]...), "quote.scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.verify(quote.Evidence{Attest: c.attest, Signature: c.signature, Values: f.values})
			wantRefusal(t, err, c.check)
		})
	}
}

func TestThreat02_SignedButNotCanonicalIsRefused(t *testing.T) {
	f := newForgery(t)
	signed := tpm2.Marshal(f.attest())
	for name, attest := range map[string][]byte{
		"trailing bytes under the signature": append(bytes.Clone(signed), 1, 2, 3),
		// magic, type, qualifiedSigner, extraData, clock, two counters: then the boolean safe
		"a boolean of 2": func() []byte {
			b := bytes.Clone(signed)
			b[4+2+2+34+2+32+8+4+4] = 2
			return b
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.verify(f.evidence(t, attest))
			wantRefusal(t, err, "quote.parse")
		})
	}
}

func TestThreat03_OnlyTheExactSelectionIsAccepted(t *testing.T) {
	f := newForgery(t)
	s := func(sel ...tpm2.TPMSPCRSelection) []tpm2.TPMSPCRSelection { return sel }
	sha256sel := func(pcrs ...int) tpm2.TPMSPCRSelection { return tpmtest.Select(nodeclaim.SHA256, pcrs...) }
	empty := sha256.Sum256(nil)
	for name, c := range map[string]struct {
		selections []tpm2.TPMSPCRSelection
		digest     []byte
	}{
		"no bank at all":                        {nil, empty[:]},
		"the bank without an index":             {s(sha256sel()), empty[:]},
		"the bank with an empty bit map":        {s(tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256}), empty[:]},
		"one index less":                        {s(sha256sel(0, 4)), f.digest()},
		"one index more":                        {s(sha256sel(0, 4, 7, 8)), f.digest()},
		"other indices":                         {s(sha256sel(1, 4, 7)), f.digest()},
		"an index beyond 23":                    {s(tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0x91, 0, 0, 1}}), f.digest()},
		"the bank split into two entries":       {s(sha256sel(0), sha256sel(4, 7)), f.digest()},
		"the bank twice":                        {s(sha256sel(0, 4, 7), sha256sel(0, 4, 7)), f.digest()},
		"another bank besides":                  {s(sha256sel(0, 4, 7), tpmtest.Select(nodeclaim.SHA1, 0)), f.digest()},
		"another bank besides without an index": {s(sha256sel(0, 4, 7), tpmtest.Select(nodeclaim.SHA1)), f.digest()},
	} {
		t.Run(name, func(t *testing.T) {
			attest := tpmtest.QuoteAttest(f.nonce, c.digest, c.selections...)
			_, err := f.verify(f.evidence(t, tpm2.Marshal(attest)))
			wantRefusal(t, err, "quote.selection")
		})
	}
	for name, sel := range map[string]nodeclaim.Selection{
		"a challenge over no PCR":           {Bank: nodeclaim.SHA256},
		"a challenge over an unknown bank":  {Bank: 0x12, PCRs: []int{0}},
		"a challenge over the zero value":   {},
		"a challenge with indices unsorted": {Bank: nodeclaim.SHA256, PCRs: []int{7, 4, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := quote.Verify(f.key, f.evidence(t, tpm2.Marshal(f.attest())), f.nonce, sel)
			wantRefusal(t, err, "quote.selection")
		})
	}
}

func TestThreat04_BanksAreNotConfused(t *testing.T) {
	f := newForgery(t)
	attest := tpmtest.QuoteAttest(f.nonce, f.digest(), tpmtest.Select(nodeclaim.SHA1, f.sel.PCRs...))
	_, err := f.verify(f.evidence(t, tpm2.Marshal(attest)))
	wantRefusal(t, err, "quote.selection")

	ev := f.evidence(t, tpm2.Marshal(f.attest()))
	_, err = quote.Verify(f.key, ev, f.nonce, nodeclaim.Selection{Bank: nodeclaim.SHA384, PCRs: f.sel.PCRs})
	wantRefusal(t, err, "quote.selection")
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

func TestThreat05_MagicAndTypeAreChecked(t *testing.T) {
	f := newForgery(t)
	good := tpm2.Marshal(f.attest())
	wrongMagic := bytes.Clone(good)
	wrongMagic[3] ^= 1
	nv := tpmtest.NVAttest(f.nonce, []byte{0, 0x0b}, f.digest(), 0)
	for name, c := range map[string]struct {
		attest []byte
		check  string
	}{
		"not made by a TPM":    {wrongMagic, "quote.magic"},
		"an NV certification":  {tpm2.Marshal(nv), "quote.type"},
		"text that was signed": {[]byte("some bytes that a key was asked to sign"), "quote.magic"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.verify(f.evidence(t, c.attest))
			wantRefusal(t, err, c.check)
		})
	}
	t.Run("without a key", func(t *testing.T) {
		_, err := quote.Verify(ak.Key{}, f.evidence(t, good), f.nonce, f.sel)
		wantRefusal(t, err, "quote.key")
	})
	t.Run("by another key", func(t *testing.T) {
		_, err := quote.Verify(newForgery(t).key, f.evidence(t, good), f.nonce, f.sel)
		wantRefusal(t, err, "quote.signature")
	})
}

func TestThreat06_OnlyTheNonceOfThisChallengeIsAccepted(t *testing.T) {
	f := newForgery(t)
	for name, nonce := range map[string][]byte{
		"another nonce":     bytes.Repeat([]byte{8}, 32),
		"a shorter nonce":   f.nonce[:31],
		"a longer nonce":    append(bytes.Clone(f.nonce), 9),
		"no nonce":          {},
		"an absent nonce":   nil,
		"a nonce of zeroes": make([]byte, 32),
	} {
		t.Run(name, func(t *testing.T) {
			attest := f.attest()
			attest.ExtraData.Buffer = nonce
			_, err := f.verify(f.evidence(t, tpm2.Marshal(attest)))
			wantRefusal(t, err, "quote.nonce")
		})
	}
	t.Run("a challenge without a nonce accepts nothing", func(t *testing.T) {
		attest := f.attest()
		attest.ExtraData.Buffer = nil
		_, err := quote.Verify(f.key, f.evidence(t, tpm2.Marshal(attest)), nil, f.sel)
		wantRefusal(t, err, "quote.nonce")
	})
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
