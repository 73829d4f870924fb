package ima_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// realDirect is the list of a Debian 6.1 kernel on which uid 1000 mapped a file that it had opened with O_DIRECT: its last
// entry. IMA had started before the TPM's driver, so that its boot_aggregate is zeros.
func realDirect(t testing.TB) []byte {
	raw, err := os.ReadFile("testdata/debian-6.1-o_direct.list")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// proven is a list whose PCR 10 is what it leads to.
func proven(t testing.TB, raw []byte) *list {
	l := newList(nodeclaim.SHA256)
	l.raw = raw
	values := ima.Unverified(raw, nodeclaim.SHA256, ima.Options{})
	l.values[nodeclaim.SHA256][10] = values[len(values)-1]
	return l
}

// legacy appends an entry of template "ima".
func (l *list) legacy(name string, sum []byte) *list {
	hashed := append(append(bytes.Clone(sum), name...), make([]byte, 256-len(name))...)
	return l.entry("ima", append(bytes.Clone(sum), field([]byte(name))...), hashed, false)
}

func TestAFileThatTheKernelCouldNotHashIsAnEntryOfUnknownContent(t *testing.T) {
	zeros := func(n int) []byte { return make([]byte, n) }
	first := newList(nodeclaim.SHA256)
	real := realDirect(t)[106:] // without the boot_aggregate of a kernel that found no TPM
	for name, c := range map[string]struct {
		list *list
		path string
	}{
		"a real kernel's": {proven(t, slices.Concat(first.raw, real)), "/mnt/pod/direct.bin"},
		"ima-ng":          {newList(nodeclaim.SHA256).ng("ima-ng", "/x", "sha256", zeros(32)), "/x"},
		"SHA-1":           {newList(nodeclaim.SHA256).ng("ima-ng", "/x", "sha1", zeros(20)), "/x"},
		"SHA-512":         {newList(nodeclaim.SHA256).ng("ima-sig", "/x", "sha512", zeros(64), []byte("signature")), "/x"},
		"fs-verity":       {newList(nodeclaim.SHA256).ng("ima-sigv2", "/x", "verity:sha256", zeros(32), nil), "/x"},
		"ima-ngv2":        {newList(nodeclaim.SHA256).ng("ima-ngv2", "/x", "ima:sha256", zeros(32)), "/x"},
		"ima-buf":         {newList(nodeclaim.SHA256).ng("ima-buf", "/x", "sha256", zeros(32), []byte("buffer")), "/x"},
		"ima":             {newList(nodeclaim.SHA256).legacy("/x", zeros(20)), "/x"},
		"a bare name":     {newList(nodeclaim.SHA256).ng("ima-ng", "boot_aggregate", "sha256", zeros(32)), "boot_aggregate"},
	} {
		res, err := replay(c.list.quoted(t), c.list.raw, ima.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e := res.Entries[len(res.Entries)-1]
		if !e.Unknown || e.Violation || e.Path != c.path || e.Digest != "" || e.Signature != nil || ima.IsBootAggregate(e) {
			t.Errorf("%s: %+v", name, e)
		}
		v := e.View()
		if alg, _, _ := v.Digest(); alg != nil || v.Key() != nil || !v.Unknown {
			t.Errorf("%s: a view with a key", name)
		}
		if res.Violations != 0 {
			t.Errorf("%s: counted as a violation", name)
		}
	}
	if _, ok := ima.Key("/x", "sha256:"+strings.Repeat("0", 64)); ok {
		t.Error("a list can name a digest of zeros")
	}
}

func TestAnEntryOfUnknownContentIsCoveredAsAnyOther(t *testing.T) {
	l := newList(nodeclaim.SHA256).ng("ima-ng", "/x", "sha256", make([]byte, 32)).file("/y", "y")
	quoted := l.quoted(t)
	want, err := replay(quoted, l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.raw {
		for bit := range 8 {
			changed := bytes.Clone(l.raw)
			changed[i] ^= 1 << bit
			got, err := replay(quoted, changed, ima.Options{})
			if err == nil && !slices.EqualFunc(want.Entries, got.Entries, func(a, b ima.Entry) bool {
				return a.Path == b.Path && a.Digest == b.Digest && a.Unknown == b.Unknown && a.Violation == b.Violation
			}) {
				t.Fatalf("bit %d of byte %d flipped: %+v", bit, i, got.Entries)
			}
		}
	}
	for _, end := range l.ends[:2] { // withheld
		_, err := replay(quoted, l.raw[:end], ima.Options{})
		refusedFor(t, err, "ima.pcr")
	}
}

func TestOnlyTheFirstEntryIsBootAggregateByRight(t *testing.T) {
	aggregate := sha256.Sum256(make([]byte, 10*32))
	l := newList(nodeclaim.SHA256).file("boot_aggregate", "a file of that name").violation("boot_aggregate").
		file("/boot_aggregate", "x").ng("ima-ng", "boot_aggregate", "md5", make([]byte, 16)).
		ng("ima-ng", "boot_aggregate", "sha512", bytes.Repeat([]byte{1}, 64)).
		ng("ima-sig", "boot_aggregate", "sha256", aggregate[:], nil)
	for range 40 {
		l.file("boot_aggregate", strings.Repeat("x", len(l.raw)))
	}
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range res.Entries {
		if is := i == 0 || i == 6; ima.IsBootAggregate(e) != is {
			t.Errorf("entry %d is boot_aggregate: %v, want %v (%+v)", i, !is, is, e)
		}
		if v := e.View(); v.IsBootAggregate() != ima.IsBootAggregate(e) {
			t.Errorf("entry %d: its view differs", i)
		}
	}
	if !res.Entries[1].NamedOnly || res.Entries[3].NamedOnly || res.Entries[6].NamedOnly {
		t.Errorf("%+v", res.Entries[:7])
	}
}

func TestALaterBootAggregateThatTheFirstOneHasIsOneToo(t *testing.T) {
	l := extendedSince()
	sum := sha256.Sum256(make([]byte, 10*32))
	l.ng("ima-sig", "boot_aggregate", "sha256", sum[:], nil)
	r := ima.NewReplayer(l.quoted(t), ima.Options{})
	if _, err := r.Write(l.raw); err != nil {
		t.Fatal(err)
	}
	r.Booted(zeros)
	res, err := r.Finish()
	if err != nil || !ima.IsBootAggregate(res.Entries[2]) {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestNamesThatAnybodyCanChooseAreRead(t *testing.T) {
	sum := sha256.Sum256(nil)
	l := newList(nodeclaim.SHA256)
	names := []string{"memfd:runc_cloned:/proc/self/exe", "a\nb", "/x/\x1b[2J", "\xff\xfe", "sha256:", "ima:", strings.Repeat("n", 255), "#123_(deleted)", ".", "/"}
	for _, n := range names {
		l.ng("ima-ng", n, "sha256", sum[:])
	}
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		if res.Entries[i+1].Path != n {
			t.Errorf("%q became %q", n, res.Entries[i+1].Path)
		}
	}
}

func TestTheDigestOfAViolationIsNotLookedAt(t *testing.T) {
	// As kernels write it: with ima_hash, with SHA-1 before 6.10, by d-ngv2, or without an algorithm.
	for _, digest := range []string{"sha512:\x00" + strings.Repeat("\x00", 64), "sha1:\x00" + strings.Repeat("\x00", 20),
		"ima:sha1:\x00" + strings.Repeat("\x00", 20), strings.Repeat("\x00", 20), ""} {
		data := append(field([]byte(digest)), field([]byte("/v\x00"))...)
		l := newList(nodeclaim.SHA256).entry("ima-ng", field(data), data, true)
		res, err := replay(l.quoted(t), l.raw, ima.Options{})
		if err != nil || !res.Entries[1].Violation || res.Entries[1].Path != "/v" {
			t.Errorf("%q: %+v, %v", digest, res, err)
		}
	}
}

func TestTemplatesWithADigestAndANameFirstAreRead(t *testing.T) {
	sum := sha256.Sum256([]byte("content"))
	const plain, typed = "sha256", "ima:sha256"
	for _, c := range []struct {
		template, alg string
		extra         int
	}{
		{"ima-modsig", plain, 3}, {"evm-sig", plain, 7}, {"ima-ngv2", typed, 0}, {"ima-sigv2", typed, 1},
		{"d-ng|n-ng|iuid|igid|imode", plain, 3}, {"d-ngv2|n-ng|sig|buf", typed, 2}, {"ima-next", plain, 0}, {"ima-next", typed, 30},
	} {
		extra := make([][]byte, c.extra)
		if c.extra > 0 {
			extra[0] = []byte("signature")
		}
		l := newList(nodeclaim.SHA256).ng(c.template, "/lib/modules/x.ko", c.alg, sum[:], extra...)
		quoted := l.quoted(t)
		res, err := replay(quoted, l.raw, ima.Options{})
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		e := res.Entries[1]
		if e.Path != "/lib/modules/x.ko" || e.Digest != "sha256:"+hexOf(sum[:]) || c.extra > 0 && string(e.Signature) != "signature" {
			t.Errorf("%s: %+v", c.template, e)
		}
		for i := l.ends[0]; i < len(l.raw); i++ {
			for bit := range 8 {
				changed := bytes.Clone(l.raw)
				changed[i] ^= 1 << bit
				if got, err := replay(quoted, changed, ima.Options{}); err == nil && (got.Entries[1].Path != e.Path || got.Entries[1].Digest != e.Digest) {
					t.Fatalf("%s: bit %d of byte %d flipped: %+v", c.template, bit, i, got.Entries[1])
				}
			}
		}
	}
}

// TestABookKnowsNoMoreThanDigestNameAndOneEmptyField: what it has of an entry's hash has nothing else in it.
func TestABookKnowsNoMoreThanDigestNameAndOneEmptyField(t *testing.T) {
	sum := sha256.Sum256([]byte("content"))
	l := newList(nodeclaim.SHA256).ng("ima-modsig", "/x", "sha256", sum[:], nil, nil, nil)
	book := ima.NewBook(func(yield func(string, string, int32)) { yield("/x", fmt.Sprintf("sha256:%x", sum), 1) })
	found := [ima.Lookups]int32{}
	r := ima.NewStream(l.quoted(t), ima.Options{}, func(views []ima.View) {
		if views[len(views)-1].Recalled() || found[len(views)-1] != 1 {
			t.Error("an entry with more fields is not hashed, or not found")
		}
	}).Recall(func(views []ima.View) { book.Find(views, &found) })
	if _, err := r.Write(l.raw); err != nil {
		t.Fatal(err)
	}
}

func TestAHashThatIsNotKnownIsAFilesThatNoSetHas(t *testing.T) {
	l := newList(nodeclaim.SHA256).ng("ima-ng", "/x", "blake2b-256", bytes.Repeat([]byte{7}, 32)).ng("ima-ng", "/y", "md4", bytes.Repeat([]byte{7}, 16))
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil || res.Entries[1].Digest != "blake2b-256:"+strings.Repeat("07", 32) || res.Entries[2].Digest != "md4:"+strings.Repeat("07", 16) {
		t.Errorf("%+v, %v", res.Entries, err)
	}
	if _, ok := ima.Key("/x", "blake2b-256:"+strings.Repeat("07", 32)); ok {
		t.Error("it can be listed")
	}
}
