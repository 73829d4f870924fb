package serverconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pinsNoKernel is a configuration with a set that pins firmware and images only.
func pinsNoKernel(t *testing.T, more string) string {
	t.Helper()
	dir, zero := t.TempDir(), strings.Repeat("0", 64)
	set := "name: loaders\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\n"
	for name, text := range map[string]string{"set.yaml": set, "inventory.yaml": "machines: []\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\naudit_log = \"x\"\npcrs { sha256 = [0, 2, 4] }\nrequire_ima = false\n%s\n",
		filepath.Join(dir, "inventory.yaml"), filepath.Join(dir, "set.yaml"), more)
}

func TestPCRsOfTheOperatingSystemAreConfigured(t *testing.T) {
	c, _, problems := Read(pinsNoKernel(t, "os_extended_pcrs = [8, 9]"), "example.org", time.Now())
	if err := problems.Err(); err != nil || !slices.Equal(c.Policy.OSExtended, []int{8, 9}) {
		t.Fatalf("%v, %+v", err, c)
	}
	for _, pcr := range []int{-1, 0, 4, 7, 10, 16, 24} {
		_, _, problems := Read(pinsNoKernel(t, fmt.Sprintf("os_extended_pcrs = [9, %d]", pcr)), "example.org", time.Now())
		if err := problems.Err(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("PCR %d cannot be extended by the operating system", pcr)) {
			t.Errorf("PCR %d: %v", pcr, err)
		}
	}
}

func TestASetThatPinsNoKernelIsAWarning(t *testing.T) {
	c, _, problems := Read(pinsNoKernel(t, ""), "example.org", time.Now())
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(c.Warnings()); !strings.Contains(got, "set loaders") || !strings.Contains(got, "any kernel") {
		t.Errorf("the warnings are %s", got)
	}
}
