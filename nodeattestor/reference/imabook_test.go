package reference_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// measured is a list of files on a machine whose other PCRs are zero, and its replay both ways: entries kept, which are
// hashed and looked up then, and streamed to the sets, which look them up first so that they need not be hashed.
func measured(t *testing.T, sets reference.Sets, files ...string) (kept, streamed reference.Evidence) {
	t.Helper()
	aggregate := tpmtest.IMAEntry("boot_aggregate", make([]byte, 10*sha256.Size))
	raw := aggregate
	for _, f := range files {
		raw = append(raw, tpmtest.IMAEntry(f, []byte(f))...)
	}
	values := map[int][]byte{}
	for i := range 10 {
		values[i] = make([]byte, sha256.Size)
	}
	pcr := ima.Unverified(raw, nodeclaim.SHA256, ima.Options{})
	values[10] = pcr[len(pcr)-1]
	quoted := vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: values})
	m := sets.Measure()
	stream := ima.NewStream(quoted, ima.Options{}, m.Add).Recall(m.Recall)
	keeper := ima.NewReplayer(quoted, ima.Options{})
	for _, r := range []*ima.Replayer{stream, keeper} {
		for rest := range slices.Chunk(raw, 777) {
			if _, err := r.Write(rest); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := keeper.Finish()
	if err != nil {
		t.Fatal(err)
	}
	short, err := stream.Finish()
	if err != nil {
		t.Fatal(err)
	}
	boot := evidence(t, "good")
	return reference.Evidence{Boot: boot.Boot, PCRs: boot.PCRs, IMA: &list}, reference.Evidence{Boot: boot.Boot, PCRs: boot.PCRs, IMA: &short, Measured: m}
}

// allowing is the set of boot good that allows files, all required ones among them.
func allowing(t *testing.T, files, required []string) reference.Set {
	t.Helper()
	text, _, _ := bytes.Cut(capture(t, "good").Marshal(), []byte("\nima:"))
	out := bytes.NewBuffer(text)
	out.WriteString("\nima:\n  files:\n    /never: []\n")
	for _, f := range files {
		fmt.Fprintf(out, "    %q: ['sha256:%x', 'sha256:%s']\n", f, sha256.Sum256([]byte(f)), strings.Repeat("0", 63)+"1")
	}
	for i, f := range required {
		if i == 0 {
			out.WriteString("  required:\n")
		}
		fmt.Fprintf(out, "    - %q\n", f)
	}
	s, err := reference.ParseSet(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnEntryIsFoundBeforeOrAfterItIsHashedAlike(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 7, 64, 65, 1000} {
		var files []string
		for i := range n {
			files = append(files, path.Join("/bin", fmt.Sprint(i)))
		}
		required := files[:min(n, 3)]
		all := sets(t, allowing(t, files, required))
		for name, list := range map[string][]string{
			"all of them":          files,
			"twice":                slices.Concat(files, files),
			"nothing":              nil,
			"one more":             append(slices.Clone(files), "/bin/evil"),
			"one that is never":    append(slices.Clone(files), "/never"),
			"not what it requires": files[min(n, 1):],
		} {
			kept, streamed := measured(t, all, list...)
			want, got := all[0].Check(kept, now), all[0].Check(streamed, now)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d files, %s (-kept +streamed):\n%s", n, name, diff)
			}
			good := name == "all of them" || name == "twice" || n == 0 && name != "one more" && name != "one that is never"
			if good != (len(got) == 0) {
				t.Errorf("%d files, %s: %v", n, name, got)
			}
		}
	}
}

// TestDigestsAreOfTheirPathsAlone: each digest is allowed under some path, but not under that one.
func TestDigestsAreOfTheirPathsAlone(t *testing.T) {
	digest := func(i int) string {
		return fmt.Sprintf("sha256:%x", sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i))))
	}
	text, _, _ := bytes.Cut(capture(t, "good").Marshal(), []byte("\nima:"))
	out := bytes.NewBuffer(text)
	out.WriteString("\nima:\n  files:\n")
	const n = 300
	for i := range n {
		fmt.Fprintf(out, "    /f%d: ['%s']\n", i, digest(i))
	}
	s, err := reference.ParseSet(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence(t, "good")
	for i := range n {
		res := *ev.IMA
		res.Entries = []ima.Entry{res.Entries[0], {Index: 1, Path: fmt.Sprint("/f", i), Digest: digest((i + 1) % n)}}
		if r := s.Check(reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &res}, now); len(r) != 1 || r[0].Check != "ima.file" {
			t.Errorf("file %d under another's digest: %v", i, r)
		}
	}
}
