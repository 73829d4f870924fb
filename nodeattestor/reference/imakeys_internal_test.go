package reference

import (
	"encoding/binary"
	"testing"
)

func TestWhatIsRememberedOfSignaturesIsBounded(t *testing.T) {
	c := newVouched()
	sum := func(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 24), uint64(i)) }
	has := func(i int) bool { return c.has(1, []byte("sha256"), sum(i), false) }
	for i := range 3 * maxVouched {
		c.add(1, []byte("sha256"), sum(i), false)
		if i%1000 == 0 && !has(0) {
			t.Fatalf("what is asked for again and again is forgotten after %d others", i)
		}
	}
	if n := len(c.newer) + len(c.old); n > 2*maxVouched {
		t.Errorf("%d are remembered, more than %d", n, 2*maxVouched)
	}
	if has(1) || !has(3*maxVouched-1) {
		t.Error("the oldest is remembered, or the latest is not")
	}
	for name, other := range map[string]bool{
		"another key":    c.has(2, []byte("sha256"), sum(0), false),
		"another digest": c.has(1, []byte("sha512"), sum(0), false),
		"fs-verity":      c.has(1, []byte("sha256"), sum(0), true),
	} {
		if other {
			t.Errorf("%s is taken for the same", name)
		}
	}
	// A half's worth is remembered however often it is gone through.
	for range 3 {
		for i := range maxVouched {
			c.add(1, []byte("sha256"), sum(-i), false)
		}
	}
	for i := range maxVouched {
		if !has(-i) {
			t.Fatalf("number %d of a half is forgotten", i)
		}
	}
}
