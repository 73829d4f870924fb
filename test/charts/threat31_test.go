package charts

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// maxAgentTTL is how long an agent may at most be believed without attesting again, in what people copy from here.
const maxAgentTTL = 30 * time.Minute

var (
	comment    = regexp.MustCompile(`(?m)(^|\s)(#|//).*$`)
	keyManager = regexp.MustCompile(`KeyManager\s+"([^"]*)"`)
	agentTTL   = regexp.MustCompile(`(?m)^\s*agent_ttl\s*=\s*"([^"]*)"`)
	validFor   = regexp.MustCompile(`(?m)^\s*verdict_valid_for\s*=\s*"([^"]*)"`)
)

// forgetful is what is wrong with the configuration of a SPIRE agent (HCL): one that keeps its key and SVID on disk does not attest when it
// starts again, whatever booted (threat 31).
func forgetful(config string) error {
	var found []string
	for _, m := range keyManager.FindAllStringSubmatch(comment.ReplaceAllString(config, ""), -1) {
		found = append(found, m[1])
	}
	if !slices.Equal(found, []string{"memory"}) {
		return fmt.Errorf("its KeyManagers are %q, want \"memory\" alone", found)
	}
	return nil
}

// impatient is what is wrong with the configuration of a SPIRE server (HCL): how long an agent is believed must be said, and be short; and a
// verdict must outlast the time until the next attestation.
func impatient(config string) error {
	config = comment.ReplaceAllString(config, "")
	m := agentTTL.FindStringSubmatch(config)
	if m == nil {
		return fmt.Errorf("it has no agent_ttl, and SPIRE's is an hour")
	}
	valid := "2h" // serverplugin's default
	if v := validFor.FindStringSubmatch(config); v != nil {
		valid = v[1]
	}
	return short(m[1], valid)
}

func short(ttl, valid string) error {
	d, err := time.ParseDuration(ttl)
	if err != nil || d <= 0 || d > maxAgentTTL {
		return fmt.Errorf("agent_ttl %q is not above 0 and at most %s", ttl, maxAgentTTL)
	}
	if v, err := time.ParseDuration(valid); err != nil || v <= d/2 {
		return fmt.Errorf("verdict_valid_for %q is not above half of agent_ttl %s", valid, d)
	}
	return nil
}

// configurations are all texts below the repository that hold a word, by where they stand: whole files, and the blocks of Markdown.
func configurations(t *testing.T, word string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, folder := range []string{"README.md", "charts", "examples", "nodeattestor", "workloadattestor", "policy-sync"} {
		err := filepath.WalkDir(filepath.Join("..", "..", folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !slices.Contains([]string{".md", ".conf", ".hcl", ".yaml", ".yml", ".tpl", ".txt"}, filepath.Ext(path)) {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			blocks := []string{string(text)}
			if filepath.Ext(path) == ".md" {
				blocks = nil
				for i, part := range strings.Split(string(text), "\n```") {
					if i%2 == 1 {
						blocks = append(blocks, part)
					}
				}
			}
			for i, b := range blocks {
				if strings.Contains(b, word) {
					name, err := filepath.Rel(filepath.Join("..", ".."), path)
					if err != nil {
						return err
					}
					out[fmt.Sprintf("%s#%d", name, i)] = b
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// wanted asserts that texts were found where they are known to be, so that nothing is guarded which moved away.
func wanted(t *testing.T, texts map[string]string, files ...string) {
	t.Helper()
	for _, f := range files {
		found := false
		for name := range texts {
			found = found || strings.HasPrefix(name, f+"#")
		}
		if !found {
			t.Errorf("%s does not show it any more", f)
		}
	}
}

func TestThreat31_EveryExampleAndChartMakesAnAgentAttestWhenItStartsAgain(t *testing.T) {
	agents := configurations(t, `plugin_cmd = "/opt/keelson/keelson-nodeattestor-agent"`)
	for name, text := range configurations(t, `plugin_cmd = "bin/keelson-nodeattestor-agent"`) {
		agents[name] = text
	}
	wanted(t, agents, "README.md", "examples/spire/agent.yaml", "examples/node-attestor/agent.conf", "nodeattestor/agentplugin/README.md")
	for name, text := range agents {
		t.Run("agent of "+name, func(t *testing.T) {
			if err := forgetful(text); err != nil {
				t.Error(err)
			}
		})
	}
	servers := configurations(t, "agent_ttl")
	wanted(t, servers, "examples/spire/server.yaml", "examples/node-attestor/server.conf")
	for name, text := range servers {
		t.Run("server of "+name, func(t *testing.T) {
			if err := impatient(text); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("charts/spire-values", func(t *testing.T) {
		text, err := os.ReadFile("../../charts/spire-values/values.yaml")
		if err != nil {
			t.Fatal(err)
		}
		values := parse(t, string(text))
		memory, _, _ := unstructured.NestedBool(values, "spire-agent", "keyManager", "memory", "enabled")
		disk, said, _ := unstructured.NestedBool(values, "spire-agent", "keyManager", "disk", "enabled")
		if !memory || disk || !said { // the upstream chart's default is the disk
			t.Errorf("keyManager: memory %t, disk %t (said: %t); want memory alone, said", memory, disk, said)
		}
		ttl, _, _ := unstructured.NestedString(values, "spire-server", "agentTTL")
		valid, _, _ := unstructured.NestedString(values, "spire-server", "customPlugins", "nodeAttestor", "keelson_tpm", "plugin_data", "verdict_valid_for")
		if err := short(ttl, valid); err != nil {
			t.Error(err)
		}
	})
	t.Run("people are told", func(t *testing.T) {
		for _, file := range []string{"README.md", "nodeattestor/agentplugin/README.md", "examples/node-attestor/agent.conf", "charts/spire-values/values.yaml"} {
			text, err := os.ReadFile(filepath.Join("..", "..", file))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "does not attest") {
				t.Errorf("%s does not say that an agent with its key on disk does not attest", file)
			}
		}
	})
}

// What the test above looks for is found where it is.
func TestThreat31_AnAgentThatKeepsItsKeyIsFound(t *testing.T) {
	const memory = "plugins {\n  KeyManager \"memory\" { plugin_data {} }\n}\n"
	for name, text := range map[string]string{
		"on disk":                strings.Replace(memory, "memory", "disk", 1),
		"both":                   memory + "KeyManager \"disk\" {}\n",
		"none: SPIRE refuses it": "plugins {}\n",
		"in a comment alone":     "plugins {\n  # KeyManager \"memory\" {}\n}\n",
		"behind another comment": "plugins { // KeyManager \"memory\" {}\n}\n",
	} {
		if forgetful(text) == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if err := forgetful(memory + "# not KeyManager \"disk\"\n"); err != nil {
		t.Error(err)
	}
	const ttl = "server {\n  agent_ttl = \"10m\" # short\n}\n"
	for name, text := range map[string]string{
		"no agent_ttl":                 "server {}\n",
		"in a comment alone":           "# agent_ttl = \"10m\"\n",
		"an hour":                      strings.Replace(ttl, "10m", "1h", 1),
		"no time":                      strings.Replace(ttl, "10m", "soon", 1),
		"a verdict that ends too soon": ttl + "verdict_valid_for = \"5m\"\n",
	} {
		if impatient(text) == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if err := impatient(ttl + "  verdict_valid_for = \"15m\"\n"); err != nil {
		t.Error(err)
	}
}
