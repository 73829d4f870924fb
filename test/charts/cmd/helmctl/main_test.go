package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const chart = "../../../../charts/keelson"

func TestLaterValuesWinObjectByObject(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a.yaml": "image: {registry: r.example.org/k}\npolicySync: {replicas: 3, config: {trustDomain: a.example.org, spire: {address: 's:1'}}}\n",
		"b.yaml": "policySync: {config: {trustDomain: b.example.org}}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"template", "--namespace", "n", "--chart", chart, "--values", filepath.Join(dir, "a.yaml"), "--values", filepath.Join(dir, "b.yaml"), "keelson"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"trustDomain: b.example.org", "address: s:1", "replicas: 3", "kind: Job"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in what it renders", want)
		}
	}
}

func TestWrongUse(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"if nothing is asked, say what can be":    {nil, "install, upgrade, uninstall or template"},
		"if something unknown is asked, refuse":   {[]string{"delete", "x"}, `"delete" is neither`},
		"if no release is named, refuse":          {[]string{"install"}, "the name of one release"},
		"if there is no such file, name it":       {[]string{"install", "--values", "/nonexistent", "x"}, "/nonexistent"},
		"if values are not YAML, name their file": {[]string{"install", "--values", "main.go", "x"}, "main.go"},
		"if there is no cluster, say so":          {[]string{"uninstall", "--kubeconfig", "/nonexistent", "--namespace", "n", "x"}, "helm: uninstall x"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(t.Context(), tc.args, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
