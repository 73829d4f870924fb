package ima

import (
	"bytes"
	"cmp"
	"crypto/sha1" //nolint:gosec // the list's format has it; what proves is the bank
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Book has entries that are expected and knows what each of them hashes to, so that a list of them
// is read without hashing them: an entry whose every byte is known need not be hashed to know its
// hash. A book is never changed once it is made, and several replays may use it at once.
type Book struct {
	seed  maphash.Seed
	shift int // what is left of a key's hash are the bits that starts goes by
	// starts tells by the first bits of a key's hash where the marks of such keys begin; marks are
	// in the order of hashes.
	starts []uint32
	marks  []mark
	// pages have the keys in the order that they were put in, for what is near in a file system is
	// measured together: before each its value and its size (4 bytes each, little-endian).
	pages []byte
	// sums are in the same order, for each layout of a template; made when a list has the first
	// entry of that layout.
	sums [Layouts]struct {
		once sync.Once
		of   atomic.Pointer[[]sums]
	}
}

// mark is one key of a book.
type mark struct {
	hash uint32 // the last bits of its hash
	at   uint32 // where it stands in pages
	nth  uint32 // its number
}

const pageHead = 8

// sums is what an entry's template data hash to. One fills a line of a processor's cache.
type sums struct {
	sha256 [sha256.Size]byte
	sha1   [sha1.Size]byte
	_      [12]byte
}

// Lookups is how many entries a book looks up at once. It goes through them several times, so that
// no look-up waits for memory that another one still waits for.
const Lookups = batch

// Missing is what a book says of an entry that it does not have.
const Missing = -1 << 31

// NewBook makes a book of paths and digests, each with a value that Find returns. What IMA cannot
// have written is left out.
func NewBook(each func(yield func(path, digest string, value int32))) *Book {
	b := &Book{seed: maphash.MakeSeed()}
	var hashes []uint64 // by number
	each(func(path, digest string, value int32) {
		key, ok := Key(path, digest)
		if !ok {
			return
		}
		h, at := maphash.String(b.seed, key), uint32(len(b.pages))                            //nolint:gosec // a set's file is bounded.
		b.marks = append(b.marks, mark{hash: uint32(h), at: at, nth: uint32(len(hashes))})    //nolint:gosec // as above.
		b.pages = binary.LittleEndian.AppendUint32(b.pages, uint32(value))                    //nolint:gosec // it is read as it was.
		b.pages = append(binary.LittleEndian.AppendUint32(b.pages, uint32(len(key))), key...) //nolint:gosec // as above.
		hashes = append(hashes, h)
	})
	slices.SortFunc(b.marks, func(m, n mark) int { return cmp.Compare(hashes[m.nth], hashes[n.nth]) })
	width := bits.Len(uint(len(b.marks)))
	b.shift, b.starts = 64-width, make([]uint32, 1<<width+1)
	for _, h := range hashes {
		b.starts[h>>b.shift+1]++
	}
	for i := 1; i < len(b.starts); i++ {
		b.starts[i] += b.starts[i-1]
	}
	return b
}

// key is the key of a mark.
func (b *Book) key(m mark) []byte {
	size := binary.LittleEndian.Uint32(b.pages[m.at+4:])
	return b.pages[m.at+pageHead:][:size]
}

// Find looks up at most Lookups entries. found gets the value of each, or Missing. A replay that
// has these views does not hash those that were found, where path and digest are all that they
// hold.
func (b *Book) Find(views []View, found *[Lookups]int32) {
	var hashes [Lookups]uint64
	var from [Lookups]uint32
	for i := range views {
		if key := views[i].key; key != nil {
			hashes[i] = maphash.Bytes(b.seed, key)
			from[i] = b.starts[hashes[i]>>b.shift]
		}
	}
	for i := range views {
		if views[i].key != nil {
			from[i] = b.next(hashes[i], from[i])
		}
	}
	b.fetch(views, &from, found)
	for i := range views {
		found[i] = Missing
		if v := &views[i]; v.key != nil {
			if at := b.match(v.key, hashes[i], from[i]); at >= 0 {
				m := b.marks[at]
				found[i] = int32(binary.LittleEndian.Uint32(b.pages[m.at:])) //nolint:gosec // it is as it was.
				b.recall(v, m.nth)
			}
		}
	}
}

// fetch has the processor load what comparing the entries will need, all of it at once. What it
// writes to loaded means nothing.
func (b *Book) fetch(views []View, from *[Lookups]uint32, loaded *[Lookups]int32) {
	const line = 64
	for i := range views {
		v := &views[i]
		if v.key == nil || int(from[i]) >= len(b.marks) {
			continue
		}
		m := &b.marks[from[i]]
		page := b.pages[m.at:]
		last := min(len(page), pageHead+len(v.key)) - 1
		loaded[i] = int32(page[0]) + int32(page[min(line, last)]) + int32(page[last])
		if s := b.sums[v.layout].of.Load(); s != nil {
			loaded[i] += int32((*s)[m.nth].sha1[0])
		}
	}
}

// next is the first mark from one on that a hash may have; the number of marks where there is none.
func (b *Book) next(hash uint64, from uint32) uint32 {
	for end := b.starts[hash>>b.shift+1]; from < end; from++ {
		if b.marks[from].hash == uint32(hash) { //nolint:gosec // its last bits.
			return from
		}
	}
	return uint32(len(b.marks)) //nolint:gosec // as above.
}

// match is the mark that has exactly this key, -1 where none does.
func (b *Book) match(key []byte, hash uint64, from uint32) int {
	for ; int(from) < len(b.marks); from = b.next(hash, from+1) {
		if bytes.Equal(b.key(b.marks[from]), key) {
			return int(from)
		}
	}
	return -1
}

// recall tells the replay what the entry hashes to, where its key and layout are all that its
// template data hold.
func (b *Book) recall(v *View, nth uint32) {
	if v.legacy || v.more || len(v.Signature) > 0 {
		return
	}
	s := &b.sums[v.layout]
	s.once.Do(func() { s.of.Store(b.hash(v.layout)) })
	v.recalled = &(*s.of.Load())[nth]
}

// hash is what each key hashes to in a layout.
func (b *Book) hash(layout Layout) *[]sums {
	out := make([]sums, len(b.marks))
	var data []byte
	for _, m := range b.marks {
		data = appendData(data[:0], b.key(m), layout)
		out[m.nth] = sums{sha256: sha256.Sum256(data), sha1: sha1.Sum(data)} //nolint:gosec // as above.
	}
	return &out
}

// appendData appends the template data of an entry that has a key, and nothing after it. A key has
// the digest with its NUL, the name's length, and the name with its NUL; the digest's own length
// stands before it, and in a typed layout its type.
func appendData(to, key []byte, layout Layout) []byte {
	kind := ""
	if layout.typed() && !bytes.HasPrefix(key, []byte(verityType)) {
		kind = imaType
	}
	head := bytes.IndexByte(key, 0)
	alg := bytes.TrimPrefix(key[:head-1], []byte(verityType))
	size := len(kind) + head + 1 + digestSize(alg)
	to = binary.LittleEndian.AppendUint32(to, uint32(size)) //nolint:gosec // names of algorithms and digests are short.
	to = append(append(to, kind...), key...)
	if layout.extra() {
		to = append(to, make([]byte, fieldLength)...)
	}
	return to
}
