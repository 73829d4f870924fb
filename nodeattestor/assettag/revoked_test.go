package assettag_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
)

func TestRevokedTagsAreRefusedUnderEveryEKOfTheirMachine(t *testing.T) {
	m := newMachine(t)
	d := document() // serial 5, EK A
	d.EKHashes = append(d.EKHashes, ekB.String())
	signed := m.issue(t, d)
	for name, c := range map[string]struct {
		revoked assettag.Revocations
		check   string
	}{
		"nothing is revoked":             {nil, ""},
		"this serial":                    {assettag.Revocations{ekA: {Serial: 5, Reason: "moved"}}, "tag.revoked"},
		"this serial and later ones":     {assettag.Revocations{ekA: {Serial: 9, Reason: "moved"}}, "tag.revoked"},
		"under the machine's other EK":   {assettag.Revocations{ekB: {Serial: 5, Reason: "moved"}}, "tag.revoked"},
		"only earlier ones":              {assettag.Revocations{ekA: {Serial: 4, Reason: "moved"}}, ""},
		"tags of a machine not this one": {assettag.Revocations{{9}: {Serial: 5, Reason: "moved"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			want := m.expected()
			want.Revoked = c.revoked
			tag, err := assettag.Verify(m.evidence(t, signed), want)
			if c.check == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, c.check)
			if !strings.Contains(err.Error(), "moved") || !tag.IsZero() {
				t.Errorf("error %q does not give the reason, or the tag has content", err)
			}
		})
	}
}

func TestRevocationsAreMadeWrittenAndRead(t *testing.T) {
	r := assettag.Revocations{ekB: {Serial: 2, Reason: "stolen"}}
	d := document()
	d.EKHashes = append(d.EKHashes, ekB.String())
	if err := r.Revoke(d, " moved\n"); err != nil {
		t.Fatal(err)
	}
	d.Serial = 1
	if err := r.Revoke(d, "older"); err != nil {
		t.Fatal(err)
	}
	want := assettag.Revocations{ekA: {Serial: 5, Reason: "moved"}, ekB: {Serial: 5, Reason: "moved"}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	data, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := assettag.ParseRevocations(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	for name, reason := range map[string]string{"no reason": " ", "too long a reason": strings.Repeat("x", 300)} {
		if err := r.Revoke(d, reason); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestWrongListsOfRevokedTagsAreRefused(t *testing.T) {
	hash := ekA.String()
	for name, c := range map[string]struct{ text, says string }{
		"nothing":             {"", "revoked: []"},
		"only a comment":      {"# none\n", "revoked: []"},
		"no list":             {"revoked: many\n", "line 1"},
		"an unknown key":      {"revoked: []\nmore: 1\n", "more"},
		"a repeated key":      {"revoked: []\nrevoked: []\n", "already"},
		"an entry's own key":  {"revoked:\n- {ekHash: " + hash + ", serial: 1, reason: r, until: never}\n", "until"},
		"a hash that is none": {"revoked:\n- {ekHash: ABC, serial: 1, reason: r}\n", "entry 1"},
		"an EK twice":         {"revoked:\n- {ekHash: " + hash + ", serial: 1, reason: r}\n- {ekHash: " + hash + ", serial: 2, reason: r}\n", "entry 2: EK hash " + hash + " stands twice"},
		"no serial":           {"revoked:\n- {ekHash: " + hash + ", reason: r}\n", "serial"},
		"a negative serial":   {"revoked:\n- {ekHash: " + hash + ", serial: -1, reason: r}\n", "-1"},
		"no reason":           {"revoked:\n- {ekHash: " + hash + ", serial: 1}\n", "reason"},
		"two documents":       {"revoked: []\n---\nrevoked: []\n", "one YAML document"},
		"too much":            {strings.Repeat("#", assettag.MaxRevocationsSize+1), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := assettag.ParseRevocations([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want an error that says %q", got, err, c.says)
			}
		})
	}
}

func FuzzParseRevocations(f *testing.F) {
	f.Add([]byte("revoked:\n- {ekHash: " + ekA.String() + ", serial: 3, reason: moved}\n"))
	f.Add([]byte("revoked: []\n"))
	f.Add([]byte("revoked: &a\n- *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := assettag.ParseRevocations(data)
		if err != nil {
			return
		}
		once, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := assettag.ParseRevocations(once)
		if err != nil {
			t.Fatalf("%q: %v", once, err)
		}
		twice, err := again.Marshal()
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%q reads as %q (%v)", once, twice, err)
		}
	})
}

// What a person is shown must bear no verified look: Unverified reads anything well formed.
func TestOpenNeedsASignerAndUnverifiedNone(t *testing.T) {
	m, stranger := newMachine(t), newMachine(t)
	signed := stranger.issue(t, document())
	if _, err := assettag.Open(signed, m.expected().Signers); err == nil {
		t.Error("a stranger's document was opened")
	}
	if d, err := assettag.Open(signed, stranger.expected().Signers); err != nil || d.Serial != 5 {
		t.Errorf("serial %d, %v", d.Serial, err)
	}
	id, err := assettag.KeyID(stranger.signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	if d, keyID, err := assettag.Unverified(signed); err != nil || d.Serial != 5 || keyID != id {
		t.Errorf("serial %d, key %s, %v", d.Serial, keyID, err)
	}
	for name, data := range map[string][]byte{"nothing": nil, "too much": make([]byte, assettag.MaxDocumentSize+1), "no envelope": []byte("{}")} {
		if _, err := assettag.Open(data, m.expected().Signers); err == nil {
			t.Errorf("%s was opened", name)
		}
		if _, _, err := assettag.Unverified(data); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}
