package serverplugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

var (
	eccEK   = nodeclaim.EKHash{1}
	rsaEK   = nodeclaim.EKHash{2}
	otherEK = nodeclaim.EKHash{3}
)

func opened(t *testing.T, path string, earlier *serials) *serials {
	t.Helper()
	s, err := openSerials(path, earlier)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *serials) want(t *testing.T, serials map[nodeclaim.EKHash]uint64) {
	t.Helper()
	for ek, want := range serials {
		if got := s.highest(ek); got != want {
			t.Errorf("EK %.4s… has shown %d, want %d", ek, got, want)
		}
	}
}

func TestThreat21_SerialsOnlyRiseAndOutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serials.json")
	s := opened(t, path, nil)
	for _, serial := range []uint64{3, 2} {
		if err := s.raise(map[string]uint64{eccEK.String(): serial, rsaEK.String(): serial + 1}); err != nil {
			t.Fatal(err)
		}
	}
	want := map[nodeclaim.EKHash]uint64{eccEK: 3, rsaEK: 4, otherEK: 0}
	s.want(t, want)
	opened(t, path, nil).want(t, want)
	if again := opened(t, path, s); again != s {
		t.Error("a new configuration with the same file has two memories of it")
	}
	elsewhere := opened(t, path+".2", s) // a new configuration with another folder
	elsewhere.want(t, want)
	opened(t, path+".2", nil).want(t, want)
	opened(t, "", s).want(t, want)
	if files, err := filepath.Glob(path + "*.new"); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestThreat21_ASerialThatCannotBeKeptIsAnErrorEachTime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := opened(t, filepath.Join(dir, "serials.json"), nil)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.raise(map[string]uint64{eccEK.String(): 3}); err == nil {
			t.Error("a serial that a restart would forget was taken")
		}
	}
	if err := s.raise(nil); err != nil {
		t.Errorf("nothing to keep: %v", err)
	}
}

func TestABrokenFileOfSerialsIsAnErrorAndNotAnEmptyOne(t *testing.T) {
	for name, content := range map[string]string{
		"nothing":            "",
		"no object":          "null",
		"a list":             "[]",
		"no EK hash":         `{"abc": 1}`,
		"a serial 0":         `{"` + eccEK.String() + `": 0}`,
		"a negative serial":  `{"` + eccEK.String() + `": -1}`,
		"something after it": `{} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "serials.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := openSerials(path, nil); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
				t.Errorf("%v; want the file's name and what to do", err)
			}
		})
	}
}
