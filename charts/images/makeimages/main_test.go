package main

import (
	"io"
	"strings"
	"testing"
)

func TestWrongUseIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no folder":             {nil, "give the folder"},
		"an empty folder":       {[]string{""}, "give the folder"},
		"no registry to push":   {[]string{t.TempDir(), ""}, "such as registry.example.org/keelson"},
		"more than that":        {[]string{"a", "b", "c"}, "give the folder"},
		"nothing made to push":  {[]string{t.TempDir(), "registry.example.org/keelson"}, "make it first"},
		"not run in a checkout": {[]string{t.TempDir()}, "charts/keelson/Chart.yaml"}, // a test runs in its own folder
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(t.Context(), io.Discard, tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
