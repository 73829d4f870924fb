package serverconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAFileThatChangedBeforeItWasWatchedIsSeen(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"nothing": func(string) error { return nil },
		"a file is written": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "inventory.yaml"), []byte("machines: [ ]\n"), 0o600)
		},
		"a file is replaced": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "new"), []byte("machines: []\n"), 0o600), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "inventory.yaml")))
		},
		"a file is taken away": func(dir string) error { return os.Remove(filepath.Join(dir, "inventory.yaml")) },
		"a set is added to the folder": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "references", "b.yaml"), nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, zero := t.TempDir(), strings.Repeat("0", 64)
			set := "name: prod\nboot: {pcrs: {sha256: {0: '" + zero + "', 2: '" + zero + "', 4: '" + zero + "'}}}\n"
			err := errors.Join(os.Mkdir(filepath.Join(dir, "references"), 0o700), os.WriteFile(filepath.Join(dir, "references", "a.yaml"), []byte(set), 0o600),
				os.WriteFile(filepath.Join(dir, "inventory.yaml"), []byte("machines: []\n"), 0o600))
			if err != nil {
				t.Fatal(err)
			}
			_, seen, problems := Read(fmt.Sprintf("ek_mode = \"inventory\"\ninventory = %q\nreferences = [%q]\naudit_log = \"x\"\npcrs { sha256 = [0, 2, 4] }\nrequire_ima = false\n",
				filepath.Join(dir, "inventory.yaml"), filepath.Join(dir, "references")), "example.org", time.Now())
			if problems.Err() != nil {
				t.Fatal(problems.Err())
			}
			if err := change(dir); err != nil {
				t.Fatal(err)
			}
			if got, want := seen.Outdated(), name != "nothing"; got != want {
				t.Errorf("outdated: %t", got)
			}
		})
	}
}
