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

func identity() trustgraph.Identity {
	return trustgraph.Identity{Namespace: "payments", ServiceAccount: "api", References: []string{"prod"}, Verifiers: [][]string{nil}}
}

func render(ids ...trustgraph.Identity) []snapshot.Entry {
	return registration.Render(desired.Intents{Config: snapshot.Config{TrustDomain: "demo.example", X509SVIDTTL: time.Minute}, Identities: ids})
}

// selectors lists each entry's kind and selectors.
func selectors(entries []snapshot.Entry) []string {
	var out []string
	for _, e := range entries {
		kind := "workload"
		if registration.IsClass(e) {
			kind = "class"
		}
		for _, s := range e.Selectors {
			kind += " " + s.String()
		}
		out = append(out, kind)
	}
	slices.Sort(out)
	return out
}

func TestWhatIsRegistered(t *testing.T) {
	const base = "workload keelson:ns:payments keelson:sa:api"
	cases := map[string]struct {
		change func(id *trustgraph.Identity)
		want   []string
	}{
		"one reference set, nothing else": {func(*trustgraph.Identity) {}, []string{"class keelson_tpm:ref:prod", base}},
		"two reference sets are two aliases of one class": {func(id *trustgraph.Identity) { id.References = []string{"canary", "prod"} },
			[]string{"class keelson_tpm:ref:canary", "class keelson_tpm:ref:prod", base}},
		"tags multiply": {func(id *trustgraph.Identity) {
			id.Tags = map[string][]string{"country": {"DE", "FR"}, "rack": {"7"}}
		}, []string{"class keelson_tpm:ref:prod keelson_tpm:tag:country:de keelson_tpm:tag:rack:7", "class keelson_tpm:ref:prod keelson_tpm:tag:country:fr keelson_tpm:tag:rack:7", base}},
		"a set's name is lower case, as the attestor writes it": {func(id *trustgraph.Identity) { id.References = []string{"Prod-2026"} }, []string{"class keelson_tpm:ref:prod-2026", base}},
		"either verifier": {func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a"}, {"b"}} },
			[]string{"class keelson_tpm:ref:prod", "workload keelson:ns:payments keelson:sa:api keelson:signed-by:a", "workload keelson:ns:payments keelson:sa:api keelson:signed-by:b"}},
		"both verifiers": {func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a", "b"}} },
			[]string{"class keelson_tpm:ref:prod", "workload keelson:ns:payments keelson:sa:api keelson:signed-by:a keelson:signed-by:b"}},
		"a digest and a restricted runtime": {func(id *trustgraph.Identity) { id.Digests, id.Restricted = []string{digest}, true },
			[]string{"class keelson_tpm:ref:prod", "workload keelson:image-manifest:" + digest + " keelson:ns:payments keelson:runtime:restricted keelson:sa:api"}},
		"what cannot be met is not registered": {func(id *trustgraph.Identity) { id.Problem = "no" }, nil},
		"no reference set, no class":           {func(id *trustgraph.Identity) { id.References = nil }, []string{base}},
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
		if registration.IsClass(e) {
			continue
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

// TestEntryIDs: another grant is another entry, the same one the same.
func TestEntryIDs(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(id *trustgraph.Identity){
		"as it is":            func(*trustgraph.Identity) {},
		"other namespace":     func(id *trustgraph.Identity) { id.Namespace = "shop" },
		"other account":       func(id *trustgraph.Identity) { id.ServiceAccount = "b" },
		"restricted":          func(id *trustgraph.Identity) { id.Restricted = true },
		"other references":    func(id *trustgraph.Identity) { id.References = []string{"canary"} },
		"a verifier":          func(id *trustgraph.Identity) { id.Verifiers = [][]string{{"a"}} },
		"a tag":               func(id *trustgraph.Identity) { id.Tags = map[string][]string{"a": {"b"}} },
		"a tag cut elsewhere": func(id *trustgraph.Identity) { id.Tags = map[string][]string{"a:b": {"c"}} },
	} {
		id := identity()
		change(&id)
		for _, e := range render(id, id) {
			if registration.IsClass(e) {
				continue
			}
			if other, ok := seen[e.ID]; ok {
				t.Errorf("%s and %s have one entry ID", name, other)
			}
			seen[e.ID] = name
		}
	}
	if !slices.EqualFunc(render(identity()), render(identity()), func(a, b snapshot.Entry) bool { return a.ID == b.ID }) {
		t.Error("two renderings differ")
	}
}
