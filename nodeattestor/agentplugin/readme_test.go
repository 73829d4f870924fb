package agentplugin

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/test/plugindoc"
)

func TestTheDocumentSaysWhatTheCodeDoes(t *testing.T) {
	p := New()
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	plugindoc.Same(t, "README.md", "## Configuration", plugindoc.Keys(hclConfig{}), nil)
	plugindoc.Same(t, "README.md", "## Metrics", p.metrics.Names(), nil)
}

func TestTheDocumentsSampleIsOne(t *testing.T) {
	sample := plugindoc.Sample(t, "README.md", "hcl")
	_, data, _ := strings.Cut(sample[strings.Index(sample, "NodeAttestor"):], "plugin_data {")
	var raw hclConfig
	if p := pluginconf.Decode(data[:strings.LastIndex(data, "    }")], &raw); p.Err() != nil || raw.DataDir == "" {
		t.Errorf("%v, %+v", p.Err(), raw)
	}
}
