package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// programmed is a policy's condition as it was reported last.
func (w *fakeWorld) programmed(namespace, name string) metav1.Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range slices.Backward(w.reports) {
		for _, p := range r.Policies {
			if p.Namespace == namespace && p.Name == name {
				return *meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionProgrammed)
			}
		}
	}
	return metav1.Condition{}
}

// passes runs n passes, whatever comes of them.
func (w *fakeWorld) passes(s *Syncer, n int) error {
	var err error
	for range n {
		w.now = w.now.Add(time.Millisecond)
		_, err = s.Sync(w.t.Context())
	}
	return err
}

func (w *fakeWorld) enrol(namespace string, policies ...v1alpha1.TrustPolicy) {
	w.s.Namespaces = append(w.s.Namespaces, snapshottest.Namespace(namespace, v1alpha1.ModeEnforce))
	w.s.Policies = append(w.s.Policies, policies...)
}

// TestARefusedObjectIsItsOwnTeamsTrouble: what the API refuses of teamx keeps no other team's pod, machine or identity waiting, and
// only the status of teamx speaks of it.
func TestARefusedObjectIsItsOwnTeamsTrouble(t *testing.T) {
	w := newFake(t)
	for i := range w.s.Policies {
		w.s.Policies[i].Spec.Require.Node.References = nil
	}
	s := w.syncer()
	w.sync(s)
	identities := len(w.spire.Entries)
	bad := snapshottest.API()
	bad.Namespace, bad.Name, bad.UID = "teamx", "orders", "orders"
	bad.Spec.Ingress[0].HTTP = nil
	w.enrol("teamx", bad)
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", "api-new", "api", "fra-1", "10.1.0.77"), snapshottest.Pod("teamx", "orders", "api", "fra-1", "10.1.0.78"))
	snapshottest.Verify(&w.s)
	refused := errors.New(`admission webhook "validation.example" denied the request`)
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "AuthorizationPolicy" && o.Target.Namespace == "teamx" && strings.HasSuffix(o.Target.Name, ".deny") {
			return refused
		}
		return nil
	}
	trust := snapshottest.Trust("fra-2", "DE")
	trust.Spec.Reference, trust.Spec.ValidUntil = "prod-2026-12", metav1.NewMicroTime(w.now.Add(time.Hour))
	w.s.Nodes, w.s.NodeTrusts = append(w.s.Nodes, snapshottest.Node("fra-2", "10.4.0.0/24")), append(w.s.NodeTrusts, trust)
	if err := w.passes(s, 6); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if pods := w.attestedPods(); !slices.Contains(pods, "payments/api-new") || slices.Contains(pods, "teamx/orders") {
		t.Errorf("attested: %v; payments/api-new should be, and teamx/orders not while what denies is not in place", pods)
	}
	if n := w.node("fra-2"); slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UntrustedTaint }) {
		t.Error("fra-2 is trusted and bears the taint")
	}
	if len(w.spire.Entries) < identities {
		t.Errorf("%d SPIRE entries are left of %d", len(w.spire.Entries), identities)
	}
	for _, p := range []string{"payments/api", "shop/frontend"} {
		namespace, name, _ := strings.Cut(p, "/")
		if c := w.programmed(namespace, name); c.Status != metav1.ConditionTrue || c.Message != "" {
			t.Errorf("%s, which nothing keeps waiting, says %s: %s", p, c.Status, c.Message)
		}
	}
	c := w.programmed("teamx", "orders")
	if c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "denied the request") || !strings.Contains(c.Message, "withheld: ") ||
		!strings.Contains(c.Message, "TrustPolicy teamx/orders") {
		t.Errorf("teamx/orders says %s: %s", c.Status, c.Message)
	}
}

// TestWhatIsRefusedHoldsBackWhatRestsOnIt goes through the parts.
func TestWhatIsRefusedHoldsBackWhatRestsOnIt(t *testing.T) {
	const payments, shop = "payments/api-fra-1", "shop/frontend-fra-1 shop/frontend-par-1"
	cases := map[string]struct {
		refuse func(o plan.Operation) bool
		pods   string
		opens  bool
	}{
		"if the tier is refused, nothing opens": {func(o plan.Operation) bool { return o.Target.Kind == "Tier" }, "", false},
		"if payments' default deny is refused, payments stays shut": {func(o plan.Operation) bool {
			return o.Target.Kind == "NetworkPolicy" && o.Target.Namespace == "payments" && strings.HasSuffix(o.Target.Name, trustgraph.ReservedPolicy)
		}, shop, true},
		"if payments' deny at L7 is refused, payments stays shut": {func(o plan.Operation) bool {
			return o.Target.Kind == "AuthorizationPolicy" && o.Target.Namespace == "payments" && strings.HasSuffix(o.Target.Name, ".deny")
		}, shop, true},
		"if payments' identities are refused, its pods wait": {func(o plan.Operation) bool {
			return o.Entry != nil && strings.HasSuffix(o.Entry.SPIFFEID, "/ns/payments/sa/api")
		}, shop, true},
		"if a node's patches are refused, no pod waits": {func(o plan.Operation) bool { return o.Target.Kind == "Node" }, payments + " " + shop, true},
		"if an audit shadow is refused, no pod waits": {func(o plan.Operation) bool {
			return o.Target.Kind == "StagedGlobalNetworkPolicy"
		}, payments + " " + shop, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			w.applyErr = func(o plan.Operation) error {
				if tc.refuse(o) {
					return errors.New("denied")
				}
				return nil
			}
			if err := w.passes(w.syncer(), 4); err == nil {
				t.Error("no error")
			}
			if pods := strings.Join(w.attestedPods(), " "); pods != tc.pods {
				t.Errorf("attested: %q, want %q", pods, tc.pods)
			}
			if opened := slices.ContainsFunc(w.ops, func(o plan.Operation) bool { return !o.Phase.Closing() }); opened != tc.opens {
				t.Errorf("something opened: %t", opened)
			}
		})
	}
}

// TestRevokedAddressesThatAreRefusedHoldBackTheirMachine: more addresses of one bad machine than the API takes are no reason to
// keep pods of other machines shut.
func TestRevokedAddressesThatAreRefusedHoldBackTheirMachine(t *testing.T) {
	w := newFake(t)
	w.applyErr = func(o plan.Operation) error {
		if o.Phase == plan.Revoke && o.Object != nil {
			if text, _ := json.Marshal(o.Object.Object["spec"]); strings.Contains(string(text), "10.3.") {
				return errors.New("spec.rules: Too many")
			}
		}
		return nil
	}
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("shop", "mirror", "default", "evil-1", "10.3.0.99"))
	s := w.syncer()
	if err := w.passes(s, 4); err == nil {
		t.Error("no error")
	}
	if pods := strings.Join(w.attestedPods(), " "); pods != "payments/api-fra-1 shop/frontend-fra-1 shop/frontend-par-1" {
		t.Errorf("attested: %s", pods)
	}
}

func bothPlanes(in desired.Intents) ([]desired.Object, error) {
	c, err := calico.Render(in)
	i, err2 := istio.Render(in)
	return append(c, i...), errors.Join(err, err2)
}

// TestWhatClosesWaitsForNoRendering: a bad machine's label and taint, its pods' labels, its addresses and its agent go, however
// long a policy takes to render. What takes long opens when it is done.
func TestWhatClosesWaitsForNoRendering(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	slow := snapshottest.Frontend()
	slow.Name, slow.UID, slow.Spec.Workloads.ServiceAccount = "slow", "slow", "nobody"
	w.s.Policies = append(slices.Clone(w.s.Policies), slow)
	w.proveBad()
	w.ops = nil
	rendering := make(chan struct{})
	s.renderer.Budget = 20 * time.Millisecond
	s.renderer.Render = func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
		if len(in.Workloads) == 1 && in.Workloads[0].Policy == "slow" {
			<-rendering
		}
		return bothPlanes(in)
	}
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	has := func(match func(plan.Operation) bool) bool { return slices.ContainsFunc(w.ops, match) }
	for what, match := range map[string]func(plan.Operation) bool{
		"the machine's label": func(o plan.Operation) bool { return o.Target.Kind == "Node" && o.Target.Name == "fra-1" },
		"its pods' labels":    func(o plan.Operation) bool { return o.Target.Kind == "Pod" && o.Target.Name == "api-fra-1" },
		"its addresses":       func(o plan.Operation) bool { return o.Target.Kind == "GlobalNetworkSet" && o.Phase == plan.Revoke },
		"its agent":           func(o plan.Operation) bool { return o.AgentID == snapshottest.AgentID("fra-1") },
	} {
		if !has(match) {
			t.Errorf("%s stayed", what)
		}
	}
	if c := w.programmed("shop", "slow"); c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "takes longer than 20ms") {
		t.Errorf("the slow policy says %s: %s", c.Status, c.Message)
	}
	if c := w.programmed("shop", "frontend"); c.Status != metav1.ConditionTrue {
		t.Errorf("another one says %s: %s", c.Status, c.Message)
	}
	close(rendering)
	<-s.trigger // the end of the rendering asks for a pass
	w.sync(s)
	if c := w.programmed("shop", "slow"); c.Status != metav1.ConditionTrue {
		t.Errorf("in the end the slow policy says %s: %s", c.Status, c.Message)
	}
}

// TestAPolicyThatCannotBeRenderedIsNobodyElsesTrouble: neither a panic nor an error ends the pass, takes objects away or opens pods.
func TestAPolicyThatCannotBeRenderedIsNobodyElsesTrouble(t *testing.T) {
	for name, fail := range map[string]func() error{
		"if it panics, only its status says so": func() error { panic("index out of range") },
		"if it fails, only its status says so":  func() error { return errors.New("index out of range") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			s := w.syncer()
			w.sync(s)
			objects := len(w.s.Objects)
			s = w.syncer()
			s.renderer.Render = func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
				if len(in.Workloads) == 1 && in.Workloads[0].Namespace == "payments" {
					if err := fail(); err != nil {
						return nil, err
					}
				}
				return bothPlanes(in)
			}
			w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", "api-new", "api", "fra-1", "10.1.0.77"), snapshottest.Pod("shop", "new", "frontend", "fra-1", "10.1.0.78"))
			snapshottest.Verify(&w.s)
			if err := w.passes(s, 3); err != nil {
				t.Fatal(err)
			}
			if pods := w.attestedPods(); slices.Contains(pods, "payments/api-new") || !slices.Contains(pods, "payments/api-fra-1") || !slices.Contains(pods, "shop/new") {
				t.Errorf("attested: %v", pods)
			}
			if len(w.s.Objects) != objects {
				t.Errorf("%d objects, %d before", len(w.s.Objects), objects)
			}
			if c := w.programmed("payments", "api"); c.Status != metav1.ConditionFalse || !strings.Contains(c.Message, "index out of range") {
				t.Errorf("payments/api says %s: %s", c.Status, c.Message)
			}
			if c := w.programmed("shop", "frontend"); c.Status != metav1.ConditionTrue {
				t.Errorf("shop/frontend says %s: %s", c.Status, c.Message)
			}
		})
	}
}

// TestATeamsAPIThatHangsKeepsNobodyWaiting: of a namespace whose objects get no answer, one is waited for, once; later passes do not wait.
func TestATeamsAPIThatHangsKeepsNobodyWaiting(t *testing.T) {
	w := newFake(t)
	w.hangs = func(o plan.Operation) bool { return o.Target.Namespace == "payments" && o.Object != nil }
	s := w.syncer()
	begun := time.Now()
	if err := w.passes(s, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 4*s.o.Timeout {
		t.Errorf("the first pass took %s", took)
	}
	begun = time.Now()
	_ = w.passes(s, 4)
	if took := time.Since(begun); took > 4*s.o.Timeout-s.o.Timeout/2 {
		t.Errorf("four more passes took %s: they waited for what did not answer before", took)
	}
	if pods := strings.Join(w.attestedPods(), " "); pods != "shop/frontend-fra-1 shop/frontend-par-1" {
		t.Errorf("attested: %s", pods)
	}
	w.mu.Lock()
	w.hangs = nil
	w.mu.Unlock()
	within(t, "payments opens once its API answers", func() bool {
		_ = w.passes(s, 1)
		return slices.Contains(w.attestedPods(), "payments/api-fra-1")
	})
}

// TestStatusesNameWhatWaitsAndForWhom: many operations that wait for one are one sentence.
func TestStatusesNameWhatWaitsAndForWhom(t *testing.T) {
	s := snapshottest.Demo()
	snapshottest.WithoutHTTP(&s)
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	own := plan.Domain{Parts: []plan.Part{{Kind: plan.Policy, Name: "payments/api"}}, Holds: true}
	deny := plan.Operation{Action: plan.Create, Object: &unstructured.Unstructured{}, Domain: own}
	deny.Target.Kind, deny.Target.Name = "AuthorizationPolicy", "keelson.api.deny"
	var missing plan.Missing
	missing.Add(deny, errors.New("denied by a webhook"))
	failed := []Failure{{Operation: deny, Err: errors.New("create keelson.api.deny: denied by a webhook")}}
	for range 50 {
		label := plan.Operation{Action: plan.Patch, Domain: plan.Domain{Parts: []plan.Part{{Kind: plan.Labels, Name: "payments/api"}}, Needs: own.Parts}}
		failed = append(failed, Failure{Operation: label, Err: missing.Holds(label)})
	}
	for _, st := range Statuses(g, failed, nil) {
		c := meta.FindStatusCondition(st.Status.Conditions, v1alpha1.ConditionProgrammed)
		switch {
		case st.Namespace == "payments" && (!strings.Contains(c.Message, "50 operations wait for create AuthorizationPolicy keelson.api.deny (TrustPolicy payments/api): denied by a webhook") ||
			strings.Count(c.Message, "wait for") != 1):
			t.Errorf("payments/%s says %q", st.Name, c.Message)
		case st.Namespace != "payments" && c.Message != "":
			t.Errorf("%s/%s says %q", st.Namespace, st.Name, c.Message)
		}
	}
}

// TestAPanicIsThePassFailure: whatever panics in what a pass decides, the process goes on, nothing opens, and the error names it;
// what the graph alone closes is closed where the panic comes later; the next pass without it does all of it.
func TestAPanicIsThePassFailure(t *testing.T) {
	for name, tc := range map[string]struct {
		from   int // 1: what is shared cannot be rendered; 2: nor policies; 0: an object without content breaks the graph or the comparison
		closes bool
	}{"a broken object": {}, "the first rendering": {from: 1}, "the rendering of policies": {from: 2, closes: true}} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			w.sync(w.syncer())
			w.s.Pods = append(w.s.Pods, snapshottest.Pod("shop", "new", "frontend", "par-1", "10.2.0.78"))
			snapshottest.Verify(&w.s)
			w.proveBad()
			s, rendered := w.syncer(), 0
			if tc.from == 0 {
				w.s.Objects = append(w.s.Objects, nil)
			}
			if tc.from == 2 {
				s.renderer.Now = func() time.Time {
					if tc.from > 0 {
						panic("index out of range")
					}
					return time.Now()
				}
			}
			s.renderer.Render = func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
				if len(in.Workloads) == 0 {
					if rendered++; tc.from == 1 && rendered >= tc.from {
						panic("index out of range")
					}
				}
				return bothPlanes(in)
			}
			_, err := s.Sync(t.Context())
			if err == nil || !strings.Contains(err.Error(), "nothing more is changed") || !strings.Contains(err.Error(), "panicked") {
				t.Fatalf("got %v", err)
			}
			if tc.from > 0 && !strings.Contains(err.Error(), "index out of range") {
				t.Errorf("the error does not name the panic: %v", err)
			}
			pods := w.attestedPods()
			if slices.Contains(pods, "shop/new") || slices.Contains(pods, "shop/frontend-fra-1") == tc.closes {
				t.Errorf("attested: %v", pods)
			}
			tc.from, w.s.Objects = 0, slices.DeleteFunc(w.s.Objects, func(o *unstructured.Unstructured) bool { return o == nil })
			if err := w.passes(s, 3); err != nil {
				t.Fatal(err)
			}
			if pods := w.attestedPods(); !slices.Contains(pods, "shop/new") || slices.Contains(pods, "shop/frontend-fra-1") {
				t.Errorf("attested afterwards: %v", pods)
			}
		})
	}
}
