package machinestate

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

var (
	eccEK   = nodeclaim.EKHash{1}
	rsaEK   = nodeclaim.EKHash{2}
	otherEK = nodeclaim.EKHash{3}
)

func opened(t *testing.T, path string, earlier *Serials) *Serials {
	t.Helper()
	s, err := OpenSerials(path, earlier)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Serials) want(t *testing.T, serials map[nodeclaim.EKHash]uint64) {
	t.Helper()
	for ek, want := range serials {
		if got, err := s.Raise(0, ek.String()); got != want || err != nil {
			t.Errorf("EK %.4s… has shown %d, want %d; %v", ek, got, want, err)
		}
	}
}

func TestThreat21_SerialsOnlyRiseAndOutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serials.json")
	s := opened(t, path, nil)
	for _, serial := range []uint64{3, 2} {
		for ek, serial := range map[nodeclaim.EKHash]uint64{eccEK: serial, rsaEK: serial + 1} {
			if highest, err := s.Raise(serial, ek.String()); err != nil || highest < serial {
				t.Fatalf("raised to %d: the highest is %d, %v", serial, highest, err)
			}
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
		if highest, err := s.Raise(3, eccEK.String()); err == nil || highest != 0 {
			t.Errorf("a serial that a restart would forget was taken: %d", highest)
		}
	}
	if _, err := s.Raise(0, eccEK.String()); err != nil {
		t.Errorf("nothing to keep: %v", err)
	}
}

func TestThreat21_AMachineHasTheHighestSerialOfAllItsEKs(t *testing.T) {
	s := opened(t, "", nil)
	if _, err := s.Raise(5, eccEK.String()); err != nil {
		t.Fatal(err)
	}
	if highest, err := s.Raise(3, eccEK.String(), rsaEK.String()); err != nil || highest != 5 {
		t.Errorf("the highest is %d, %v; want the other EK's", highest, err)
	}
	s.want(t, map[nodeclaim.EKHash]uint64{eccEK: 5, rsaEK: 3})
	if highest, err := (*Serials)(nil).Raise(3, eccEK.String()); err != nil || highest != 3 {
		t.Errorf("nil Serials: %d, %v", highest, err)
	}
}

func TestABrokenFileOfSerialsIsAnErrorAndNotAnEmptyOne(t *testing.T) {
	for name, content := range map[string]string{
		"nothing":                       "",
		"no object":                     "null",
		"a list":                        "[]",
		"no EK hash":                    `{"abc": 1}`,
		"an EK hash in capital letters": `{"` + strings.ToUpper(nodeclaim.EKHash{0xab}.String()) + `": 1}`,
		"a fraction":                    `{"` + eccEK.String() + `": 1.5}`,
		"a serial 0":                    `{"` + eccEK.String() + `": 0}`,
		"a negative serial":             `{"` + eccEK.String() + `": -1}`,
		"something after it":            `{} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "serials.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenSerials(path, nil); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
				t.Errorf("%v; want the file's name and what to do", err)
			}
		})
	}
}

func TestAFileOfSerialsThatIsTooLargeOrAPipeIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serials.json")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, maxSerials+1), syscall.Mkfifo(path+".pipe", 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, path + ".pipe"} {
		if _, err := OpenSerials(path, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%v; want the file's name", err)
		}
	}
}

func FuzzParseSerials(f *testing.F) {
	for _, seed := range []string{`{}`, `{"` + eccEK.String() + `": 3}`, `null`, `{"a": 1, "a": 2}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		byEK, err := parseSerials(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(byEK)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := parseSerials(again); err != nil || !maps.Equal(twice, byEK) {
			t.Errorf("%v is read again as %v, %v", byEK, twice, err)
		}
	})
}
