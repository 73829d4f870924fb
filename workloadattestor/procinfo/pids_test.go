package procinfo_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/procinfo"
)

// TestPIDsLimit makes cgroup file systems as folders.
func TestPIDsLimit(t *testing.T) {
	id := strings.Repeat("a", 64)
	for name, tc := range map[string]struct {
		cgroup string
		files  map[string]string // below the root: content of pids.max
		want   int64
		err    string
	}{
		"the pod's, cgroup v2": {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "max\n", "kubepods/pod1": "1024\n", "kubepods": "max\n"}, 1024, ""},
		"the container's":      {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "64\n", "kubepods/pod1": "1024\n", "kubepods": "512\n"}, 64, ""},
		"the least one":        {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "2048\n", "kubepods/pod1": "1024\n", "kubepods": "512\n"}, 512, ""},
		"none":                 {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "max\n", "kubepods/pod1": "max\n"}, 0, ""},
		"cgroup v1": {"3:cpu:/kubepods/pod1/" + id + "\n2:pids:/kubepods/pod1/" + id + "\n0::/",
			map[string]string{"pids/kubepods/pod1/" + id: "max\n", "pids/kubepods/pod1": "99\n"}, 99, ""},
		"v2 beside v1":                  {"0::/kubepods/pod1/" + id, map[string]string{"unified/kubepods/pod1/" + id: "7\n"}, 7, ""},
		"what the container made":       {"0::/kubepods/pod1/" + id + "/own", map[string]string{"kubepods/pod1/" + id + "/own": "1\n", "kubepods/pod1/" + id: "64\n"}, 64, ""},
		"no such controller":            {"0::/kubepods/pod1/" + id, nil, 0, "no cgroup in"},
		"no number":                     {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "many\n"}, 0, "is no number"},
		"less than none":                {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: "-5\n"}, 0, "is no number"},
		"a number that never ends":      {"0::/kubepods/pod1/" + id, map[string]string{"kubepods/pod1/" + id: strings.Repeat("9", 5000)}, 0, "is no number"},
		"a process that is in no pod's": {"0::/user.slice", map[string]string{"user.slice": "5\n"}, 0, "no cgroup in"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write := func(path, content string) {
				t.Helper()
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("proc/42/cgroup", tc.cgroup+"\n")
			write("proc/42/stat", "42 (app) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1\n")
			for dir, content := range tc.files {
				write(filepath.Join("cgroup", dir, "pids.max"), content)
			}
			process, err := procinfo.New(filepath.Join(root, "proc")).Pin(42)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = process.Close() }()
			got, err := process.PIDsLimit(filepath.Join(root, "cgroup"))
			if got != tc.want || (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %d, %v; want %d, %q", got, err, tc.want, tc.err)
			}
		})
	}
}
