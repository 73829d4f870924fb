package workloadplugin

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/test/plugindoc"
)

func TestTheDocumentSaysWhatTheCodeDoes(t *testing.T) {
	p := New(time.Now)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	plugindoc.Same(t, "README.md", "## Configuration", plugindoc.Keys(Config{}), nil)
	plugindoc.Same(t, "README.md", "## Metrics", p.metrics.Names(), nil)
	plugindoc.Same(t, "README.md", "## Selectors", kindsInCode(t), plugindoc.Kinds)
}

// kindsInCode are the constants of type Kind.
func kindsInCode(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("../workloadclaim/selector.go")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, m := range regexp.MustCompile(`(?m)^\tKind\w+\s+Kind = "([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		kinds = append(kinds, m[1])
	}
	if len(kinds) < 10 {
		t.Fatalf("only %v were found", kinds)
	}
	return kinds
}

func TestTheDocumentsSampleIsOne(t *testing.T) {
	_, data, _ := strings.Cut(plugindoc.Sample(t, "README.md", "hcl"), "plugin_data {")
	var c Config
	if p := pluginconf.Decode(data[:strings.LastIndex(data, "    }")], &c); p.Err() != nil || c.Verifiers["release-key"].PublicKeyPath == "" {
		t.Errorf("%v, %+v", p.Err(), c)
	}
}
