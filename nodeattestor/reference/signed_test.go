package reference_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/dsse"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

func signer(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

// small is a set of a few hundred bytes, for tests that try every byte.
func small(t testing.TB, lines string) reference.Set {
	t.Helper()
	zero := strings.Repeat("0", 64)
	s, err := reference.ParseSet([]byte("name: small\n" + lines + "boot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lasting(t testing.TB, s reference.Set) reference.Set {
	t.Helper()
	s, err := s.WithValidity(now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signed(t testing.TB, s reference.Set, key crypto.Signer) []byte {
	t.Helper()
	out, err := reference.Sign(s, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestASignedSetIsTheSet(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ed25519": signer(1), "ECDSA P-256": p256} {
		t.Run(name, func(t *testing.T) {
			set := lasting(t, capture(t, "good"))
			data := signed(t, set, key)
			got, err := reference.ParseSigned(data, []crypto.PublicKey{signer(2).Public(), key.Public()})
			if err != nil {
				t.Fatal(err)
			}
			id, err := dsse.KeyID(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Marshal(), set.Marshal()) || got.SignedBy() != id || set.SignedBy() != "" {
				t.Errorf("signed by %q, want %q; set\n%s", got.SignedBy(), id, got.Marshal())
			}
			if refusals := got.Check(evidence(t, "good"), now); len(refusals) > 0 {
				t.Errorf("it refuses its boot: %v", refusals)
			}
			shown, claimed, err := reference.UnverifiedSigned(data)
			if err != nil || claimed != id || shown.SignedBy() != "" || shown.Name() != "good" {
				t.Errorf("unverified: %s by %q, %v", shown.Name(), claimed, err)
			}
		})
	}
}

func TestThreat22_SignedSetsAnyChangedByteIsRefused(t *testing.T) {
	key := signer(1)
	data := signed(t, lasting(t, small(t, "")), key)
	for i := range data {
		for _, bit := range []byte{1, 0x20, 0x80} {
			changed := bytes.Clone(data)
			changed[i] ^= bit
			if s, err := reference.ParseSigned(changed, []crypto.PublicKey{key.Public()}); err == nil || s.Name() != "" {
				t.Fatalf("byte %d (%q) changed to %q: accepted", i, data[i], changed[i])
			}
		}
	}
}

func TestThreat22_OnlySetsThatATrustedSignerSignedAreTaken(t *testing.T) {
	key, stranger := signer(1), signer(2)
	trusted := []crypto.PublicKey{key.Public()}
	set := lasting(t, capture(t, "good"))
	envelope := func(payloadType string, payload []byte) []byte {
		out, err := dsse.Sign(payloadType, payload, key, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	good := signed(t, set, key)
	cases := map[string]struct {
		data    []byte
		signers []crypto.PublicKey
		want    string
	}{
		"an unsigned set":                    {set.Marshal(), trusted, "reference.envelope"},
		"an unsigned set in JSON":            {[]byte(`{"name": "good"}`), trusted, "reference.envelope"},
		"nothing":                            {nil, trusted, "reference.envelope"},
		"a stranger's":                       {signed(t, set, stranger), trusted, "reference.signer"},
		"no signer is trusted":               {good, nil, "reference.signer"},
		"a payload put under a signature":    {bytes.Replace(good, []byte(`"payload":"I`), []byte(`"payload":"J`), 1), trusted, "reference.signature"},
		"a signature for an asset tag":       {envelope("application/vnd.keelson.asset-tag.v1+json", set.Marshal()), trusted, "reference.envelope"},
		"a set without an end":               {envelope(reference.PayloadType, capture(t, "good").Marshal()), trusted, "reference.endless"},
		"more bytes than allowed":            {make([]byte, reference.MaxSignedSize+1), trusted, "reference.size"},
		"signed nonsense":                    {envelope(reference.PayloadType, []byte("name: x\nboot: {}\n")), trusted, ""},
		"a signed set in a signed set":       {envelope(reference.PayloadType, good), trusted, ""},
		"an unsigned set after a signed one": {append(bytes.Clone(good), set.Marshal()...), trusted, "reference.envelope"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := reference.ParseSigned(c.data, c.signers)
			if err == nil || s.Name() != "" {
				t.Fatalf("accepted as %q", s.Name())
			}
			got := ""
			if r := nodeclaim.AsRefusals(err); len(r) > 0 {
				got = r[0].Check
			}
			if got != c.want {
				t.Errorf("got %v, want check %q", err, c.want)
			}
		})
	}
	if _, err := reference.ParseSet(good); err == nil || !strings.Contains(err.Error(), "this is a signed set: name who may sign it") {
		t.Errorf("read as an unsigned set: %v", err)
	}
	if _, _, err := reference.UnverifiedSigned(set.Marshal()); err == nil {
		t.Error("an unsigned set was shown as a signed one")
	}
	if _, _, err := reference.UnverifiedSigned(make([]byte, reference.MaxSignedSize+1)); err == nil {
		t.Error("any size was read")
	}
}

func TestThreat22_ASignedSetIsGoodForItsTimeOnly(t *testing.T) {
	key := signer(1)
	s, err := reference.ParseSigned(signed(t, lasting(t, capture(t, "good")), key), []crypto.PublicKey{key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		at   time.Time
		want []string
	}{
		"in its time":        {now, []string{}},
		"before":             {now.Add(-2 * time.Hour), []string{"reference.notyet"}},
		"after":              {now.Add(2 * time.Hour), []string{"reference.expired"}},
		"at an unknown time": {time.Time{}, []string{"reference.time"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.Check(evidence(t, "good"), c.at)
			if !slices.Equal(checks(got), c.want) || !slices.Equal(checks(s.Valid(c.at)), c.want) {
				t.Errorf("check %v, valid %v, want %v", got, s.Valid(c.at), c.want)
			}
		})
	}
	// Old and new side by side: the old one ends, the new one goes on.
	next := edited(t, "good", "name: good\n", "name: next\n")
	if next, err = next.WithValidity(now, now.Add(100*time.Hour)); err != nil {
		t.Fatal(err)
	}
	both, err := reference.NewSets(s, next)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Duration]string{-time.Minute: "good", 0: "good", 2 * time.Hour: "next"} {
		if set, refusals := both.Match(evidence(t, "good"), now.Add(at)); set.Name() != want {
			t.Errorf("after %s: %q, want %q: %v", at, set.Name(), want, refusals)
		}
	}
}

func TestWhatIsNotSigned(t *testing.T) {
	for name, s := range map[string]reference.Set{"no set": {}, "a set without an end": capture(t, "good")} {
		if _, err := reference.Sign(s, signer(1), rand.Reader); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reference.Sign(lasting(t, capture(t, "good")), p384, rand.Reader); err == nil {
		t.Error("signed on P-384")
	}
	if _, err := capture(t, "good").WithValidity(now, now); err == nil {
		t.Error("a set that is never valid")
	}
	again, err := reference.ParseSigned(signed(t, lasting(t, capture(t, "good")), signer(1)), []crypto.PublicKey{signer(1).Public()})
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := again.WithValidity(now, now.Add(time.Hour)); err != nil || changed.SignedBy() != "" {
		t.Errorf("a changed set still says who signed it: %v", err)
	}
}

// FuzzParseSigned: no bytes make it panic, and nothing but the one set that was signed is taken.
func FuzzParseSigned(f *testing.F) {
	key := signer(1)
	good := signed(f, lasting(f, small(f, "")), key)
	f.Add(good)
	f.Add(signed(f, lasting(f, small(f, "")), signer(2)))
	f.Add(capture(f, "good").Marshal())
	f.Add([]byte(`{"payloadType":"` + reference.PayloadType + `","payload":"","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := reference.ParseSigned(data, []crypto.PublicKey{key.Public()})
		if (err == nil) != bytes.Equal(data, good) || (err == nil) != (s.Name() != "") {
			t.Errorf("%q: %q, %v", data, s.Name(), err)
		}
		if shown, _, err := reference.UnverifiedSigned(data); err == nil && shown.SignedBy() != "" {
			t.Errorf("%q: unverified, and says who signed it", data)
		}
	})
}
