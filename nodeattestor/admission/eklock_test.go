package admission

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func TestThreat07_OneServerBindsAnEKToOneNodeAtATime(t *testing.T) {
	var c EKLock
	rsa, ecc, other := nodeclaim.EKHash{1}, nodeclaim.EKHash{2}, nodeclaim.EKHash{3}
	hold := func(node string, eks ...nodeclaim.EKHash) func() {
		t.Helper()
		release, err := c.Hold(eks, node)
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	first := hold("fra-1", rsa, ecc)
	second := hold("fra-1", ecc) // the same machine attests again meanwhile
	third := hold("fra-2", other)
	for _, eks := range [][]nodeclaim.EKHash{{ecc}, {rsa}, {nodeclaim.EKHash{4}, rsa}} {
		if _, err := c.Hold(eks, "fra-2"); !errors.Is(err, ErrClaimed) {
			t.Errorf("EKs %v: %v, want ErrClaimed", eks, err)
		}
	}
	first()
	if _, err := c.Hold([]nodeclaim.EKHash{ecc}, "fra-2"); !errors.Is(err, ErrClaimed) {
		t.Errorf("one of two attestations ended: %v, want ErrClaimed", err)
	}
	hold("fra-2", rsa)()
	second()
	hold("fra-2", ecc, nodeclaim.EKHash{4})()
	third()
	if len(c.byEK) > 0 {
		t.Errorf("%d claims are left", len(c.byEK))
	}
}

func TestThreat07_OfManyAtOnceOneNodeHoldsTheEK(t *testing.T) {
	var c EKLock
	var holders [2]atomic.Int32
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 200 {
				release, err := c.Hold([]nodeclaim.EKHash{{1}}, []string{"fra-1", "fra-2"}[i%2])
				if err != nil {
					continue
				}
				holders[i%2].Add(1)
				if holders[1-i%2].Load() > 0 {
					t.Error("two nodes hold one EK")
				}
				holders[i%2].Add(-1)
				release()
			}
		})
	}
	wg.Wait()
}
