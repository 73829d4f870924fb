package registration_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/registration"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const agent = "spiffe://demo.example/spire/agent/keelson_tpm/aa"

func identity() trustgraph.Identity {
	return trustgraph.Identity{Namespace: "payments", ServiceAccount: "api", References: []string{"prod"}, Verifiers: [][]string{nil},
		Nodes: []trustgraph.IdentityNode{{Name: "fra-1", AgentID: agent}}}
}

func render(ids ...trustgraph.Identity) []snapshot.Entry {
	return registration.Render(desired.Intents{Config: snapshot.Config{TrustDomain: "demo.example", X509SVIDTTL: time.Minute}, Identities: ids})
}

// selectors lists each entry's selectors.
func selectors(entries []snapshot.Entry) []string {
	var out []string
	for _, e := range entries {
		var list []string
		for _, s := range e.Selectors {
			list = append(list, s.String())
		}
		out = append(out, strings.Join(list, " "))
	}
	slices.Sort(out)
	return out
}

func TestWhatIsRegistered(t *testing.T) {
	const base = "keelson:ns:payments keelson:sa:api"
	cases := map[string]struct {
		change func(id *trustgraph.Identity)
		want   []string
	}{
		"nothing but the account": {func(*trustgraph.Identity) {}, []string{base}},
		"two nodes are two entries": {func(id *trustgraph.Identity) {
			id.Nodes = append(id.Nodes, trustgraph.IdentityNode{Name: "par-1", AgentID: agent + "bb"})
		}, []string{base, base}},
		"what is asked of the node is no selector": {func(id *trustgraph.Identity) { id.Tags = map[string][]string{"country": {"DE", "FR"}} }, []string{base}},
		"either verifier": {func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a"}, {"b"}} },
			[]string{base + " keelson:signed-by:a", base + " keelson:signed-by:b"}},
		"both verifiers": {func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a", "b"}} },
			[]string{base + " keelson:signed-by:a keelson:signed-by:b"}},
		"a digest and a restricted runtime": {func(id *trustgraph.Identity) { id.Digests, id.Restricted = []string{digest}, true },
			[]string{"keelson:image-manifest:" + digest + " keelson:ns:payments keelson:runtime:restricted keelson:sa:api"}},
		"baseline": {func(id *trustgraph.Identity) { id.Baseline = true },
			[]string{"keelson:ns:payments keelson:runtime:baseline keelson:sa:api"}},
		"both levels": {func(id *trustgraph.Identity) { id.Baseline, id.Restricted = true, true },
			[]string{"keelson:ns:payments keelson:runtime:restricted keelson:sa:api"}},
		"what cannot be met is not registered":     {func(id *trustgraph.Identity) { id.Problem = "no" }, nil},
		"what runs nowhere is not registered":      {func(id *trustgraph.Identity) { id.Nodes = nil }, nil},
		"on a node on hold nothing is to be added": {func(id *trustgraph.Identity) { id.Nodes[0].Held = true }, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			id := identity()
			c.change(&id)
			if diff := cmp.Diff(c.want, selectors(render(id))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestANodeOnHoldKeepsWhatItHas: what would be there were it not on hold may stay, entry by entry.
func TestANodeOnHoldKeepsWhatItHas(t *testing.T) {
	before := render(identity())
	id := identity()
	id.Nodes[0].Held = true
	in := desired.Intents{Config: snapshot.Config{TrustDomain: "demo.example", X509SVIDTTL: time.Minute}, Identities: []trustgraph.Identity{id}}
	if diff := cmp.Diff(before, registration.Keep(in)); diff != "" {
		t.Error(diff)
	}
}

// TestSPIREAcceptsEntries: by the rules of pkg/server/datastore/sqlstore (v1.15.3).
func TestSPIREAcceptsEntries(t *testing.T) {
	id := identity()
	id.Tags, id.Digests, id.Verifiers = map[string][]string{"country": {"DE"}}, []string{digest}, [][]string{{"release-key"}}
	chars := regexp.MustCompile(`^[-.0-9A-Z_a-z]{1,255}$`)
	for _, e := range render(id) {
		if !chars.MatchString(e.ID) || !snapshot.OwnedEntry(e) {
			t.Errorf("entry ID %q", e.ID)
		}
		if len(e.Selectors) == 0 || !strings.HasPrefix(e.SPIFFEID, "spiffe://demo.example/") || !strings.HasPrefix(e.ParentID, "spiffe://demo.example/") {
			t.Errorf("%+v", e)
		}
		if e.ParentID != agent || registration.IsClass(e) {
			t.Errorf("parent %s", e.ParentID)
		}
		if e.X509SVIDTTL != time.Minute {
			t.Errorf("lifetime %s", e.X509SVIDTTL)
		}
		for _, s := range e.Selectors {
			if _, err := workloadclaim.ParseSelector(s.Value); err != nil || s.Type != workloadclaim.SelectorType {
				t.Errorf("the workload attestor never emits %s: %v", s, err)
			}
		}
	}
}

// TestEntryIDs: an entry's ID is what it is for, so that another requirement of the node or of the runtime changes an entry where it
// is, and two clusters, identities, agents or alternatives have two.
func TestEntryIDs(t *testing.T) {
	id := func(cluster string, change func(id *trustgraph.Identity)) string {
		i := identity()
		if change != nil {
			change(&i)
		}
		out := registration.Render(desired.Intents{Config: snapshot.Config{TrustDomain: "demo.example", ClusterName: cluster}, Identities: []trustgraph.Identity{i}})
		if len(out) != 1 {
			t.Fatalf("%d entries", len(out))
		}
		return out[0].ID
	}
	want := id("", nil)
	for name, change := range map[string]func(id *trustgraph.Identity){
		"restricted":       func(id *trustgraph.Identity) { id.Restricted = true },
		"baseline":         func(id *trustgraph.Identity) { id.Baseline = true },
		"other references": func(id *trustgraph.Identity) { id.References = []string{"canary", "prod"} },
		"a tag":            func(id *trustgraph.Identity) { id.Tags = map[string][]string{"a": {"b"}} },
		"another mode":     func(id *trustgraph.Identity) { id.Mode = "audit" },
	} {
		if got := id("", change); got != want {
			t.Errorf("%s makes another entry of it", name)
		}
	}
	seen := map[string]string{want: "as it is", id("blue", nil): "another cluster"}
	for name, change := range map[string]func(id *trustgraph.Identity){
		"other namespace": func(id *trustgraph.Identity) { id.Namespace = "shop" },
		"other account":   func(id *trustgraph.Identity) { id.ServiceAccount = "b" },
		"another agent":   func(id *trustgraph.Identity) { id.Nodes[0].AgentID += "b" },
		"a verifier":      func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a"}} },
		"two verifiers":   func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a", "b"}} },
		"a digest":        func(id *trustgraph.Identity) { id.Digests = []string{digest} },
	} {
		got := id("", change)
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s have one entry ID", name, other)
		}
		seen[got] = name
	}
	if cluster, ok := snapshot.EntryCluster(snapshot.Entry{ID: id("blue", nil)}); !ok || cluster != "blue" {
		t.Errorf("an entry of cluster blue is read as one of %q (%t)", cluster, ok)
	}
}
