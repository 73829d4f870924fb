package reference_test

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/imatest"
)

// BenchmarkSignedFiles judges a list of 10,000 files that a key of the set signed and that it does not list: the first time,
// when each signature is verified, and later, when the set remembers them. One operation is the list.
func BenchmarkSignedFiles(b *testing.B) {
	vendor := imatest.NewSigner(b)
	views := []ima.View{{}} // boot_aggregate, which nobody looks at
	for i := range 10_000 {
		sum := sha256.Sum256([]byte(fmt.Sprint(i)))
		e := ima.Entry{Index: i + 1, Path: fmt.Sprint("/usr/lib/", i), Digest: fmt.Sprintf("sha256:%x", sum), Signature: vendor.Sign(b, 3, 2, sum[:])}
		views = append(views, e.View())
	}
	judge := func(s reference.Sets) {
		m := s.Measure()
		m.Add(views)
	}
	fresh := func() reference.Sets {
		s, err := reference.NewSets(keyed(b, nil, vendor))
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s := fresh()
			b.StartTimer()
			judge(s)
		}
	})
	b.Run("later", func(b *testing.B) {
		s := fresh()
		judge(s)
		for b.Loop() {
			judge(s)
		}
	})
}
