// Command generate writes those files of the chart that follow from Go code or from other files of the chart, so that they
// cannot drift: the roles of policy-sync, keelson-node and app teams, the guards, the table of values in the README, and what controller-gen
// cannot say in the definition of TrustPolicy. `make generate`
// runs it; a test of this package fails where a file is stale.
//
//	go run ./charts/generate DIR
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("give the chart's folder"))
	}
	files, err := generated(os.DirFS(os.Args[1]))
	if err != nil {
		fail(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), content, 0o644); err != nil { //nolint:gosec // a file of the source tree
			fail(err)
		}
	}
}

func fail(err error) {
	_, _ = fmt.Fprintln(os.Stderr, "generate:", err) // nobody is left to tell when this fails
	os.Exit(1)
}

// generated makes every generated file of a chart, by its path there.
func generated(chart fs.FS) (map[string][]byte, error) {
	out := map[string][]byte{}
	for name, make := range map[string]func() ([]byte, error){
		"templates/rbac-policy-sync.yaml": policySyncRoles,
		"templates/rbac-node.yaml":        nodeRoles,
		"templates/rbac-teams.yaml":       teamRoles,
		"templates/guards.yaml":           guards,
		"README.md":                       func() ([]byte, error) { return readme(chart) },
		trustPolicies:                     func() ([]byte, error) { return trustPolicySchema(chart) },
	} {
		content, err := make()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = content
	}
	return out, nil
}
