package ima_test

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// extendedSince is a list whose boot_aggregate was computed before user space extended PCR 0.
func extendedSince() *list {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	digest := sha256.Sum256([]byte("os-separator"))
	v := sha256.Sum256(slices.Concat(l.values[nodeclaim.SHA256][0], digest[:]))
	l.values[nodeclaim.SHA256][0] = v[:]
	return l
}

// zeros are PCRs that nothing was extended into.
func zeros(alg nodeclaim.HashAlg, _ int) ([]byte, bool) { return make([]byte, alg.Size()), true }

func TestABootAggregateOfBeforeUserSpaceMustBeExplained(t *testing.T) {
	l := extendedSince()
	stream := func() *ima.Replayer {
		r := ima.NewStream(l.quoted(t), ima.Options{}, func([]ima.View) {})
		if _, err := r.Write(l.raw); err != nil {
			t.Fatal(err)
		}
		if !r.Doubtful() || !r.Reached() {
			t.Fatalf("doubtful %v, reached %v", r.Doubtful(), r.Reached())
		}
		if _, ok := r.State(thisBoot); ok {
			t.Error("a state of a list that is in doubt")
		}
		return r
	}
	r := stream()
	_, err := r.Finish()
	refusedFor(t, err, "ima.aggregate")

	r = stream()
	r.Booted(l.quoted(t).Value) // explains nothing
	_, err = r.Finish()
	refusedFor(t, err, "ima.aggregate")

	r = stream()
	r.Booted(func(nodeclaim.HashAlg, int) ([]byte, bool) { return nil, false })
	_, err = r.Finish()
	refusedFor(t, err, "ima.aggregate")

	r = stream()
	r.Booted(zeros)
	res, err := r.Finish()
	s, ok := r.State(thisBoot)
	if err != nil || res.Count != 2 || !ok {
		t.Fatalf("%+v, %v, state %v", res, err, ok)
	}
	// Whoever goes on from there has to explain it again.
	again, ok := ima.Resume(s, thisBoot, l.quoted(t), ima.Options{}, nil)
	if !ok || !again.Doubtful() {
		t.Fatalf("resumed %v, doubtful %v", ok, again.Doubtful())
	}
	_, err = again.Finish()
	refusedFor(t, err, "ima.aggregate")
	again, _ = ima.Resume(s, thisBoot, l.quoted(t), ima.Options{}, nil)
	again.Booted(zeros)
	if _, err := again.Finish(); err != nil {
		t.Error(err)
	}
}
