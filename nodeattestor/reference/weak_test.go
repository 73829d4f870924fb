package reference_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/reference"
)

func TestWeakHashesOfASetAreNamed(t *testing.T) {
	hex := func(n int) string { return strings.Repeat("0", 2*n) }
	boot := func(bank string, size int) string {
		return "name: a\nboot:\n  bank: " + bank + "\n  pcrs:\n    " + bank + ":\n      \"0\": \"" + hex(size) + "\"\n      \"2\": \"" + hex(size) + "\"\n      \"4\": \"" + hex(size) + "\"\n"
	}
	files := "ima:\n  files:\n    /a: [sha256:" + hex(32) + "]\n    /b: [sha256:" + hex(32) + ", sha1:" + hex(20) + "]\n    /c: [verity:sha1:" + hex(20) + "]\n" +
		"    /d: [md5:" + hex(16) + "]\n    /e: [sha1:" + hex(20) + ", sha1:" + strings.Repeat("1", 40) + "]\n    /f: [sha1:" + hex(20) + "]\n"
	const again = "; have the kernel measure with ima_hash=sha256, and capture the set anew"
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"none":                      {boot("sha256", 32), nil},
		"strong files":              {boot("sha256", 32) + "ima:\n  files:\n    /a: [sha256:" + hex(32) + ", verity:sha512:" + hex(64) + "]\n", nil},
		"a bank":                    {boot("sha1", 20), []string{"the boot values are of bank sha1, for which collisions can be made: what the set accepts is marked weak; capture it anew with another bank"}},
		"files, some of them twice": {boot("sha384", 48) + files, []string{"files are allowed by a digest of md5, for which collisions can be made: /d" + again, "files are allowed by a digest of sha1, for which collisions can be made: /b, /c, /e and 1 more" + again}},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := reference.ParseSet([]byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, set.Weaknesses()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
