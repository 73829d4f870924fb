package plan_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// Limits of what stands in the way of an object: Istio's definitions (512 rules, 512 entries of a rule's from and to), Calico's
// (1,024 rules in a direction, selectors of 1,024 characters), etcd's 1.5 MiB with room for what API servers add.
const (
	istioRules    = 512
	calicoRules   = 1024
	selectorChars = 1024
	objectBytes   = 900 << 10
)

// overLimit says what of an object exceeds a limit; no text if nothing does.
func overLimit(o *unstructured.Unstructured) string {
	data, err := json.Marshal(o.Object)
	if err != nil {
		return err.Error()
	}
	if len(data) > objectBytes {
		return fmt.Sprintf("%d bytes", len(data))
	}
	if rules, _, _ := unstructured.NestedSlice(o.Object, "spec", "rules"); len(rules) > istioRules {
		return fmt.Sprintf("%d rules", len(rules))
	} else if o.GetKind() == "AuthorizationPolicy" {
		for _, r := range rules {
			for _, list := range []string{"from", "to"} {
				if n, _, _ := unstructured.NestedSlice(r.(map[string]any), list); len(n) > istioRules {
					return fmt.Sprintf("%d entries in %s", len(n), list)
				}
			}
		}
	}
	for _, dir := range []string{"ingress", "egress"} {
		rules, _, _ := unstructured.NestedSlice(o.Object, "spec", dir)
		if len(rules) > calicoRules {
			return fmt.Sprintf("%d rules in %s", len(rules), dir)
		}
		for _, r := range rules {
			for _, side := range []string{"source", "destination"} {
				if s, _, _ := unstructured.NestedString(r.(map[string]any), side, "selector"); len(s) > selectorChars {
					return fmt.Sprintf("a selector of %d characters", len(s))
				}
			}
		}
	}
	return ""
}

func withinLimits(t tb, r plan.Result) {
	t.Helper()
	for _, o := range r.Objects {
		if over := overLimit(o.Unstructured); over != "" {
			t.Fatal(fmt.Sprintf("%s %s/%s: %s", o.GetKind(), o.GetNamespace(), o.GetName(), over))
		}
	}
	for _, o := range r.Plan.Operations {
		if o.Object == nil {
			continue
		}
		if over := overLimit(o.Object); over != "" {
			t.Fatal(fmt.Sprintf("%s %s: %s", o.Action, o.Target, over))
		}
	}
}

// shape is how large a policy's ingress is.
type shape struct {
	rules, peers, http, paths int
	distinct                  bool // every rule has callers of its own
	selector                  int  // values of each peer's selector
}

func shaped(s shape) v1alpha1.TrustPolicy {
	tp := snapshottest.API()
	tp.Spec.Ingress = nil
	for i := range s.rules {
		r := v1alpha1.IngressRule{Ports: []int32{int32(1000 + i)}}
		for j := range s.peers {
			account := fmt.Sprintf("caller-%03d", j)
			if s.distinct {
				account = fmt.Sprintf("caller-%03d-%03d", i, j)
			}
			p := v1alpha1.Peer{Namespace: fmt.Sprintf("team-%02d", j%7), ServiceAccount: account}
			if s.selector > 0 {
				var values []string
				for k := range s.selector {
					values = append(values, fmt.Sprintf("variant-%02d-%03d", j, k))
				}
				p.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app.kubernetes.io/instance", Operator: metav1.LabelSelectorOpIn, Values: values}}}
			}
			r.From = append(r.From, p)
		}
		for k := range s.http {
			h := v1alpha1.HTTPRule{Methods: []string{fmt.Sprintf("M%d", i*s.http+k)}}
			for n := range s.paths {
				h.Paths = append(h.Paths, fmt.Sprintf("/api/%d/%d/%d", i, k, n))
			}
			r.HTTP = append(r.HTTP, h)
		}
		tp.Spec.Ingress = append(tp.Spec.Ingress, r)
	}
	return tp
}

// TestOnePolicyIsRefusedOrFits: at every size that the API takes, a policy is refused with the limit's name, or all that is
// written for it is below the limits of the APIs that it is written to; either way it takes no time to speak of.
func TestOnePolicyIsRefusedOrFits(t *testing.T) {
	for name, tc := range map[string]struct {
		shape   shape
		refused string
	}{
		"many callers in many rules":            {shape{rules: 9, peers: 64, distinct: true}, ""},
		"the most callers":                      {shape{rules: 16, peers: 64, distinct: true}, ""},
		"too many callers":                      {shape{rules: 17, peers: 64, distinct: true}, "distinct callers"},
		"the most peers":                        {shape{rules: 32, peers: 64}, ""},
		"too many peers":                        {shape{rules: 64, peers: 64}, "peers in all its rules"},
		"too many peers with HTTP rules":        {shape{rules: 64, peers: 64, http: 32, paths: 1}, "peers in all its rules"},
		"many HTTP rules":                       {shape{rules: 64, peers: 32, http: 32, paths: 1}, ""},
		"many paths":                            {shape{rules: 1, peers: 64, http: 32, paths: 64}, ""},
		"too many paths":                        {shape{rules: 64, peers: 9, http: 32, paths: 64}, "methods and paths"},
		"callers that each have their own path": {shape{rules: 64, peers: 16, http: 1, paths: 30, distinct: true}, ""},
		"long selectors":                        {shape{rules: 1, peers: 64, selector: 40}, ""},
		"selectors that are too long":           {shape{rules: 1, peers: 1, selector: 400}, "selector language"},
	} {
		t.Run(name, func(t *testing.T) {
			w := demo()
			w.Policies[0] = shaped(tc.shape)
			begun := time.Now()
			r := mustMake(t, w.Snapshot)
			t.Logf("one plan takes %s", time.Since(begun).Round(time.Millisecond))
			withinLimits(t, r)
			p, _ := r.Graph.Policy("payments", "api")
			problems := strings.Join(p.Problems, "; ")
			if tc.refused == "" && problems != "" || !strings.Contains(problems, tc.refused) {
				t.Errorf("problems %q, want %q", problems, tc.refused)
			}
		})
	}
}

func TestWhatIsWrittenIsWithinLimits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := func(max int, label string) int { return rapid.IntRange(1, max).Draw(rt, label) }
		s := shape{rules: n(64, "rules"), peers: n(64, "peers"), distinct: rapid.Bool().Draw(rt, "distinct")}
		if rapid.Bool().Draw(rt, "http") {
			s.http, s.paths = n(32, "http"), rapid.IntRange(0, 64).Draw(rt, "paths")
		}
		if rapid.Bool().Draw(rt, "selectors") {
			s.selector = n(64, "values")
		}
		w := demo()
		w.Policies[0] = shaped(s)
		withinLimits(rt, mustMake(rt, w.Snapshot))
	})
}

// TestAnotherTeamsPoliciesTakeNoRoomOfMine: policies of shop that name payments/api add little to what is written for payments,
// and where that ends it is shop's policies that say so.
func TestAnotherTeamsPoliciesTakeNoRoomOfMine(t *testing.T) {
	for _, n := range []int{80, 1100} {
		w := demo()
		for i := range n {
			tp := snapshottest.Frontend()
			tp.Name, tp.UID = fmt.Sprintf("p%d", i), snapshottest.UID("TrustPolicy", fmt.Sprint(i))
			for j := range 64 {
				if j > 0 && n > 100 {
					break
				}
				tp.Spec.Ingress = append(tp.Spec.Ingress, v1alpha1.IngressRule{
					From: []v1alpha1.Peer{{Namespace: "payments", ServiceAccount: "api"}}, Ports: []int32{int32(2000 + j), int32(3000 + j), int32(4000 + j)}})
			}
			w.Policies = append(w.Policies, tp)
		}
		snapshottest.WithoutHTTP(&w.Snapshot)
		r := mustMake(t, w.Snapshot)
		withinLimits(t, r)
		rules, objects := 0, 0
		for _, o := range r.Objects {
			if o.GetKind() == "NetworkPolicy" && o.GetAnnotations()[v1alpha1.SourceAnnotation] == "payments/api" {
				list, _, _ := unstructured.NestedSlice(o.Object, "spec", "egress")
				rules, objects = rules+len(list), objects+1
			}
		}
		if rules > 200 {
			t.Errorf("%d policies of shop make %d egress rules of payments/api in %d objects", n, rules, objects)
		}
		mine, _ := r.Graph.Policy("payments", "api")
		theirs, _ := r.Graph.Policy("shop", fmt.Sprintf("p%d", 999))
		if len(mine.Problems)+len(mine.Blockers) > 0 {
			t.Errorf("payments/api: %q %q", mine.Problems, mine.Blockers)
		}
		if n > 1000 && !strings.Contains(strings.Join(theirs.Blockers, " "), "callers under TrustPolicy payments/api") {
			t.Errorf("shop/p999 does not say that it has no room: %q", theirs.Blockers)
		}
	}
}

// TestAnotherCallerCutsNobody: callers that share a rule keep it while one comes or goes.
func TestAnotherCallerCutsNobody(t *testing.T) {
	w := demo()
	back := snapshottest.Frontend()
	back.Name, back.UID, back.Spec.Workloads.ServiceAccount = "backend", "b", "backend"
	w.Policies = append(w.Policies, back)
	w.Pods = append(w.Pods, snapshottest.Pod("shop", "backend-fra-1", "backend", "fra-1", "10.1.0.13"))
	snapshottest.Verify(&w.Snapshot)
	w.settle(t, nil)
	reach := func(src string) bool {
		return calls(w.Snapshot, newDataplane(w.Snapshot), w.podNamed(src), w.podNamed("payments/api-fra-1"), 8443, "POST", "/charge")
	}
	always := func(plan.Phase) {
		if !reach("shop/frontend-fra-1") {
			t.Fatal("frontend is cut off")
		}
	}
	from := &w.Policies[0].Spec.Ingress[0].From
	*from = append(*from, v1alpha1.Peer{Namespace: "shop", ServiceAccount: "backend"})
	w.settle(t, always)
	if !reach("shop/backend-fra-1") {
		t.Error("backend is not let in")
	}
	*from = (*from)[:1]
	w.settle(t, always)
	if reach("shop/backend-fra-1") {
		t.Error("backend is still let in")
	}
}

func TestATakenOverObjectLosesItsOwner(t *testing.T) {
	w := settled(t)
	for i, o := range w.Objects {
		if o.GetKind() == "PeerAuthentication" && o.GetNamespace() == "payments" {
			o = o.DeepCopy()
			o.SetLabels(nil)
			o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "mine", UID: "x"}})
			w.Objects[i] = o
		}
	}
	w.settle(t, nil)
	i := slices.IndexFunc(w.Objects, func(o *unstructured.Unstructured) bool {
		return o.GetKind() == "PeerAuthentication" && o.GetNamespace() == "payments"
	})
	if owners := w.Objects[i].GetOwnerReferences(); len(owners) > 0 {
		t.Errorf("still owned by %v", owners)
	}
}
