package reference

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// imaIndex finds path and digest of an entry among a policy's files with one look-up. It tells which of the
// required paths it is, or notRequired.
type imaIndex struct {
	allowed map[string]int // by ima.Key
	// sums have the same by ima.Sum, for each layout of a template; made when a list has the first entry of that
	// layout. Looking an entry up is mostly waiting for memory, and they take a third of what keys take.
	sums [ima.Layouts]struct {
		once sync.Once
		of   sumTable
	}
	each func(yield func(path, digest string, at int)) // the policy's files and digests
}

const notRequired = -1

func newIMAIndex(p *imaPolicy) *imaIndex {
	required := make(map[string]int, len(p.required))
	for i, file := range p.required {
		required[file] = i
	}
	files := p.files
	x := &imaIndex{allowed: make(map[string]int, len(files)), each: func(yield func(path, digest string, at int)) {
		for file, digests := range files {
			if ima.IsBootAggregate(ima.Entry{Path: file}) {
				continue // judged as such, whatever a set lists
			}
			at := notRequired
			if i, ok := required[file]; ok {
				at = i
			}
			for _, d := range digests {
				yield(file, d, at)
			}
		}
	}}
	x.each(func(file, digest string, at int) {
		if key, ok := ima.Key(file, digest); ok { // a digest that IMA does not write is measured nowhere
			x.allowed[key] = at
		}
	})
	return x
}

// find looks an entry up; it is allowed if ok.
func (x *imaIndex) find(v *ima.View) (at int, ok bool) {
	at, ok = x.allowed[string(v.Key())]
	return at, ok
}

// lookups are how many entries are looked up by their sums at once.
const lookups = 64

// known marks entries that are allowed and not required, so that nothing more need be known of them. It says so
// of none that find does not allow; others it may leave to find. It goes through the entries three times, so that
// no look-up waits for what another one still waits for.
func (x *imaIndex) known(views []ima.View, known *[lookups]bool) {
	var in [lookups]*sumTable
	var from [lookups]uint32
	var head [lookups]uint64
	for i := range views {
		if sum, layout, ok := views[i].Sum(); ok {
			in[i] = x.table(layout)
			from[i] = in[i].starts[in[i].bucket(sum)]
		}
	}
	for i := range views {
		if in[i] != nil {
			head[i] = binary.BigEndian.Uint64(in[i].sums[from[i]][:])
		}
	}
	for i := range views {
		if in[i] != nil {
			sum, _, _ := views[i].Sum()
			// They are in order: where the first is greater, so are all.
			known[i] = head[i] <= binary.BigEndian.Uint64(sum[:]) && in[i].has(sum, from[i])
		}
	}
}

func (x *imaIndex) table(layout ima.Layout) *sumTable {
	s := &x.sums[layout]
	s.once.Do(func() {
		var all [][sha256.Size]byte
		x.each(func(file, digest string, at int) {
			if sum, ok := ima.Sum(file, digest, layout); ok && at == notRequired {
				all = append(all, sum)
			}
		})
		s.of = newSumTable(all)
	})
	return &s.of
}

// sumTable has hashes in their order, and where those begin that have the same first bits. Nothing else is stored, so that
// looking up all of a long list touches as little memory as can be. One more, of ones and in no bucket, ends them.
type sumTable struct {
	shift  int      // what is left of a hash's first 64 bits are those first bits
	starts []uint32 // by first bits
	sums   [][sha256.Size]byte
}

func newSumTable(sums [][sha256.Size]byte) sumTable {
	slices.SortFunc(sums, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	width := bits.Len(uint(len(sums)))
	t := sumTable{shift: 64 - width, starts: make([]uint32, 1<<width+1), sums: append(sums, [sha256.Size]byte(bytes.Repeat([]byte{0xFF}, sha256.Size)))}
	for i := range sums {
		t.starts[t.bucket(&sums[i])+1]++
	}
	for i := 1; i < len(t.starts); i++ {
		t.starts[i] += t.starts[i-1]
	}
	return t
}

// bucket is a hash's first bits.
func (t *sumTable) bucket(sum *[sha256.Size]byte) uint64 {
	return binary.BigEndian.Uint64(sum[:]) >> t.shift
}

// has looks for a hash in its bucket, from where that starts.
func (t *sumTable) has(sum *[sha256.Size]byte, from uint32) bool {
	return slices.Contains(t.sums[from:t.starts[t.bucket(sum)+1]], *sum)
}
