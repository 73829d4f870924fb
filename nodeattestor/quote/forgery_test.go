package quote_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/test/tpmtest"
)

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
