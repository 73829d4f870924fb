package verify_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// claimsOf is one more attestation of a node; what was seen is kept as the server does.
func claimsOf(t testing.TB, b *bench, k *kept) (notes []string, err error) {
	t.Helper()
	c, r := b.beginAgain(t, k.earlier)
	bound := must(b.named(t, c, r).Bind(verify.Known{}))(t)
	a := must(bound.Read(nil, b.feed(t, 100_000)))(t).Finish(now)
	k.state, k.ok = a.State, true
	return a.Claims.Notes, a.Err
}

// withoutIMA makes the policy one that asks for no IMA log.
func (b *bench) withoutIMA(t testing.TB) {
	t.Helper()
	text, _, _ := bytes.Cut(b.policy.References[0].Marshal(), []byte("\nima:"))
	b.policy.References = must(reference.NewSets(must(reference.ParseSet(append(text, '\n')))(t)))(t)
	b.policy.IMA = false
}

func TestThreat10_ResetCountersAreJudged(t *testing.T) {
	for _, withIMA := range []bool{true, false} {
		b := newBench(t)
		if !withIMA {
			b.withoutIMA(t)
		}
		k := &kept{}
		step := func(what string, want ...string) {
			t.Helper()
			notes, err := claimsOf(t, b, k)
			if err != nil || !slices.Equal(notes, want) {
				t.Errorf("%s: %v, notes %q, want %q", what, err, notes, want)
			}
		}
		b.reboots, b.resumes = 10, 10
		step("the first time")
		step("the same boot")
		b.reboots, b.resumes = 11, 0
		step("a reboot")
		b.resumes = 1
		step("a resume")
		b.reboots = 14
		step("reboots in between", "the TPM was reset 3 times since the last attestation")
		k.state = k.state.Seen() // another configuration
		b.resumes = 0
		_, err := claimsOf(t, b, k)
		wantCheck(t, err, "counters.restart")
		step("once it was told")
		b.reboots = 2
		_, err = claimsOf(t, b, k)
		wantCheck(t, err, "counters.reset")
		step("once it was told")
		if k.state.Size() > 1000 {
			t.Errorf("a state takes %d bytes", k.state.Size())
		}
		b.ak = must(tpmtest.NewSoftAK())(t)
		b.payload.AKPublic = b.ak.Public()
		b.reboots = 0
		step("another AK", "the node has a new attestation key since its last attestation")
		k.ok = false
		b.reboots = 7
		step("a server that knows nothing")
	}
}

// TestThreat10_ARefusalForgetsNoCounters: whoever has the node refused for something else, and the TPM reset and cleared
// then, is found out.
func TestThreat10_ARefusalForgetsNoCounters(t *testing.T) {
	b, k := newBench(t), &kept{}
	b.reboots = 5
	if _, err := claimsOf(t, b, k); err != nil {
		t.Fatal(err)
	}
	good, values := b.list, b.values
	b.measure(tpmtest.IMAEntry("/tmp/evil", []byte("evil")))
	_, err := claimsOf(t, b, k)
	wantCheck(t, err, "ima.file")
	b.list, b.values, b.reboots = good, values, 1
	_, err = claimsOf(t, b, k)
	wantCheck(t, err, "counters.reset")
}
