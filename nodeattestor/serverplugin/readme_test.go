package serverplugin

import (
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
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
	plugindoc.Same(t, "README.md", "## Configuration", plugindoc.Keys(hclConfig{}), nil)
	plugindoc.Same(t, "README.md", "## Metrics", p.metrics.Names(), nil)
	all := nodeclaim.Claims{Reference: "r", Node: "n", Manufacturer: "m", SecureBoot: nodeclaim.True, IMA: nodeclaim.IMAClean, Weak: true, Tags: map[string]string{"k": "v"},
		PCRs: map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {7: {1}}}}
	selectors, err := all.Selectors([]nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{7}}})
	if err != nil {
		t.Fatal(err)
	}
	plugindoc.Same(t, "README.md", "## Selectors", plugindoc.Kinds(selectors), plugindoc.Kinds)
}

func TestTheDocumentsSampleIsOne(t *testing.T) {
	_, data, _ := strings.Cut(plugindoc.Sample(t, "README.md", "hcl"), "plugin_data {")
	end := strings.LastIndex(data, "    }")
	var raw hclConfig
	if p := pluginconf.Decode(data[:end], &raw); p.Err() != nil || raw.EKMode != "certificate" || raw.Metrics == nil {
		t.Errorf("%v, %+v", p.Err(), raw)
	}
}
