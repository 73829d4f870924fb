package vectors

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/parts"
)

// Expectation is what a case's expect file says. Its lines are "key: value"; a line that begins
// with # is a comment, and an unknown key fails the test.
type Expectation struct {
	Source     string                               // source: file in the module that carries the log
	Log        string                               // log: "replays", or "parses" where the PCRs are unknown
	SecureBoot string                               // secureboot: enabled, disabled or unknown
	Text       string                               // cmdline: the proven kernel command line
	Images     int                                  // images: number of images of the boot attempt in PCR 4
	Others     int                                  // others: number of images that PCR 4 has besides, default 0
	Kernel     []string                             // kernel: its digest in each bank, or "absent"
	Initrd     []string                             // initrd: the same
	IMAEntries int                                  // ima: number of entries
	Against    map[string][]string                  // against: SET CHECK...; no check: the set accepts the case
	PCRs       map[nodeclaim.HashAlg]map[int][]byte // pcr: BANK INDEX HEX
}

// Expect reads the expect file of a case.
func Expect(t testing.TB, dir string) Expectation {
	t.Helper()
	data, err := files.ReadFile(path.Join(dir, "expect"))
	if err != nil {
		t.Fatal(err)
	}
	e := Expectation{Against: map[string][]string{}, PCRs: map[nodeclaim.HashAlg]map[int][]byte{}}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("%s/expect: line %q is no \"key: value\"", dir, line)
		}
		if err := e.set(key, value); err != nil {
			t.Fatalf("%s/expect: %s: %v", dir, key, err)
		}
	}
	return e
}

func (e *Expectation) set(key, value string) (err error) {
	words := strings.Fields(value)
	switch key {
	case "source":
		e.Source = value
	case "log":
		e.Log = value
	case "secureboot":
		e.SecureBoot = value
	case "cmdline":
		e.Text = value
	case "images":
		e.Images, err = strconv.Atoi(value)
	case "others":
		e.Others, err = strconv.Atoi(value)
	case "kernel":
		e.Kernel = words
	case "initrd":
		e.Initrd = words
	case "ima":
		e.IMAEntries, err = strconv.Atoi(value)
	case "against":
		e.Against[words[0]] = words[1:]
	case "pcr":
		err = e.setPCR(words)
	default:
		err = fmt.Errorf("unknown key")
	}
	return err
}

func (e *Expectation) setPCR(words []string) error {
	if len(words) != 3 {
		return fmt.Errorf("%q is no bank, index and value", words)
	}
	alg, err := nodeclaim.ParseHashAlg(words[0])
	if err != nil {
		return err
	}
	i, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	if e.PCRs[alg] == nil {
		e.PCRs[alg] = map[int][]byte{}
	}
	e.PCRs[alg][i], err = hex.DecodeString(words[2])
	return err
}

// RealLog is a log of another real machine, from the module that test/parts/eventlog pins. Without
// a network and without that module in the module cache the test is skipped, with the reason.
func RealLog(t testing.TB, e Expectation) []byte {
	t.Helper()
	dir, err := upstream()
	if err != nil {
		t.Skipf("the module that carries real logs cannot be had: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(e.Source)))
	if err != nil {
		t.Fatal(err)
	}
	if path.Ext(e.Source) != ".json" {
		return data
	}
	var dump struct{ Log struct{ Raw []byte } }
	if err := json.Unmarshal(data, &dump); err != nil {
		t.Fatal(err)
	}
	return dump.Log.Raw
}

// upstream is the folder of the pinned module in the module cache.
var upstream = sync.OnceValues(func() (string, error) {
	return parts.ModuleDir(context.Background(), "eventlog", "github.com/google/go-eventlog")
})

// RealLogs lists the folders of logs of other real machines.
func RealLogs(t testing.TB) []string {
	t.Helper()
	entries, err := files.ReadDir("real-logs")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, path.Join("real-logs", e.Name()))
		}
	}
	return out
}
