package ima_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// every is a list with an entry of each template, signed and not.
func every(banks ...nodeclaim.HashAlg) *list {
	long := bytes.Repeat([]byte("0123456789abcdef"), 4)
	l := newList(banks...)
	legacy := append(append(bytes.Repeat([]byte{7}, 20), 2, 0, 0, 0), "/o"...)
	l.entry("ima", legacy, append(append(bytes.Repeat([]byte{7}, 20), "/o"...), make([]byte, 254)...), false)
	return l.ng("ima-ng", "/a", "sha256", long[:32]).ng("ima-ng", "/a", "sha512", long).ng("ima-ng", "/a", "sha1", long[:20]).violation("/v").
		ng("ima-sig", "/b", "sha256", long[:32], nil).ng("ima-sig", "/b", "sha256", long[:32], []byte("signature")).
		ng("ima-buf", "/c", "sha256", long[:32], []byte("content")).ng("ima-ngv2", "/d", "ima:sha384", long[:48]).
		ng("ima-ngv2", "/d", "verity:sha256", long[:32]).ng("ima-sigv2", "/d", "ima:sha256", long[:32], nil).
		ng("ima-sigv2", "/d", "verity:sha512", long, nil).ng("ima-sigv2", "/d", "verity:sha256", long[:32], []byte("signature"))
}

// TestKeyStandsForPathAndDigest: what a visitor may look an entry up by is what an allow-list makes of the texts.
func TestKeyStandsForPathAndDigest(t *testing.T) {
	l := every(nodeclaim.SHA256)
	seen := 0
	r := ima.NewStream(l.quoted(t), ima.Options{}, func(views []ima.View) {
		for i := range views {
			v := &views[i]
			e := v.Entry()
			seen++
			if e.Violation {
				if v.Key() != nil || e.Digest != "" {
					t.Errorf("a violation has a key: %+v", e)
				}
				continue
			}
			if key, ok := ima.Key(e.Path, e.Digest); !ok || key != string(v.Key()) {
				t.Errorf("%s %s has key %x, Key makes %x", e.Path, e.Digest, v.Key(), key)
			}
			again := e.View()
			if diff := cmp.Diff(e, again.Entry()); diff != "" || !bytes.Equal(again.Key(), v.Key()) {
				t.Errorf("an entry's own view differs: %s", diff)
			}
		}
	})
	if _, err := r.Write(l.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(); err != nil || seen != len(l.ends) {
		t.Errorf("%d entries seen of %d: %v", seen, len(l.ends), err)
	}
}

// padded is a list of an old kernel.
func padded() *list {
	l := emptyList(nodeclaim.SHA1, nodeclaim.SHA256)
	l.padded = true
	for alg := range l.values {
		for i := range l.values[alg] {
			l.values[alg][i] = make([]byte, alg.Size())
		}
	}
	h := nodeclaim.SHA1.New()
	h.Write(make([]byte, 8*20))
	return l.ng("ima-ng", "boot_aggregate", "sha1", h.Sum(nil)).file("/a", "a")
}

func TestNoKeyOfWhatIMACannotHaveWritten(t *testing.T) {
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	for _, digest := range []string{"", ":", "sha256", "sha256:", "sha256:00", "sha256:" + sum[2:], "sha512:" + sum, "crc32:00000000", "verity:verity:sha256:" + sum, "ima:sha256:" + sum, "verity:" + sum} {
		if key, ok := ima.Key("/a", digest); ok {
			t.Errorf("digest %q has key %x", digest, key)
		}
		v := ima.Entry{Path: "/a", Digest: digest}.View()
		if v.Key() != nil {
			t.Errorf("an entry of digest %q has key %x", digest, v.Key())
		}
	}
}

// TestPiecesOfAnySizeAreTheWholeList has entries shorter and longer than what is added to one that arrives in pieces.
func TestPiecesOfAnySizeAreTheWholeList(t *testing.T) {
	l := every(nodeclaim.SHA256)
	for i := range 100 {
		l.ng("ima-sig", fmt.Sprint("/", i), "sha256", binary.LittleEndian.AppendUint64(make([]byte, 24), uint64(i+1)), make([]byte, 12*i))
	}
	want, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	after := []byte("bytes that no quote covers")
	raw := append(bytes.Clone(l.raw), after...)
	for _, size := range []int{1, 2, 3, 100, 511, 512, 513, 1023, 1025, 4096, 20000, len(raw) - 1, len(raw)} {
		var got []ima.Entry
		r := ima.NewStream(l.quoted(t), ima.Options{}, func(v []ima.View) { got = keep(got, v) })
		for rest := raw; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := r.Write(bytes.Clone(rest[:min(size, len(rest))])); err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
		}
		res, err := r.Finish()
		if err != nil || res.Count != len(want.Entries) || res.Unproven != int64(len(after)) {
			t.Fatalf("pieces of %d: %+v, %v", size, res, err)
		}
		if diff := cmp.Diff(want.Entries, got); diff != "" {
			t.Errorf("pieces of %d (-whole +pieces):\n%s", size, diff)
		}
		if s, ok := r.State(thisBoot); !ok || s.Offset() != uint64(len(l.raw)) {
			t.Errorf("pieces of %d: the state ends at %d of %d", size, s.Offset(), len(l.raw))
		}
	}
}

// FuzzKey: no two pairs of path and digest share a key, and a book tells them apart.
func FuzzKey(f *testing.F) {
	f.Add("/a", []byte("0123456789abcdef0123456789abcdef"), "/b", []byte("0123456789abcdef0123"), false)
	f.Add("/a", []byte("0123456789abcdef0123456789abcdef"), "/a", []byte("0123456789abcdef0123456789abcdef"), true)
	f.Fuzz(func(t *testing.T, path1 string, sum1 []byte, path2 string, sum2 []byte, verity bool) {
		names := map[int]string{20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
		d1, d2 := fmt.Sprintf("%s:%x", names[len(sum1)], sum1), fmt.Sprintf("%s:%x", names[len(sum2)], sum2)
		if verity {
			d2 = "verity:" + d2
		}
		k1, ok1 := ima.Key(path1, d1)
		k2, ok2 := ima.Key(path2, d2)
		if same := path1 == path2 && d1 == d2; ok1 && ok2 && (k1 == k2) != same {
			t.Errorf("%q %s and %q %s: keys %x and %x", path1, d1, path2, d2, k1, k2)
		}
		var found [ima.Lookups]int32
		book := ima.NewBook(func(yield func(string, string, int32)) { yield(path1, d1, 7) })
		book.Find([]ima.View{ima.Entry{Path: path2, Digest: d2}.View()}, &found)
		if want := ok1 && ok2 && k1 == k2; want != (found[0] == 7) || !want && found[0] != ima.Missing {
			t.Errorf("a book with %q %s has %d for %q %s", path1, d1, found[0], path2, d2)
		}
	})
}

func TestABufferOfTheKernelIsToldByItsContent(t *testing.T) {
	content := []byte("measure func=BPRM_CHECK\n")
	sum, wide, old := sha256.Sum256(content), sha512.Sum512(content), sha1.Sum(content)
	for name, c := range map[string]struct {
		digest string
		third  []byte
		want   bool
	}{
		"its digest is of its content": {fmt.Sprintf("sha256:%x", sum), content, true},
		"with SHA-512":                 {fmt.Sprintf("sha512:%x", wide), content, true},
		"with SHA-1":                   {fmt.Sprintf("sha1:%x", old), content, true},
		"a file's signature":           {fmt.Sprintf("sha256:%x", sum), []byte{3, 2, 4}, false},
		"no third field":               {fmt.Sprintf("sha256:%x", sum), nil, false},
		"an empty third field":         {"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", []byte{}, false},
		"fs-verity's":                  {fmt.Sprintf("verity:sha256:%x", sum), content, false},
		"by another algorithm":         {fmt.Sprintf("sm3-256:%x", sum), content, false},
		"no digest":                    {"", content, false},
	} {
		v := ima.Entry{Path: "ima_policy_loaded", Digest: c.digest, Signature: c.third}.View()
		if v.Buffer() != c.want {
			t.Errorf("%s: %t", name, !c.want)
		}
	}
	violation := ima.Entry{Path: "ima_policy_loaded", Violation: true}.View()
	if violation.Buffer() {
		t.Error("a violation says what it holds")
	}
}
