package serverconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// warnings are those of a configuration with one set, as one text.
func warnings(t *testing.T, set, more string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"set.yaml": set, "inventory.yaml": "machines: []\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _, problems := Read(fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\naudit_log = \"x\"\nrequire_ima = false\n%s\n",
		filepath.Join(dir, "inventory.yaml"), filepath.Join(dir, "set.yaml"), more), "example.org", time.Now())
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(c.Warnings())
}

func TestWhatLetsMoreInThanItSeemsIsAWarning(t *testing.T) {
	boot := func(bank string, digits int, more string) string {
		zero := strings.Repeat("0", digits)
		return fmt.Sprintf("name: s\nboot: {bank: %[1]s, %[3]spcrs: {%[1]s: {0: '%[2]s', 2: '%[2]s', 4: '%[2]s'}}}\n", bank, zero, more)
	}
	kernel := "kernel: ['sha256:" + strings.Repeat("0", 64) + "'], "
	for name, c := range map[string]struct{ set, more, want string }{
		"nothing is doubtful":     {boot("sha256", 64, kernel), "pcrs { sha256 = [0, 2, 4] }", "[]"},
		"a set of a broken hash":  {boot("sha1", 40, ""), "pcrs { sha1 = [0, 2, 4] }", "these reference sets rest on SHA-1"},
		"a set without a kernel":  {boot("sha256", 64, ""), "pcrs { sha256 = [0, 2, 4] }", "reference set pins no kernel"},
		"one that says so itself": {boot("sha256", 64, "unpinnedKernel: allow, "), "pcrs { sha256 = [0, 2, 4] }", "as its unpinnedKernel says"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := warnings(t, c.set, c.more); !strings.Contains(got, c.want) {
				t.Errorf("warnings %s, want %s", got, c.want)
			}
		})
	}
}
