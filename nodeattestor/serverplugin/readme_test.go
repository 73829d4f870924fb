package serverplugin

import (
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/plugindoc"
)

func TestTheDocumentSaysWhatTheCodeDoes(t *testing.T) {
	p := New(time.Now)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	plugindoc.Same(t, "README.md", "## Metrics", p.metrics.Names(), nil)
	all := nodeclaim.Claims{Reference: "r", Node: "n", Manufacturer: "m", SecureBoot: nodeclaim.True, IMA: nodeclaim.IMAClean, Weak: true, Tags: map[string]string{"k": "v"},
		PCRs: map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: {7: {1}}}}
	selectors, err := all.Selectors([]nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{7}}})
	if err != nil {
		t.Fatal(err)
	}
	plugindoc.Same(t, "README.md", "## Selectors", plugindoc.Kinds(selectors), plugindoc.Kinds)
}
