package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/keelson-project/keelson/policy-sync/cutter"
	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/policy-sync/syncer"
)

const chart = "../keelson"

func TestGeneratedFilesAreFresh(t *testing.T) {
	files, err := generated(os.DirFS(chart))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is stale, run `make generate` (-want +got):\n%s", name, diff)
		}
	}
}

// TestTheSchemaIsStrict: whatever is not a value of the chart's is refused, and each has a sentence.
func TestTheSchemaIsStrict(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(read(t, "values.schema.json"), &schema); err != nil {
		t.Fatal(err)
	}
	strict(t, "values", schema)
}

func strict(t *testing.T, path string, schema map[string]any) {
	t.Helper()
	properties, isObject := schema["properties"].(map[string]any)
	if description, _ := schema["description"].(string); !strings.HasSuffix(description, ".") {
		t.Errorf("%s: %q is no sentence", path, description)
	}
	if isObject && schema["additionalProperties"] != false {
		t.Errorf("%s takes values that nobody knows", path)
	}
	for name, p := range properties {
		strict(t, path+"."+name, p.(map[string]any))
	}
	if items, ok := schema["items"].(map[string]any); ok && items["properties"] != nil {
		strict(t, path+"[]", items)
	}
}

// TestDefaultsAreTheProgramsOwn: a value left out means the same to somebody who installs without Helm.
func TestDefaultsAreTheProgramsOwn(t *testing.T) {
	var values struct {
		PolicySync struct {
			Config map[string]any `yaml:"config"`
		} `yaml:"policySync"`
	}
	if err := yaml.Unmarshal(read(t, "values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	c := values.PolicySync.Config
	c["trustDomain"] = "example.org"
	spire, _ := c["spire"].(map[string]any)
	delete(spire, "address")
	spire["socket"] = "/s"
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := syncconfig.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want, err := syncconfig.Parse([]byte("trustDomain: example.org\nspire: {socket: /s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want.Snapshot = want.Snapshot.WithDefaults() // as its readers do
	none := strings.NewReplacer("<nil>", "[]").Replace
	if diff := cmp.Diff(none(fmt.Sprintf("%+v", want)), none(fmt.Sprintf("%+v", got))); diff != "" {
		t.Errorf("(-program +chart):\n%s", diff)
	}
}

// collectors takes metrics in place of a registry, which does not tell what it holds.
type collectors []prometheus.Collector

func (c *collectors) Register(one prometheus.Collector) error {
	*c = append(*c, one)
	return nil
}
func (c *collectors) MustRegister(...prometheus.Collector) {}
func (c *collectors) Unregister(prometheus.Collector) bool { return false }

func TestTheDashboardReadsWhatIsExported(t *testing.T) {
	var registered collectors
	if _, err := syncer.NewMetrics(&registered); err != nil {
		t.Fatal(err)
	}
	if _, err := panics.New(nil, nil, &registered); err != nil {
		t.Fatal(err)
	}
	all := len(registered) // of policy-sync's are shown, some of keelson-node's
	if _, err := cutter.NewMetrics(&registered); err != nil {
		t.Fatal(err)
	}
	known, optional := map[string]string{}, map[string]bool{}
	for i, c := range registered {
		ch := make(chan *prometheus.Desc, 8)
		c.Describe(ch)
		close(ch)
		for d := range ch {
			name := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1]
			known[name], optional[name] = d.String(), i >= all
		}
	}
	// The manager's own; another one of that name is refused.
	leader := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "leader_election_master_status", Help: "Taken."}, []string{"name"})
	if err := metrics.Registry.Register(leader); err == nil {
		t.Error("nobody exports leader_election_master_status")
	}
	known["leader_election_master_status"] = `variableLabels: {name}`
	var dashboard any
	if err := json.Unmarshal(read(t, "dashboards/keelson.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, expr := range texts(dashboard, "expr") {
		name := regexp.MustCompile(`(keelson|leader_election)_[a-z_]+`).FindString(expr)
		base := name
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			base = strings.TrimSuffix(base, suffix)
		}
		desc, ok := known[base]
		if !ok {
			t.Errorf("%s: nobody exports %q", expr, name)
		}
		used[base] = true
		labels := regexp.MustCompile(`([a-z]+)=~?"`).FindAllStringSubmatch(expr, -1)
		for _, by := range regexp.MustCompile(`by \(([a-z, ]+)\)`).FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(by[1], ", ") {
				labels = append(labels, []string{"", l})
			}
		}
		for _, l := range labels {
			if l[1] != "namespace" && l[1] != "le" && !strings.Contains(desc[strings.Index(desc, "variableLabels"):], l[1]) {
				t.Errorf("%s: %s has no label %s", expr, base, l[1])
			}
		}
	}
	for name := range known {
		if !used[name] && !optional[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// texts collects the texts under a key, wherever it stands.
func texts(v any, key string) []string {
	var out []string
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if s, ok := e.(string); ok && k == key {
				out = append(out, s)
			}
			out = append(out, texts(e, key)...)
		}
	case []any:
		for _, e := range v {
			out = append(out, texts(e, key)...)
		}
	}
	return out
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(chart, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}
