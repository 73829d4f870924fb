package ima_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
)

// bookOf has the entries of a list, or every second one.
func bookOf(entries []ima.Entry, step int) *ima.Book {
	return ima.NewBook(func(yield func(string, string, int32)) {
		for i := 0; i < len(entries); i += step {
			yield(entries[i].Path, entries[i].Digest, int32(i))
		}
	})
}

// recalled replays a list of which a book knows entries, and keeps them; n is how many were not
// hashed.
func recalled(pcrs quote.PCRs, raw []byte, opt ima.Options, piece int, books ...*ima.Book) (res ima.Result, n int, err error) {
	var entries []ima.Entry
	r := ima.NewStream(pcrs, opt, func(views []ima.View) {
		for i := range views {
			entries = append(entries, views[i].Entry())
			if views[i].Recalled() {
				n++
			}
		}
	}).Recall(func(views []ima.View) {
		var found [ima.Lookups]int32
		for _, b := range books {
			b.Find(views, &found)
		}
	})
	for len(raw) > 0 && err == nil {
		size := min(piece, len(raw))
		_, err = r.Write(raw[:size])
		raw = raw[size:]
	}
	if err == nil {
		res, err = r.Finish()
	}
	if err != nil {
		return ima.Result{}, n, err
	}
	res.Entries = entries
	return res, n, nil
}

// TestABookSavesHashingAndChangesNothing: what a book knows an entry to hash to is what it hashes
// to, in each template, in each bank.
func TestABookSavesHashingAndChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		list *list
		opt  ima.Options
		want int // entries that need not be hashed
	}{
		"SHA-256":             {every(nodeclaim.SHA256), ima.Options{}, 9},
		"SHA-384 and SHA-256": {every(nodeclaim.SHA384, nodeclaim.SHA256), ima.Options{}, 9},
		"SHA-1 and SHA-256":   {every(nodeclaim.SHA1, nodeclaim.SHA256), ima.Options{}, 9},
		"padded":              {padded(), ima.Options{PaddedSHA1: true}, 2},
	} {
		pcrs := c.list.quoted(t)
		want, err := replay(pcrs, c.list.raw, c.opt)
		if err != nil {
			t.Fatal(err)
		}
		all := bookOf(want.Entries, 1)
		for _, piece := range []int{1, 7, 100, len(c.list.raw)} {
			for what, books := range map[string][]*ima.Book{"all": {all}, "half": {bookOf(want.Entries, 2)}, "none": {bookOf(nil, 1)}, "several": {bookOf(nil, 1), bookOf(want.Entries, 2), all}} {
				got, n, err := recalled(pcrs, c.list.raw, c.opt, piece, books...)
				if err != nil || cmp.Diff(want, got) != "" {
					t.Errorf("%s, a book of %s, pieces of %d: %v\n%s", name, what, piece, err, cmp.Diff(want, got))
				}
				if (what == "all" || what == "several") && n != c.want || what == "none" && n > 0 {
					t.Errorf("%s, a book of %s: %d entries were not hashed, want %d", name, what, n, c.want)
				}
			}
		}
	}
}

// TestABookBelievesNoFlippedBit: a list that a book knows is refused wherever it is without one,
// for the same reason, and proves the same where it is not.
func TestABookBelievesNoFlippedBit(t *testing.T) {
	l := every(nodeclaim.SHA256)
	pcrs := l.quoted(t)
	good, err := replay(pcrs, l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	book := bookOf(good.Entries, 1)
	for bit := range 8 * len(l.raw) {
		changed := bytes.Clone(l.raw)
		changed[bit/8] ^= 1 << (bit % 8)
		want, wantErr := replay(pcrs, changed, ima.Options{})
		got, _, gotErr := recalled(pcrs, changed, ima.Options{}, len(changed), book)
		if fmt.Sprint(wantErr) != fmt.Sprint(gotErr) || wantErr == nil && cmp.Diff(want, got) != "" {
			t.Fatalf("bit %d of byte %d flipped: %v with a book, %v without\n%s", bit%8, bit/8, gotErr, wantErr, cmp.Diff(want, got))
		}
	}
}

// TestABookOfAnySizeFindsWhatItHasAndNothingElse has books of few and of many, and views of both
// sides of a batch.
func TestABookOfAnySizeFindsWhatItHasAndNothingElse(t *testing.T) {
	digest := func(i int) string { return fmt.Sprintf("sha256:%064x", i+1) }
	path := func(i int) string { return fmt.Sprint("/usr/bin/", i) }
	for _, n := range []int{0, 1, 2, 3, 63, 64, 65, 1000, 50_000} {
		book := ima.NewBook(func(yield func(string, string, int32)) {
			for i := range n {
				yield(path(i), digest(i), int32(i))
			}
		})
		for from := 0; from < n+100; from += ima.Lookups / 2 {
			var views []ima.View
			for i := from; i < from+ima.Lookups/2; i++ {
				views = append(views, ima.Entry{Path: path(i), Digest: digest(i)}.View(), ima.Entry{Path: path(i), Digest: digest(i + 1)}.View())
			}
			var found [ima.Lookups]int32
			book.Find(views, &found)
			for i := range views {
				want := int32(ima.Missing)
				if at := from + i/2; i%2 == 0 && at < n {
					want = int32(at)
				}
				if found[i] != want {
					t.Fatalf("a book of %d: %s is %d, want %d", n, views[i].Path, found[i], want)
				}
			}
		}
	}
}

// TestWhatComesAfterTheQuotedValueIsNotLookedAt: entries beyond it may be in the same batch,
// changed or cut, and mean nothing.
func TestWhatComesAfterTheQuotedValueIsNotLookedAt(t *testing.T) {
	l := newList(nodeclaim.SHA256)
	for i := range 30 {
		l.file(fmt.Sprint("/f", i), fmt.Sprint(i))
	}
	pcrs, end := l.quoted(t), len(l.raw)
	for i := range 50 {
		l.file(fmt.Sprint("/g", i), fmt.Sprint(i))
	}
	want, err := replay(pcrs, l.raw[:end], ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tail := range map[string][]byte{"whole": l.raw[end:], "cut": l.raw[end : end+50], "nonsense": bytes.Repeat([]byte{0xFF}, 500),
		"changed": append(bytes.Clone(l.raw[end:end+30]), bytes.Repeat([]byte{1}, 300)...)} {
		for _, piece := range []int{1, 999, 1 << 20} {
			got, _, err := recalled(pcrs, append(bytes.Clone(l.raw[:end]), tail...), ima.Options{}, piece, bookOf(want.Entries, 1))
			want.Unproven = int64(len(tail))
			if err != nil || cmp.Diff(want, got) != "" {
				t.Errorf("%s, pieces of %d: %v\n%s", name, piece, err, cmp.Diff(want, got))
			}
		}
	}
}

// TestSeveralReplaysUseOneBookAtOnce: the first of them makes what the others wait for.
func TestSeveralReplaysUseOneBookAtOnce(t *testing.T) {
	l := every(nodeclaim.SHA256)
	pcrs := l.quoted(t)
	want, err := replay(pcrs, l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	book := bookOf(want.Entries, 1)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if got, n, err := recalled(pcrs, l.raw, ima.Options{}, 100, book); err != nil || n != 9 || cmp.Diff(want, got) != "" {
				t.Errorf("%d entries were not hashed, %v", n, err)
			}
		})
	}
	wait.Wait()
}
