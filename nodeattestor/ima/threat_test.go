package ima_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

func says(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("reason %v does not say %q", err, text)
	}
}

func TestThreat11_TailDroppedIsRefused(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a").file("/evil", "evil")
	for _, end := range l.ends[:2] {
		_, err := replay(l.quoted(t), l.raw[:end], ima.Options{})
		refusedFor(t, err, "ima.pcr")
		says(t, err, "dropped from the end")
	}
	_, err := replay(l.quoted(t), nil, ima.Options{})
	refusedFor(t, err, "ima.pcr")
	says(t, err, "the list is empty")
	_, err = replay(l.quoted(t), l.raw[:l.ends[2]-1], ima.Options{})
	refusedFor(t, err, "ima.format")
	says(t, err, "was cut")
	raw, quoted := vectors.Read(t, "ima-payload-b", vectors.IMALog), vectors.Quoted(t, "ima-payload-b")
	for n := range len(raw) {
		if _, err := replay(quoted, raw[:n], ima.Options{}); err == nil {
			t.Fatalf("a list cut to %d bytes was accepted", n)
		}
	}
}

func TestThreat11_TrimmedOrReadFromAnOffsetIsRefused(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a").file("/b", "b")
	_, err := replay(l.quoted(t), l.raw[l.ends[0]:], ima.Options{})
	refusedFor(t, err, "ima.trimmed")
	says(t, err, "beginning of the list is missing")
}

func TestThreat11_RewoundOrForeignIsRefused(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	rebooted := newList(nodeclaim.SHA256)
	rebooted.values[nodeclaim.SHA256][4] = bytes.Repeat([]byte{1}, 32) // another boot loader
	_, err := replay(rebooted.quoted(t), l.raw, ima.Options{})
	refusedFor(t, err, "ima.aggregate")
	says(t, err, "of another boot")
	_, err = replay(vectors.Quoted(t, "cmdline"), vectors.Read(t, "good", vectors.IMALog), ima.Options{})
	refusedFor(t, err, "ima.aggregate")
}

func TestThreat11_EntriesAfterTheQuoteCountForNothing(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a")
	quoted := l.quoted(t)
	for name, more := range map[string][]byte{
		"entries of a list that grew": newList(nodeclaim.SHA256).file("/later", "x").raw,
		"garbage":                     bytes.Repeat([]byte{0xFF}, 100),
	} {
		r := ima.NewReplayer(quoted, ima.Options{})
		if _, err := r.Write(append(bytes.Clone(l.raw), more...)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := r.Write(more); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		res, err := r.Finish()
		if err != nil || len(res.Entries) != 2 || res.Unproven != int64(2*len(more)) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
}

func TestThreat11_ViolationsAreCountedAndTheirDataBelievedNothing(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a").violation("/etc/passwd").file("/b", "b")
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil || res.Violations != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	want := ima.Entry{Index: 2, Path: "/etc/passwd", Violation: true}
	if diff := cmp.Diff(want, res.Entries[2]); diff != "" {
		t.Errorf("violation (-want +got):\n%s", diff)
	}
	// An entry cannot be passed off as a violation, nor a violation as an entry.
	clean := newList(nodeclaim.SHA256).file("/evil", "evil")
	hidden := bytes.Clone(clean.raw)
	copy(hidden[clean.ends[0]+4:], make([]byte, 20))
	_, err = replay(clean.quoted(t), hidden, ima.Options{})
	refusedFor(t, err, "ima.pcr")
	shown := bytes.Clone(l.raw)
	shown[l.ends[1]+4] = 1
	_, err = replay(l.quoted(t), shown, ima.Options{})
	refusedFor(t, err, "ima.entry")
}

func TestThreat11_PCR10MustBeQuoted(t *testing.T) {
	l := newList(nodeclaim.SHA256)
	delete(l.values[nodeclaim.SHA256], 10)
	_, err := replay(l.quoted(t), l.raw, ima.Options{})
	refusedFor(t, err, "ima.unquoted")
}

func TestThreat11_APCR10OfZerosProvesNoEntry(t *testing.T) {
	l := emptyList(nodeclaim.SHA256)
	res, err := replay(l.quoted(t), newList(nodeclaim.SHA256).raw, ima.Options{})
	if err != nil || len(res.Entries) != 0 || res.Unproven == 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestFlippedBitsOfAListAreRefusedOrChangeNothing(t *testing.T) {
	raw, quoted := vectors.Read(t, "good", vectors.IMALog), vectors.Quoted(t, "good")
	want, err := replay(quoted, raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(raw) * 8 {
		raw[bit/8] ^= 1 << (bit % 8)
		got, err := replay(quoted, raw, ima.Options{})
		if err == nil && !cmp.Equal(want, got) {
			t.Fatalf("with bit %d of byte %d flipped:\n%s", bit%8, bit/8, cmp.Diff(want, got))
		}
		raw[bit/8] ^= 1 << (bit % 8)
	}
}

func TestThreat09_LimitsOfAList(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a").file("/b", "b")
	quoted := l.quoted(t)
	_, err := replay(quoted, l.raw, ima.Options{Limits: ima.Limits{Entry: 1000, Entries: 2, Total: 1 << 20}})
	refusedFor(t, err, "ima.limit")
	says(t, err, "more than the 2 entries allowed")
	_, err = replay(quoted, l.raw, ima.Options{Limits: ima.Limits{Entry: 1000, Entries: 100, Total: 100}})
	refusedFor(t, err, "ima.limit")
	says(t, err, "more than the 100 bytes allowed")
	_, err = replay(quoted, l.raw, ima.Options{Limits: ima.Limits{Entry: 10, Entries: 100, Total: 1 << 20}})
	refusedFor(t, err, "ima.format")

	// Bytes after the quote are bounded too: a node cannot keep us reading.
	r := ima.NewReplayer(quoted, ima.Options{Limits: ima.Limits{Entry: 1000, Entries: 100, Total: 5000}})
	var more error
	for i := 0; i < 100 && more == nil; i++ {
		_, more = r.Write(l.raw)
	}
	refusedFor(t, more, "ima.limit")
	if _, err := r.Finish(); !errors.Is(err, more) {
		t.Errorf("after an error the list was accepted: %v", err)
	}
	if _, err := r.Write(nil); err == nil || r.Reached() {
		t.Error("a replayer goes on after an error")
	}
}

func TestUnverifiedAndInspectSayWhatIsWrongWithAList(t *testing.T) {
	l := newList(nodeclaim.SHA256).file("/a", "a").violation("/b")
	values := ima.Unverified(l.raw, nodeclaim.SHA256, ima.Options{})
	if len(values) != 4 || !bytes.Equal(values[3], l.values[nodeclaim.SHA256][10]) {
		t.Errorf("%d values", len(values))
	}
	if n := len(ima.Unverified(append(bytes.Clone(l.raw), 1, 2), nodeclaim.SHA256, ima.Options{})); n != 4 {
		t.Errorf("%d values of a list that is cut", n)
	}
	if got, ok := ima.ClaimedAggregate(l.raw, ima.Options{}); !ok || got != "sha256:"+strings.TrimPrefix(got, "sha256:") {
		t.Errorf("claimed aggregate %q", got)
	}
	if _, ok := ima.ClaimedAggregate(nil, ima.Options{}); ok {
		t.Error("an empty list claims an aggregate")
	}
	if err := ima.Inspect(l.raw, ima.Options{}); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(l.raw)
	changed[l.ends[1]-3] ^= 1
	refusedFor(t, ima.Inspect(changed, ima.Options{}), "ima.entry")
	refusedFor(t, ima.Inspect(l.raw[:len(l.raw)-1], ima.Options{}), "ima.format")
	refusedFor(t, ima.Inspect(l.raw[l.ends[0]:], ima.Options{}), "ima.trimmed")
	refusedFor(t, ima.Inspect(bytes.Repeat([]byte{0xFF}, 50), ima.Options{}), "ima.format")
	refusedFor(t, ima.Inspect(l.raw, ima.Options{Limits: ima.Limits{Entry: 1000, Entries: 1, Total: 1}}), "ima.limit")
}

// FuzzReplay: no list makes the replayer panic, none but the true one reaches a quote, and chunks
// change nothing.
func FuzzReplay(f *testing.F) {
	for _, name := range vectors.Boots() {
		f.Add(vectors.Read(f, name, vectors.IMALog), uint16(50))
	}
	f.Add(newList(nodeclaim.SHA256).violation("/b").raw, uint16(1))
	f.Add(realDirect(f), uint16(3))
	digest := bytes.Repeat([]byte{7}, 32)
	f.Add(newList(nodeclaim.SHA256).ng("ima-modsig", "/m.ko", "sha256", digest, nil, nil, nil).ng("d-ngv2|n-ng|iuid|igid", "memfd:x", "ima:sha256", digest, digest[:4], digest[:4]).
		file("boot_aggregate", "x").raw, uint16(7))
	quoted := vectors.Quoted(f, "good")
	want, err := replay(quoted, vectors.Read(f, "good", vectors.IMALog), ima.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, chunk uint16) {
		whole, err := replay(quoted, raw, ima.Options{})
		if err == nil && !cmp.Equal(want.Entries, whole.Entries) {
			t.Errorf("another list reaches the quote of good: %+v", whole)
		}
		size := int(chunk) + 1
		r := ima.NewReplayer(quoted, ima.Options{})
		for rest := raw; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := r.Write(rest[:min(size, len(rest))]); err != nil {
				break
			}
		}
		parts, perr := r.Finish()
		if (err == nil) != (perr == nil) || !cmp.Equal(whole, parts) {
			t.Errorf("whole: %v, in chunks of %d: %v", err, size, perr)
		}
		ima.Unverified(raw, nodeclaim.SHA256, ima.Options{})
		if err := ima.Inspect(raw, ima.Options{}); err != nil && len(nodeclaim.AsRefusals(err)) != 1 {
			t.Errorf("no refusal: %v", err)
		}
	})
}
