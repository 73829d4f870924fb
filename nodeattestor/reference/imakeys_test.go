package reference_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/imatest"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// signedFile is a measured file with an IMA signature over its content.
func signedFile(t *testing.T, by imatest.Signer, path, content string) ima.Entry {
	t.Helper()
	sum := sha256.Sum256([]byte(content))
	return ima.Entry{Path: path, Digest: fmt.Sprintf("sha256:%x", sum), Signature: by.Sign(t, 3, 2, sum[:])}
}

// keyed is a captured set with keys that may sign.
func keyed(t testing.TB, pairs []string, keys ...imatest.Signer) reference.Set {
	t.Helper()
	var text strings.Builder
	text.WriteString("signatureKeys:\n")
	for _, k := range keys {
		text.WriteString("    - |\n      " + strings.ReplaceAll(strings.TrimSpace(string(k.PEM())), "\n", "\n      ") + "\n")
	}
	return edited(t, "good", append([]string{"violations: deny", text.String() + "  violations: deny"}, pairs...)...)
}

func withEntries(ev reference.Evidence, e ...ima.Entry) reference.Evidence {
	res := *ev.IMA
	res.Entries = slices.Concat(res.Entries, e)
	return reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &res}
}

func TestAFileOfASignatureKeyIsAllowed(t *testing.T) {
	vendor, another, stranger := imatest.NewSigner(t), imatest.NewSigner(t), imatest.NewSigner(t)
	ev := evidence(t, "good")
	good := signedFile(t, vendor, "/usr/bin/tool", "tool")
	sum := sha256.Sum256([]byte("tool"))
	changed := good
	changed.Digest = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("evil")))
	verity := good
	verity.Digest = "verity:" + good.Digest
	onVerity := verity
	onVerity.Signature = vendor.Sign(t, 6, 3, sum[:])
	unsigned := good
	unsigned.Signature = nil
	cut := good
	cut.Signature = good.Signature[:20]
	listed := good
	listed.Path = "/init"
	for name, c := range map[string]struct {
		entry ima.Entry
		says  string // "" is accepted
	}{
		"signed":                                {good, ""},
		"signed by another key of the set":      {signedFile(t, another, "/usr/bin/tool", "tool"), ""},
		"an fs-verity digest":                   {onVerity, ""},
		"signed by a key that is not listed":    {signedFile(t, stranger, "/usr/bin/tool", "tool"), "names a key that the set does not have"},
		"another content":                       {changed, "is not one of that key"},
		"an fs-verity digest, signed as a file": {verity, "does not vouch for this kind"},
		"no signature":                          {unsigned, "it has no signature"},
		"a signature that is cut":               {cut, "announces"},
		"another version of a listed file":      {listed, "file /init has digest"},
	} {
		set := keyed(t, nil, vendor, another) // each case's own, for a set remembers what was signed
		got := set.Check(withEntries(ev, c.entry), now)
		if c.says == "" && len(got) != 0 || c.says != "" && (len(got) != 1 || got[0].Check != "ima.file" || !strings.Contains(got[0].Reason, c.says)) {
			t.Errorf("%s: %v, want %q", name, got, c.says)
		}
		plain := capture(t, "good")
		if got := plain.Check(withEntries(ev, c.entry), now); len(got) != 1 {
			t.Errorf("%s: a set without keys: %v", name, got)
		}
	}
}

// TestAFlippedBitOfASignatureAllowsNothing: of a set that has not seen the file signed before.
func TestAFlippedBitOfASignatureAllowsNothing(t *testing.T) {
	vendor := imatest.NewSigner(t)
	ev := evidence(t, "good")
	good := signedFile(t, vendor, "/usr/bin/tool", "tool")
	set := keyed(t, nil, vendor)
	for bit := range len(good.Signature) * 8 {
		bad := good
		bad.Signature = bytes.Clone(good.Signature)
		bad.Signature[bit/8] ^= 1 << (bit % 8)
		if got := set.Check(withEntries(ev, bad), now); len(got) != 1 {
			t.Errorf("bit %d flipped: %v", bit, got)
		}
	}
	if got := set.Check(withEntries(ev, good), now); len(got) != 0 {
		t.Errorf("as it was: %v", got)
	}
}

// TestWhatAKeySignedIsRemembered: that the key signed the digest is then known, whatever signature an entry brings.
func TestWhatAKeySignedIsRemembered(t *testing.T) {
	vendor := imatest.NewSigner(t)
	set, ev := keyed(t, nil, vendor), evidence(t, "good")
	good := signedFile(t, vendor, "/usr/bin/tool", "tool")
	again := good
	again.Path = "/usr/bin/copy"
	again.Signature = bytes.Clone(good.Signature)
	again.Signature[len(again.Signature)-1] ^= 1
	if got := set.Check(withEntries(ev, again), now); len(got) != 1 {
		t.Errorf("before: %v", got)
	}
	if got := set.Check(withEntries(ev, good, again), now); len(got) != 0 {
		t.Errorf("after: %v", got)
	}
	// Which key signed is remembered too: under the name of another key of the set it is another claim.
	other := imatest.NewSigner(t)
	both := keyed(t, nil, vendor, other)
	renamed := good
	renamed.Signature = bytes.Clone(good.Signature)
	copy(renamed.Signature[3:7], signedFile(t, other, "/", "").Signature[3:7])
	if got := both.Check(withEntries(ev, good, renamed), now); len(got) != 1 {
		t.Errorf("under another key's name: %v", got)
	}
}

func TestThreat24_BadSignaturesOfOneListCostLittle(t *testing.T) {
	vendor := imatest.NewSigner(t)
	set, ev := keyed(t, nil, vendor), evidence(t, "good")
	good := signedFile(t, vendor, "/usr/bin/tool", "tool")
	var many []ima.Entry
	for i := range 5000 {
		bad := good
		bad.Path, bad.Digest = fmt.Sprint("/bad/", i), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(fmt.Sprint(i))))
		many = append(many, bad)
	}
	got := set.Check(withEntries(ev, append(many, signedFile(t, vendor, "/late", "late"))...), now)
	if len(got) != 21 || !strings.Contains(got.Error(), "4981 more measurements") {
		t.Errorf("%d refusals: %v", len(got), got[len(got)-1])
	}
	if got := set.Check(withEntries(ev, signedFile(t, vendor, "/late", "late")), now); len(got) != 0 {
		t.Errorf("one list's bad signatures count against another: %v", got)
	}
}

func TestSignatureKeysOfASet(t *testing.T) {
	a, b := imatest.NewSigner(t), imatest.NewSigner(t)
	set := keyed(t, nil, a, b)
	again, err := reference.ParseSet(set.Marshal())
	if err != nil || len(reference.Diff(set, again)) != 0 || !bytes.Equal(again.Marshal(), set.Marshal()) {
		t.Fatalf("%v: %s", err, set.Marshal())
	}
	one := keyed(t, nil, a)
	id := func(s imatest.Signer) string {
		k, err := imasig.ParseKey(s.PEM())
		if err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	if diff := cmp.Diff([]string{"signed files are now allowed, of key " + id(b)}, reference.Diff(one, set)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"signed files are no longer allowed, of key " + id(b)}, reference.Diff(set, one)); diff != "" {
		t.Error(diff)
	}
	if text := strings.Join(set.Describe(), "\n"); !strings.Contains(text, "other files allowed: signed by key "+id(a)) {
		t.Errorf("described as %s", text)
	}
	if _, err := reference.Merge("x", one, set); err == nil || !strings.Contains(err.Error(), "the keys that may sign files") {
		t.Errorf("merged: %v", err)
	}
	if m, err := reference.Merge("x", set, set); err != nil || len(reference.Diff(set, m)) != 0 {
		t.Errorf("merged with itself: %v", err)
	}
}

func TestSignatureKeysThatASetMayNotHave(t *testing.T) {
	a := imatest.NewSigner(t)
	text := string(keyed(t, nil, a).Marshal())
	begin := strings.Index(text, "    - |\n")
	end := strings.Index(text, "  violations:")
	item := text[begin:end]
	for name, c := range map[string]struct{ item, says string }{
		"twice":         {item + item, "is listed twice"},
		"no key":        {"    - nonsense\n", "one PEM block"},
		"too many":      {many(t, 65), "more than the 64"},
		"two in one":    {item + strings.TrimPrefix(item, "    - |\n"), "one PEM block"},
		"not a mapping": {"    - {a: b}\n", "is not a text"},
	} {
		_, err := reference.ParseSet([]byte(text[:begin] + c.item + text[end:]))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func many(t *testing.T, n int) string {
	var out strings.Builder
	for range n {
		out.WriteString("    - |\n      " + strings.ReplaceAll(strings.TrimSpace(string(imatest.NewSigner(t).PEM())), "\n", "\n      ") + "\n")
	}
	return out.String()
}

func TestCaptureLeavesOutWhatAKeySigned(t *testing.T) {
	vendor := imatest.NewSigner(t)
	key, err := imasig.ParseKey(vendor.PEM())
	if err != nil {
		t.Fatal(err)
	}
	half := signedFile(t, vendor, "/half", "signed")
	other := half
	other.Digest, other.Signature = "sha256:"+strings.Repeat("ab", 32), nil
	ev := withEntries(evidence(t, "good"), signedFile(t, vendor, "/signed", "signed"), half, other)
	set, err := reference.Capture("good", ev, key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(set.Marshal())
	if strings.Contains(text, "/signed:") || !strings.Contains(text, "/half:") || !strings.Contains(text, half.Digest) || !strings.Contains(text, "/init:") {
		t.Errorf("captured %s", text)
	}
	if got := set.Check(withEntries(ev, signedFile(t, vendor, "/new", "new")), now); len(got) != 0 {
		t.Errorf("a new file of the key: %v", got)
	}
	plain, err := reference.Capture("good", ev)
	if err != nil || !strings.Contains(string(plain.Marshal()), "/signed:") {
		t.Errorf("without the key: %v", err)
	}
	ev.IMA = nil
	if _, err := reference.Capture("good", ev, key); err == nil || !strings.Contains(err.Error(), "proves none") {
		t.Errorf("without a list: %v", err)
	}
}

// signedEntry is an entry of a list in template ima-sig, or ima-sigv2 for an fs-verity digest.
func signedEntry(path string, sum, signature []byte, verity bool) []byte {
	sized := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	template, alg := "ima-sig", "sha256:\x00"
	if verity {
		template, alg = "ima-sigv2", "verity:sha256:\x00"
	}
	data := slices.Concat(sized(append([]byte(alg), sum...)), sized([]byte(path+"\x00")), sized(signature))
	id := sha1.Sum(data)
	return slices.Concat([]byte{10, 0, 0, 0}, id[:], sized([]byte(template)), sized(data))
}

// TestSignedFilesOfAListAreAllowed goes from the list's bytes to the judgement.
func TestSignedFilesOfAListAreAllowed(t *testing.T) {
	vendor, stranger := imatest.NewSigner(t), imatest.NewSigner(t)
	sum := sha256.Sum256([]byte("tool"))
	for name, c := range map[string]struct {
		entry []byte
		want  int
	}{
		"signed":                {signedEntry("/tool", sum[:], vendor.Sign(t, 3, 2, sum[:]), false), 0},
		"signed, version 3":     {signedEntry("/tool", sum[:], vendor.Sign(t, 3, 3, sum[:]), false), 0},
		"signed, fs-verity":     {signedEntry("/tool", sum[:], vendor.Sign(t, 6, 3, sum[:]), true), 0},
		"signed by a stranger":  {signedEntry("/tool", sum[:], stranger.Sign(t, 3, 2, sum[:]), false), 1},
		"not signed":            {signedEntry("/tool", sum[:], nil, false), 1},
		"fs-verity as the file": {signedEntry("/tool", sum[:], vendor.Sign(t, 3, 2, sum[:]), true), 1},
	} {
		all := sets(t, keyed(t, nil, vendor))
		raw := append(tpmtest.IMAEntry("boot_aggregate", make([]byte, 10*sha256.Size)), c.entry...)
		values := map[int][]byte{}
		for i := range 10 {
			values[i] = make([]byte, sha256.Size)
		}
		pcr := ima.Unverified(raw, nodeclaim.SHA256, ima.Options{})
		values[10] = pcr[len(pcr)-1]
		m := all.Measure()
		r := ima.NewStream(vectors.Quote(t, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: values}), ima.Options{}, m.Add)
		if _, err := r.Write(raw); err != nil {
			t.Fatal(err)
		}
		list, err := r.Finish()
		if err != nil {
			t.Fatal(err)
		}
		ev := evidence(t, "good")
		got := all[0].Check(reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &list, Measured: m}, now)
		if len(got) != c.want {
			t.Errorf("%s: %v, want %d refusals", name, got, c.want)
		}
	}
}

// TestASetJudgesManyListsAtOnce: what a set makes on the way, and what it remembers, is shared by all of them.
func TestASetJudgesManyListsAtOnce(t *testing.T) {
	vendor := imatest.NewSigner(t)
	all := sets(t, keyed(t, nil, vendor))
	ev := evidence(t, "good")
	files := []ima.Entry{signedFile(t, vendor, "/a", "a"), signedFile(t, vendor, "/b", "b")}
	raw, quoted := vectors.Read(t, "good", vectors.IMALog), vectors.Quoted(t, "good")
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			m := all.Measure()
			r := ima.NewStream(quoted, ima.Options{}, m.Add)
			if _, err := r.Write(raw); err != nil {
				t.Error(err)
			}
			list, err := r.Finish()
			if err != nil {
				t.Error(err)
			}
			streamed := all[0].Check(reference.Evidence{Boot: ev.Boot, PCRs: ev.PCRs, IMA: &list, Measured: m}, now)
			kept := all[0].Check(withEntries(ev, files...), now)
			if len(streamed)+len(kept) > 0 {
				t.Errorf("refused: %v, %v", streamed, kept)
			}
		})
	}
	wait.Wait()
}
