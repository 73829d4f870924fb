package policyapi_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// rendered are words of the problems that only the rendered objects have: how long they get cannot be said in a schema.
var rendered = []string{"distinct ports", "methods and paths of", "distinct callers", "DENY rules of", "peers in all its rules", "in Calico's selector language"}

// policySync is what policy-sync finds wrong with a policy: an error of decoding, or its problems.
func policySync(t *testing.T, o *unstructured.Unstructured) error {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var p v1alpha1.TrustPolicy
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	s := snapshottest.Demo()
	s.Policies = []v1alpha1.TrustPolicy{p}
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	found := slices.DeleteFunc(g.Policies[0].Problems, func(problem string) bool {
		return slices.ContainsFunc(rendered, func(words string) bool { return strings.Contains(problem, words) })
	})
	if len(found) > 0 {
		return fmt.Errorf("%s", strings.Join(found, "; "))
	}
	return nil
}

// agree fails where the API takes what policy-sync refuses, or the other way round.
func agree(t *testing.T, o *unstructured.Unstructured) (taken bool) {
	t.Helper()
	schema, ours := try(t, o), policySync(t, o)
	if (schema == nil) != (ours == nil) {
		text, _ := json.Marshal(o.Object["spec"])
		t.Errorf("the API says %v, policy-sync says %v, of %.60s\n%.2000s", schema, ours, o.GetName(), text)
	}
	return schema == nil
}

func TestTheAPIAndPolicySyncRefuseTheSameSlips(t *testing.T) {
	for name, s := range slips {
		if agree(t, policy(t, "slip", s.spec)) {
			t.Errorf("%s is taken", name)
		}
	}
	for _, spec := range right {
		agree(t, policy(t, "right", spec))
	}
}

// TestTheAPIAndPolicySyncAgreeOnRandomPolicies writes policies of legal and illegal parts.
func TestTheAPIAndPolicySyncAgreeOnRandomPolicies(t *testing.T) {
	const count = 2500
	r := rand.New(rand.NewPCG(1, 2)) // repeatable
	taken := 0
	for range count {
		g := gen{r: r, wrong: 0.02 * r.Float64()}
		o := policy(t, "random", "{}")
		if g.slip() {
			o.SetName([]string{"default-deny", strings.Repeat("n", 200), strings.Repeat("n", 201)}[r.IntN(3)])
		}
		o.Object["spec"] = g.spec()
		if agree(t, o) {
			taken++
		}
	}
	t.Logf("%d policies: %d taken, %d refused by both", count, taken, count-taken)
	if taken < count/10 || taken > count*9/10 {
		t.Errorf("%d of %d are taken: the policies show little", taken, count)
	}
}

// gen makes random parts of a spec, each with the chance wrong of being a slip.
type gen struct {
	r     *rand.Rand
	wrong float64
}

func (g gen) slip() bool { return g.r.Float64() < g.wrong }

func (g gen) from(good, bad []string) string {
	if g.slip() {
		return bad[g.r.IntN(len(bad))]
	}
	if g.r.IntN(200) == 0 && len(bad) > 0 { // a letter of any kind at any place
		s := good[g.r.IntN(len(good))]
		at := g.r.IntN(len(s) + 1)
		return s[:at] + string(rune(g.r.IntN(0x180))) + s[at:]
	}
	return good[g.r.IntN(len(good))]
}

func (g gen) list(limit int, one func() any) []any {
	n := g.r.IntN(4)
	if g.slip() {
		n = limit + g.r.IntN(2)
	}
	out := []any{}
	for range n {
		out = append(out, one())
	}
	return out
}

func (g gen) set(o map[string]any, key string, value func() any) {
	if g.r.IntN(2) == 0 {
		o[key] = value()
	}
}

var (
	long     = func(n int) string { return strings.Repeat("a", n) }
	accounts = []string{"api", "front", "a.b", "x-1", long(62), "0"}
	noNames  = []string{"", "Api", "a_b", "-a", "a-", "a..b", "shop/api", "*", long(63), long(254), ".a", "a ", "ä"}
	spaces   = []string{"", "shop", "payments", "a-b", long(63)}
	noSpaces = []string{"a.b", "*", "Shop", "-a", long(64), "a/b"}
	labels   = []string{"app", "example.org/x", "A.b_c-d", long(63), long(189) + "/" + long(63), "0"}
	noLabels = []string{"", "a b", "/a", "a/", "a/b/c", "A.org/x", long(64), long(254) + "/a", long(190) + "/" + long(63), "-a", "é"}
	values   = []string{"", "a", "A.b_c-d", long(63), "0"}
	noValues = []string{" ", "a b", "-a", "a-", long(64), "a/b", "é"}
	tagKeys  = []string{"country", "Rack.1", "-x", ".y", long(59), "_z"}
	noTags   = []string{"", "a/b", "a b", "a-", long(60), "é"}
	methods  = []string{"GET", "POST", "M-SEARCH", "X_Y", "A1", long(0) + strings.Repeat("A", 32)}
	noMethod = []string{"", "get", "Get", "*", "GET ", "GET,POST", "1A", strings.Repeat("A", 33), "G\tT", "É"}
	paths    = []string{"/", "/*", "/orders", "/orders/*", "/orders/{*}", "/orders/{*}/items/", "/a/{**}", "/a/{**}/b.c", "/{*}/{**}", "/é", "//", "/a//b", "/a b"[:2], "/" + long(511), "/%7Bid%7D", "/a|b", "/a\\b", "/a\u0085"}
	noPaths  = []string{"", "orders", "*", "*.js", "/orders/{id}", "/{", "/}", "/a{*}", "/{*}a", "/{**}/{*}", "/{**}/{**}", "/{*}*", "/{*}/b*", "/*/a", "/a*b", "/**", "/a?b", "/a#b", "/a b", "/a\n", "/a\x7f", "/\x00", "/" + long(512), "/a//{*}", "//{*}", "/{*}//", "/{*}/é", "/{***}", "/{}", "{*}"}
	digests  = []string{"sha256:" + strings.Repeat("0a", 32)}
	noDigest = []string{"", "latest", "sha256:abc", "sha256:" + strings.Repeat("AB", 32), "sha512:" + strings.Repeat("0a", 64), strings.Repeat("0a", 32), "sha256:" + strings.Repeat("0a", 33)}
)

func (g gen) spec() map[string]any {
	workloads := map[string]any{}
	if !g.slip() {
		workloads["serviceAccount"] = g.from(accounts, noNames)
	}
	if g.r.IntN(3) == 0 {
		workloads["selector"] = g.selector()
	}
	out := map[string]any{"workloads": workloads}
	if g.slip() {
		delete(out, "workloads")
	}
	g.set(out, "require", func() any { return g.require() })
	g.set(out, "ingress", func() any { return g.list(65, func() any { return g.rule("from", true) }) })
	g.set(out, "egress", func() any { return g.list(65, func() any { return g.rule("to", false) }) })
	return out
}

func (g gen) selector() any {
	out := map[string]any{}
	g.set(out, "matchLabels", func() any {
		m := map[string]any{}
		for range g.r.IntN(3) {
			m[g.from(labels, noLabels)] = g.from(values, noValues)
		}
		if g.slip() {
			for i := range 32 + g.r.IntN(2) {
				m[fmt.Sprint("k", i)] = "v"
			}
		}
		return m
	})
	g.set(out, "matchExpressions", func() any {
		return g.list(17, func() any {
			e := map[string]any{"key": g.from(labels, noLabels), "operator": g.from([]string{"In", "NotIn"}, []string{"in", "", "Equals", "Exists", "DoesNotExist"}), "values": []any{g.from(values, noValues)}}
			switch {
			case g.slip():
				e["values"] = g.list(65, func() any { return "v" })
			case g.r.IntN(3) == 0:
				e["operator"] = g.from([]string{"Exists", "DoesNotExist"}, []string{"In", "exists"})
				delete(e, "values")
			}
			return e
		})
	})
	return out
}

func (g gen) tags() any {
	m := map[string]any{}
	for range g.r.IntN(3) {
		m[g.from(tagKeys, noTags)] = append(g.list(65, func() any { return "v" }), g.from(values[1:], noValues))
	}
	if g.slip() {
		m["empty"] = []any{}
	}
	if g.slip() {
		for i := range 8 + g.r.IntN(2) {
			m[fmt.Sprint("k", i)] = []any{"v"}
		}
	}
	return m
}

func (g gen) require() any {
	node, image, out := map[string]any{}, map[string]any{}, map[string]any{}
	g.set(node, "references", func() any {
		return g.list(17, func() any {
			return g.from([]string{"prod", "a b", long(253), strings.Repeat("é", 253)}, []string{"", long(254)})
		})
	})
	g.set(node, "tags", g.tags)
	g.set(image, "verifiedBy", func() any {
		return g.list(17, func() any {
			return g.from([]string{"release-key", "a", long(63)}, []string{"", "A", "a.b", long(64), "a_b", "-a"})
		})
	})
	g.set(image, "verifiedByAll", func() any {
		return g.list(17, func() any { return g.from([]string{"release-key", "a"}, []string{"", "A"}) })
	})
	if g.r.IntN(4) == 0 {
		names, _ := image["verifiedBy"].([]any)
		for i := range names {
			names[i] = fmt.Sprint("v", i)
		}
		image["verifiedByAtLeast"] = int64(1)
		switch {
		case g.slip():
			image["verifiedByAtLeast"] = []int64{0, -1, 11, 1 << 31, int64(len(names) + 1)}[g.r.IntN(5)]
		case len(names) == 0 && !g.slip():
			delete(image, "verifiedByAtLeast")
		case len(names) > 0:
			image["verifiedByAtLeast"] = 1 + g.r.Int64N(int64(len(names)))
		}
	}
	g.set(image, "digests", func() any { return g.list(65, func() any { return g.from(digests, noDigest) }) })
	if g.slip() {
		image[g.from([]string{"scan", "sbom", "provenance", "drift"}, nil)] = map[string]any{"x": int64(1)}
	}
	if g.slip() {
		out["drift"] = map[string]any{}
	}
	g.set(out, "node", func() any { return node })
	g.set(out, "image", func() any { return image })
	g.set(out, "runtime", func() any {
		return g.from([]string{"baseline", "restricted", "any", ""}, []string{"Restricted", "privileged"})
	})
	return out
}

func (g gen) rule(peers string, http bool) any {
	out := map[string]any{peers: append(g.list(64, func() any { return map[string]any{"serviceAccount": "front"} }), g.peer())}
	if g.slip() {
		out[peers] = []any{}
	}
	g.set(out, "ports", func() any {
		return g.list(33, func() any {
			if g.slip() {
				return []int64{0, -1, 65536, 1 << 31}[g.r.IntN(4)]
			}
			return []int64{1, 80, 65535}[g.r.IntN(3)]
		})
	})
	if http {
		g.set(out, "http", func() any { return g.list(33, g.request) })
	}
	return out
}

func (g gen) peer() any {
	out := map[string]any{"serviceAccount": g.from(accounts, noNames)}
	g.set(out, "namespace", func() any { return g.from(spaces, noSpaces) })
	if g.r.IntN(4) == 0 {
		out["podSelector"] = g.selector()
	}
	if g.r.IntN(4) == 0 {
		out["tags"] = g.tags()
	}
	return out
}

func (g gen) request() any {
	out := map[string]any{}
	g.set(out, "methods", func() any {
		return append(g.list(17, func() any { return "GET" }), g.from(methods, noMethod))
	})
	if _, some := out["methods"]; !some || g.r.IntN(2) == 0 {
		out["paths"] = append(g.list(65, func() any { return "/" }), g.from(paths, noPaths))
	}
	if g.slip() {
		return map[string]any{"methods": []any{}}
	}
	return out
}
