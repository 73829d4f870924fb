package ima_test

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/test/vectors"
)

// list builds a measurement list and the PCR 10 that it leads to, on a machine whose other PCRs are zero.
type list struct {
	raw    []byte
	ends   []int // where each entry ends
	values map[nodeclaim.HashAlg]map[int][]byte
	padded bool
}

// newList begins with the boot_aggregate that PCRs of zeros give.
func newList(banks ...nodeclaim.HashAlg) *list {
	l := emptyList(banks...)
	sum := sha256.Sum256(make([]byte, 10*32))
	return l.ng("ima-ng", "boot_aggregate", "sha256", sum[:])
}

func emptyList(banks ...nodeclaim.HashAlg) *list {
	l := &list{values: map[nodeclaim.HashAlg]map[int][]byte{}}
	for _, b := range banks {
		l.values[b] = map[int][]byte{}
		for i := range 11 {
			l.values[b][i] = make([]byte, b.Size())
		}
	}
	return l
}

func field(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// ng appends an entry of the newer templates; extra are the fields after the name.
func (l *list) ng(template, name, alg string, sum []byte, extra ...[]byte) *list {
	data := append(field(append([]byte(alg+":\x00"), sum...)), field([]byte(name+"\x00"))...)
	for _, e := range extra {
		data = append(data, field(e)...)
	}
	return l.entry(template, field(data), data, false)
}

// file is a file with content, measured by ima-ng.
func (l *list) file(name, content string) *list {
	sum := sha256.Sum256([]byte(content))
	return l.ng("ima-ng", name, "sha256", sum[:])
}

// entry appends data as they stand in the list, extending the hash of hashed.
func (l *list) entry(template string, written, hashed []byte, violation bool) *list {
	recorded := sha1.Sum(hashed)
	if violation {
		recorded = [20]byte{}
	}
	l.raw = binary.LittleEndian.AppendUint32(l.raw, 10)
	l.raw = append(append(l.raw, recorded[:]...), field([]byte(template))...)
	l.raw = append(l.raw, written...)
	l.ends = append(l.ends, len(l.raw))
	for b, v := range l.values {
		d := b.New()
		d.Write(hashed)
		digest := d.Sum(nil)
		switch {
		case violation:
			digest = bytes.Repeat([]byte{0xFF}, b.Size())
		case l.padded:
			digest = append(recorded[:], make([]byte, b.Size()-20)...)
		}
		h := b.New()
		h.Write(v[10])
		h.Write(digest)
		v[10] = h.Sum(nil)
	}
	return l
}

func (l *list) violation(name string) *list {
	data := append(field(append([]byte("sha256:\x00"), make([]byte, 32)...)), field([]byte(name+"\x00"))...)
	return l.entry("ima-ng", field(data), data, true)
}

func (l *list) quoted(t testing.TB) quote.PCRs { return vectors.Quote(t, l.values) }

func replay(pcrs quote.PCRs, raw []byte, opt ima.Options) (ima.Result, error) {
	r := ima.NewReplayer(pcrs, opt)
	if _, err := r.Write(raw); err != nil {
		return ima.Result{}, err
	}
	return r.Finish()
}

func refusedFor(t testing.TB, err error, check string) {
	t.Helper()
	if r := nodeclaim.AsRefusals(err); len(r) != 1 || r[0].Check != check {
		t.Errorf("got %v, want a refusal for %s", err, check)
	}
}

func TestMeasuredBootsReplayToTheirQuotes(t *testing.T) {
	for _, name := range vectors.Boots() {
		t.Run(name, func(t *testing.T) {
			raw, quoted := vectors.Read(t, name, vectors.IMALog), vectors.Quoted(t, name)
			want := vectors.Expect(t, path.Join("measured-boots", name))
			whole, err := replay(quoted, raw, ima.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(whole.Entries) != want.IMAEntries || whole.Violations != 0 || whole.Unproven != 0 || whole.Weak {
				t.Errorf("result: %d entries, %d violations, %d unproven, weak %v", len(whole.Entries), whole.Violations, whole.Unproven, whole.Weak)
			}
			checkASCII(t, name, whole)
			for _, size := range []int{1, 7, 64, 1000} {
				r := ima.NewReplayer(quoted, ima.Options{})
				for rest := raw; len(rest) > 0; rest = rest[min(size, len(rest)):] {
					if _, err := r.Write(rest[:min(size, len(rest))]); err != nil {
						t.Fatal(err)
					}
				}
				got, err := r.Finish()
				if err != nil || !r.Reached() {
					t.Fatalf("in chunks of %d: %v", size, err)
				}
				if diff := cmp.Diff(whole, got); diff != "" {
					t.Errorf("in chunks of %d (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

// checkASCII compares entries with what the kernel wrote as text.
func checkASCII(t *testing.T, name string, got ima.Result) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(vectors.Read(t, name, "ascii_runtime_measurements"))), "\n")
	for i, line := range lines {
		f := strings.Fields(line)
		if e := got.Entries[i]; e.Digest != f[3] || e.Path != f[4] || e.Index != i {
			t.Errorf("entry %d is %s %s, the kernel wrote %s", i, e.Digest, e.Path, line)
		}
	}
}

func TestEveryTemplateIsRead(t *testing.T) {
	sum := sha256.Sum256([]byte("content"))
	text := func(alg string) string { return alg + ":" + hexOf(sum[:]) }
	legacySum := bytes.Repeat([]byte{7}, 20)
	legacy := func(l *list) *list {
		name := "/bin/old"
		written := append(append(bytes.Clone(legacySum), binary.LittleEndian.AppendUint32(nil, uint32(len(name)))...), name...)
		return l.entry("ima", written, append(append(bytes.Clone(legacySum), name...), make([]byte, 256-len(name))...), false)
	}
	cases := map[string]struct {
		list *list
		want ima.Entry
	}{
		"ima":                {legacy(newList(nodeclaim.SHA256)), ima.Entry{Index: 1, Path: "/bin/old", Digest: "sha1:" + hexOf(legacySum)}},
		"ima-ng":             {newList(nodeclaim.SHA256).ng("ima-ng", "/bin/x", "sha256", sum[:]), ima.Entry{Index: 1, Path: "/bin/x", Digest: text("sha256")}},
		"ima-sig":            {newList(nodeclaim.SHA256).ng("ima-sig", "/bin/x", "sha256", sum[:], []byte("sig")), ima.Entry{Index: 1, Path: "/bin/x", Digest: text("sha256"), Signature: []byte("sig")}},
		"ima-buf":            {newList(nodeclaim.SHA256).ng("ima-buf", "kexec-cmdline", "sha256", sum[:], []byte("quiet")), ima.Entry{Index: 1, Path: "kexec-cmdline", Digest: text("sha256"), Signature: []byte("quiet")}},
		"ima-ngv2":           {newList(nodeclaim.SHA256).ng("ima-ngv2", "/bin/x", "ima:sha256", sum[:]), ima.Entry{Index: 1, Path: "/bin/x", Digest: text("sha256")}},
		"ima-ngv2, verity":   {newList(nodeclaim.SHA256).ng("ima-ngv2", "/bin/x", "verity:sha256", sum[:]), ima.Entry{Index: 1, Path: "/bin/x", Digest: text("verity:sha256")}},
		"ima-sigv2, verity":  {newList(nodeclaim.SHA256).ng("ima-sigv2", "/bin/x", "verity:sha256", sum[:], []byte("sig")), ima.Entry{Index: 1, Path: "/bin/x", Digest: text("verity:sha256"), Signature: []byte("sig")}},
		"a path with spaces": {newList(nodeclaim.SHA256).ng("ima-ng", "/a b\nc", "sha256", sum[:]), ima.Entry{Index: 1, Path: "/a b\nc", Digest: text("sha256")}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			res, err := replay(c.list.quoted(t), c.list.raw, ima.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, res.Entries[1]); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
		})
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func TestMalformedEntriesAreRefused(t *testing.T) {
	sum := sha256.Sum256(nil)
	ng := func(name, alg string, sum []byte) []byte {
		return append(field(append([]byte(alg), sum...)), field([]byte(name))...)
	}
	bad := func(template string, data []byte) *list {
		return newList(nodeclaim.SHA256).entry(template, field(data), data, false)
	}
	ok := ng("/x\x00", "sha256:\x00", sum[:])
	cases := map[string]struct {
		list  *list
		check string
		says  string
	}{
		"an unknown template without a digest": {bad("ima-evil", field([]byte("/x\x00"))), "ima.format", `template "ima-evil" is unknown`},
		"an unknown template, name first":      {bad("n-ng|d-ng", append(field([]byte("/x\x00")), ok[:4+8+32]...)), "ima.format", `template "n-ng|d-ng" is unknown`},
		"an unknown template, a field cut":     {bad("ima-new", append(bytes.Clone(ok), 9, 0, 0, 0, 1)), "ima.format", `template "ima-new" is unknown`},
		"an unknown template with one field":   {bad("ima-new", ok[:4+8+32]), "ima.format", "field 1 has no length"},
		"a template with too few fields":       {bad("ima-modsig", append(bytes.Clone(ok), field(nil)...)), "ima.format", "3 fields, and the template 5"},
		"a template with too many fields":      {bad("ima-sig", append(append(bytes.Clone(ok), field(nil)...), field(nil)...)), "ima.format", "left after its fields"},
		"bytes after the fields":               {bad("ima-ng", append(bytes.Clone(ok), 1)), "ima.format", "left after its fields"},
		"a field longer than the data":         {bad("ima-ng", []byte{0xFF, 0xFF, 0xFF, 0xFF}), "ima.format", "has 4294967295 bytes"},
		"a field without length":               {bad("ima-ng", []byte{1}), "ima.format", "has no length"},
		"a name without its NUL":               {bad("ima-ng", ng("/x", "sha256:\x00", sum[:])), "ima.format", "does not end at its one NUL"},
		"a name with a NUL inside":             {bad("ima-ng", ng("/x\x00/y\x00", "sha256:\x00", sum[:])), "ima.format", "one NUL"},
		"an empty name":                        {bad("ima-ng", ng("\x00", "sha256:\x00", sum[:])), "ima.format", "one NUL"},
		"a digest without colon":               {bad("ima-ng", ng("/x\x00", "sha256\x00", sum[:])), "ima.format", "is not an algorithm"},
		"a digest of the wrong length":         {bad("ima-ng", ng("/x\x00", "sha256:\x00", sum[:31])), "ima.format", "has 31 bytes, want 32"},
		"an unknown digest algorithm":          {bad("ima-ng", ng("/x\x00", "crc32:\x00", sum[:4])), "ima.format", `"crc32" is unknown`},
		"a v2 digest in ima-ng":                {bad("ima-ng", ng("/x\x00", "ima:sha256:\x00", sum[:])), "ima.format", "is not an algorithm"},
		"an unknown v2 digest type":            {bad("ima-ngv2", ng("/x\x00", "evil:sha256:\x00", sum[:])), "ima.format", `"evil" is unknown`},
		"a boot_aggregate of zeros":            {emptyList(nodeclaim.SHA256).ng("ima-ng", "boot_aggregate", "sha256", make([]byte, 32)), "ima.aggregate", "TPM-bypass"},
		"a legacy name above its room":         {newList(nodeclaim.SHA256).entry("ima", append(append(make([]byte, 20), 0, 1, 0, 0), make([]byte, 256)...), nil, false), "ima.format", "file name of 256 bytes"},
		"an entry above the size limit":        {bad("ima-ng", make([]byte, 64<<10+1)), "ima.format", "more than the 65536 allowed"},
		"an endless template name":             {bad(strings.Repeat("x", 17), ok), "ima.format", "template name of 17 bytes"},
		"an entry that extends PCR 11":         {patched(newList(nodeclaim.SHA256).file("/x", "x"), 0, 11), "ima.format", "extends PCR 11"},
		"a boot_aggregate of other PCRs":       {emptyList(nodeclaim.SHA256).file("boot_aggregate", "x"), "ima.aggregate", "of another boot"},
		"a boot_aggregate of no bank":          {emptyList(nodeclaim.SHA256).ng("ima-ng", "boot_aggregate", "md5", sum[:16]), "ima.aggregate", "no PCR bank has"},
		"a boot_aggregate of an unquoted bank": {emptyList(nodeclaim.SHA256).ng("ima-ng", "boot_aggregate", "sha1", sum[:20]), "ima.aggregate", "was not quoted"},
		"a boot_aggregate that is a violation": {emptyList(nodeclaim.SHA256).violation("boot_aggregate"), "ima.aggregate", "is a violation"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := replay(c.list.quoted(t), c.list.raw, ima.Options{})
			refusedFor(t, err, c.check)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("reason %q does not say %q", err, c.says)
			}
		})
	}
}

// patched changes the byte at an offset into the last entry.
func patched(l *list, off int, b byte) *list {
	l.raw[l.ends[len(l.ends)-2]+off] = b
	return l
}

func TestSeveralBanksMustBeReachedAtOneEntry(t *testing.T) {
	l := newList(nodeclaim.SHA256, nodeclaim.SHA384, nodeclaim.SHA1).file("/a", "a").file("/b", "b")
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil || len(res.Entries) != 3 || res.Weak {
		t.Fatalf("%+v, %v", res, err)
	}
	shorter := newList(nodeclaim.SHA384).file("/a", "a")
	l.values[nodeclaim.SHA384] = shorter.values[nodeclaim.SHA384]
	_, err = replay(l.quoted(t), l.raw, ima.Options{})
	refusedFor(t, err, "ima.pcr")
}

func TestSHA1AloneIsWeakAndPaddedSHA1IsANamedMode(t *testing.T) {
	sum := sha1.Sum(make([]byte, 8*20))
	weak := emptyList(nodeclaim.SHA1).ng("ima-ng", "boot_aggregate", "sha1", sum[:]).file("/a", "a")
	res, err := replay(weak.quoted(t), weak.raw, ima.Options{})
	if err != nil || !res.Weak {
		t.Errorf("SHA-1 alone: %+v, %v", res, err)
	}
	old := emptyList(nodeclaim.SHA1, nodeclaim.SHA256)
	old.padded = true
	old.ng("ima-ng", "boot_aggregate", "sha1", sum[:]).file("/a", "a").violation("/b")
	res, err = replay(old.quoted(t), old.raw, ima.Options{PaddedSHA1: true})
	if err != nil || !res.Weak || res.Violations != 1 {
		t.Errorf("padded SHA-1: %+v, %v", res, err)
	}
	_, err = replay(old.quoted(t), old.raw, ima.Options{})
	refusedFor(t, err, "ima.pcr")
}

func TestKexecAddsAnotherBootAggregate(t *testing.T) {
	sum := sha256.Sum256(make([]byte, 10*32))
	l := newList(nodeclaim.SHA256).file("/a", "a").ng("ima-ng", "boot_aggregate", "sha256", sum[:]).file("/b", "b")
	res, err := replay(l.quoted(t), l.raw, ima.Options{})
	if err != nil || !ima.IsBootAggregate(res.Entries[0]) || !ima.IsBootAggregate(res.Entries[2]) || ima.IsBootAggregate(res.Entries[3]) {
		t.Errorf("%+v, %v", res, err)
	}
}
