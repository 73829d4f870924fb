package serverconfig

import (
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestRootsOfTPMMakersAreReadAsTheyPublishThem(t *testing.T) {
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	der := ca.Root().Raw
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"amd.crt": der, "intel.cer": der, "infineon.CRT": der, "other.der": der, "bundle.pem": append(text, text...),
		"st.p7b": der, "README": []byte("where they are from"), ".hidden": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _, problems := Read(strings.Replace(pinsNoKernel(t, "ek_roots = [\""+dir+"\"]"), `ek_mode = "inventory"`, `ek_mode = "both"`, 1), "example.org", time.Now())
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Policy.Anchors.Roots); n != 6 {
		t.Errorf("%d roots, want 6", n)
	}
	if got := fmt.Sprint(c.Warnings()); !strings.Contains(got, "st.p7b") || !strings.Contains(got, "README") || strings.Contains(got, ".hidden") || strings.Contains(got, "amd") {
		t.Errorf("the warnings are %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "cut.cer"), der[:len(der)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, problems = Read(pinsNoKernel(t, "ek_roots = [\""+dir+"\"]"), "example.org", time.Now())
	if err := problems.Err(); err == nil || !strings.Contains(err.Error(), "cut.cer: no PEM certificate found, and it is not one certificate in DER") {
		t.Errorf("a file that is cut: %v", err)
	}
}
