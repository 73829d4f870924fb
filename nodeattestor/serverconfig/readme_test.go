package serverconfig

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/test/plugindoc"
)

// readme is the page that explains each key.
const readme = "../serverplugin/README.md"

func TestTheDocumentHasEveryKey(t *testing.T) {
	plugindoc.Same(t, readme, "## Configuration", plugindoc.Keys(hclConfig{}), nil)
}

func TestTheDocumentsSampleIsOne(t *testing.T) {
	_, data, _ := strings.Cut(plugindoc.Sample(t, readme, "hcl"), "plugin_data {")
	end := strings.LastIndex(data, "    }")
	var raw hclConfig
	if p := pluginconf.Decode(data[:end], &raw); p.Err() != nil || raw.EKMode != "certificate" || raw.Metrics == nil {
		t.Errorf("%v, %+v", p.Err(), raw)
	}
}
