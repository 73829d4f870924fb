package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// demand adds a condition to the bench's reference set.
func (b *bench) demand(t testing.TB, expr string) {
	t.Helper()
	text := bytes.Replace(b.policy.References[0].Marshal(), []byte("boot:\n"), []byte("conditions: [{expr: '"+expr+"', message: m}]\nboot:\n"), 1)
	b.policy.References = must(reference.NewSets(must(reference.ParseSet(text))(t)))(t)
}

func TestConditionsSeeTheTPMsMakerAndMeasuredPaths(t *testing.T) {
	for expr, want := range map[string]string{
		`tpm.vendor == "KELS" && tpm.manufacturer == "id:4B454C53"`: "",
		`tpm.vendor == "IFX"`:                              "does not hold",
		`"/bin/probe" in ima.paths && !secureBoot.enabled`: "",
		`!("country" in tag)`:                              "does not prove tag (no asset tag was verified)",
	} {
		b := newBench(t)
		b.demand(t, expr)
		a := b.appraise(t, 1000)
		switch {
		case want == "" && a.Err != nil:
			t.Errorf("%s: %v", expr, a.Err)
		case want != "" && (a.Outcome() != verify.Untrusted || a.Refusals[0].Check != "reference.condition" || !strings.Contains(a.Err.Error(), want)):
			t.Errorf("%s: %s: %v", expr, a.Outcome(), a.Err)
		}
	}
}

// TestConditionsOverPathsHoldWhenOnlyWhatIsNewWasRead: a server that remembers a list remembers its
// paths.
func TestConditionsOverPathsHoldWhenOnlyWhatIsNewWasRead(t *testing.T) {
	b, k := newBench(t), &kept{}
	b.demand(t, `"/bin/probe" in ima.paths`)
	for i := range 3 {
		a, _ := b.attest(t, k)
		if a.Err != nil || a.Resumed != (i > 0) {
			t.Errorf("attestation %d: %v, resumed %t", i, a.Err, a.Resumed)
		}
	}
}

func TestThreat22_ConditionsThatNoNodeCanMeetAreRefusedAtTheStart(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		expr   string
		change func(*verify.Policy)
		want   string
	}{
		"a tag that nobody signs": {`tag["country"] == "DE"`, func(*verify.Policy) {}, "a condition over the asset tag, but nobody may sign one"},
		"a tag that somebody signs": {`tag["country"] == "DE"`, func(p *verify.Policy) {
			p.Tag = verify.TagPolicy{Signers: []crypto.PublicKey{pub}, Index: assettag.DefaultIndex}
		}, ""},
		"a maker that no list says":     {`tpm.vendor == "IFX"`, func(p *verify.Policy) { p.Anchors.Mode = ek.Inventory }, "mode inventory looks at no EK certificate"},
		"a maker that certificates say": {`tpm.model == "x"`, func(*verify.Policy) {}, ""},
	} {
		b := newBench(t)
		b.demand(t, c.expr)
		c.change(&b.policy)
		err := b.policy.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if len(nodeclaim.AsRefusals(err)) > 0 {
			t.Errorf("%s: a refusal", name)
		}
	}
}
