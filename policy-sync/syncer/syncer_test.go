package syncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proveBad makes fra-1's verdict untrusted.
func (w *fakeWorld) proveBad() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s.NodeTrusts = slices.Clone(w.s.NodeTrusts)
	s := &w.s.NodeTrusts[0].Spec
	s.Verdict, s.Reference = v1alpha1.VerdictUntrusted, ""
	s.AttestedAt = metav1.NewMicroTime(w.now)
	s.ValidUntil = metav1.NewMicroTime(w.now.Add(time.Hour))
}

func (w *fakeWorld) node(name string) corev1.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.s.Nodes, func(n corev1.Node) bool { return n.Name == name })
	return w.s.Nodes[i]
}

func (w *fakeWorld) attestedPods() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i := range w.s.Pods {
		if w.s.Pods[i].Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True {
			out = append(out, snapshot.Key(w.s.Pods[i]))
		}
	}
	return out
}

func TestAPassClosesBeforeItOpens(t *testing.T) {
	w := newFake(t)
	ops := w.sync(w.syncer())
	last := plan.Revoke
	for _, o := range ops {
		if !last.Closing() && o.Phase.Closing() {
			t.Errorf("%s comes after a %s", o, last)
		}
		last = max(last, o.Phase)
	}
	if len(w.attestedPods()) == 0 {
		t.Error("no pod was attested")
	}
	if ops = w.sync(w.syncer()); len(ops) > 0 {
		t.Errorf("a steady state was written to: %v", ops)
	}
}

// Between two passes a machine takes its pods out of the API, and then fails its attestation: what they had is cut off.
func TestThreat34_APassRemembersWhatTheOneBeforeAttested(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	addresses := map[string]bool{}
	w.mu.Lock()
	w.s.Pods = slices.DeleteFunc(slices.Clone(w.s.Pods), func(p *corev1.Pod) bool {
		if p.Spec.NodeName != "fra-1" {
			return false
		}
		if p.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True {
			addresses[p.Status.PodIP] = true
		}
		return true
	})
	w.mu.Unlock()
	w.sync(s)
	w.proveBad()
	for _, o := range w.sync(s) {
		if o.Phase == plan.Revoke && o.Target.Kind == "GlobalNetworkSet" {
			nets, _, _ := unstructured.NestedStringSlice(o.Object.Object, "spec", "nets")
			for _, net := range nets {
				delete(addresses, strings.TrimSuffix(net, "/32"))
			}
			if len(addresses) > 0 {
				t.Errorf("revoked are %v, which lacks %v", nets, addresses)
			}
			return
		}
	}
	t.Errorf("no address was revoked; attested pods had %v", addresses)
}

func TestAFailedReadChangesNothing(t *testing.T) {
	w := newFake(t)
	w.readErr = errors.New("list pods: connection refused")
	s := w.syncer()
	if _, err := s.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing is changed") {
		t.Errorf("got %v", err)
	}
	if len(w.ops)+len(w.reports) > 0 {
		t.Errorf("written: %v %v", w.ops, w.reports)
	}
}

func TestThreat33_SPIREAwayClosesAndOpensNothing(t *testing.T) {
	cases := map[string]func(*fakeWorld){
		"if it refuses the connection": func(w *fakeWorld) { w.spireErr = errGone },
		"if it hangs":                  func(w *fakeWorld) { w.hang = make(chan struct{}) },
	}
	for name, breakIt := range cases {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			s := w.syncer()
			w.sync(s)
			breakIt(w)
			w.proveBad()
			w.ops = nil
			s.o.Timeout = time.Minute // far beyond what a pass takes on the busiest machine
			begun := time.Now()
			if _, err := s.Sync(t.Context()); (err == nil) != (w.hang != nil) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(begun); took > s.o.Timeout/2 {
				t.Errorf("the pass took %s: it waited for SPIRE", took)
			}
			if n := w.node("fra-1"); n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictUntrusted) || len(n.Spec.Taints) == 0 {
				t.Errorf("fra-1 is not closed: labels %v, taints %v", n.Labels, n.Spec.Taints)
			}
			if i := slices.IndexFunc(w.attestedPods(), func(p string) bool { return strings.HasSuffix(p, "fra-1") }); i >= 0 {
				t.Errorf("its pods keep their labels: %v", w.attestedPods())
			}
			for _, o := range w.ops {
				if !o.Phase.Closing() || onSPIRE(o) {
					t.Errorf("done without SPIRE: %s", o)
				}
			}
			if w.hang != nil {
				close(w.hang)
				w.eventually(t, s)
			}
		})
	}
}

// eventually waits until the late answer triggers a pass and that pass evicts the agent.
func (w *fakeWorld) eventually(t *testing.T, s *Syncer) {
	t.Helper()
	select {
	case <-s.trigger:
	case <-time.After(10 * time.Second):
		t.Fatal("the late answer triggered no pass")
	}
	if !slices.ContainsFunc(w.sync(s), func(o plan.Operation) bool {
		return o.Action == plan.DeleteAgent && o.AgentID == snapshottest.AgentID("fra-1")
	}) {
		t.Error("the agent of fra-1 was not evicted")
	}
}

func TestADataPlaneThatHangsKeepsNoLabelOn(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	w.proveBad()
	w.hangs = func(o plan.Operation) bool { return strings.HasPrefix(o.Target.Group, "projectcalico") }
	done := make(chan error)
	begun := time.Now()
	go func() {
		_, err := s.Sync(t.Context())
		done <- err
	}()
	within(t, "fra-1 is closed", func() bool {
		return w.node("fra-1").Labels[v1alpha1.NodeVerdictLabel] == string(v1alpha1.VerdictUntrusted)
	})
	select {
	case err := <-done:
		t.Errorf("the label went only with the end of the pass (%v)", err)
		return
	default:
	}
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 6*s.o.Timeout { // about one timeout, not one for each of the many objects
		t.Errorf("the pass took %s", took)
	}
	if len(w.reports) == 0 || len(w.reports[len(w.reports)-1].Changes) == 0 {
		t.Error("what was done is not reported")
	}
}

func TestAProvedBadNodeLosesItsAgentAfterItsLabels(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	w.proveBad()
	ops := w.sync(s)
	index := func(match func(plan.Operation) bool) int { return slices.IndexFunc(ops, match) }
	set := index(func(o plan.Operation) bool { return o.Target.Kind == "GlobalNetworkSet" })
	node := index(func(o plan.Operation) bool { return o.Target.Kind == "Node" && o.Target.Name == "fra-1" })
	agent := index(func(o plan.Operation) bool { return o.AgentID == snapshottest.AgentID("fra-1") })
	if set < 0 || node < set || agent < node {
		t.Errorf("order: revoked addresses %d, node %d, agent %d in %v", set, node, agent, ops)
	}
}

func TestAFailedClosingOperationKeepsEverythingShut(t *testing.T) {
	w := newFake(t)
	refused := errors.New("denied")
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "GlobalNetworkPolicy" {
			return refused
		}
		return nil
	}
	if _, err := w.syncer().Sync(t.Context()); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	for _, o := range w.ops {
		if !o.Phase.Closing() {
			t.Errorf("opened: %s", o)
		}
	}
	if !slices.ContainsFunc(w.ops, func(o plan.Operation) bool { return o.Target.Kind == "PeerAuthentication" }) {
		t.Error("other closing operations were held up by the one that failed")
	}
	status := w.reports[0].Policies[0].Status.Conditions
	i := slices.IndexFunc(status, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionProgrammed })
	if status[i].Status != metav1.ConditionFalse || !strings.Contains(status[i].Message, "denied") {
		t.Errorf("condition: %+v", status[i])
	}
}

func TestAFailedOpeningOperationEndsTheOpening(t *testing.T) {
	w := newFake(t)
	w.applyErr = func(o plan.Operation) error {
		if o.Action == plan.CreateEntry {
			return errors.New("datastore is read-only")
		}
		return nil
	}
	if _, err := w.syncer().Sync(t.Context()); err == nil {
		t.Error("no error")
	}
	if pods := w.attestedPods(); len(pods) > 0 {
		t.Errorf("pods were labelled though their entries failed: %v", pods)
	}
}

func TestAStaleStatusIsNotTold(t *testing.T) {
	w := newFake(t)
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "Node" {
			return fmt.Errorf("patch: %w", kube.ErrStale)
		}
		return nil
	}
	_, err := w.syncer().Sync(t.Context())
	if !IsStale(err) {
		t.Errorf("got %v, want a stale error", err)
	}
	if len(w.reports[0].Policies) > 0 {
		t.Errorf("told: %+v", w.reports[0].Policies)
	}
}

func TestARestartTakesNoLabelAway(t *testing.T) {
	w := newFake(t)
	w.sync(w.syncer())
	before := w.attestedPods()
	images := w.s.Images
	w.s.Images = nil // a new replica knows no image yet
	s := w.syncer()
	if ops := w.sync(s); len(ops) > 0 {
		t.Errorf("written: %v", ops)
	}
	w.proveBad()
	w.sync(s)
	if i := slices.IndexFunc(w.attestedPods(), func(p string) bool { return strings.HasSuffix(p, "fra-1") }); i >= 0 {
		t.Error("a proved-bad node's pods were spared by the warm-up")
	}
	w.now = w.now.Add(2 * time.Minute)
	w.sync(s)
	if pods := w.attestedPods(); len(pods) > 0 {
		t.Errorf("after the warm-up, an unknown image still counts: %v", pods)
	}
	w.s.Images = images
	w.sync(s)
	if len(w.attestedPods()) == 0 || len(w.attestedPods()) > len(before) {
		t.Errorf("with the images known: %v", w.attestedPods())
	}
}

func TestANewImageIsNotVerifiedOnceWarm(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	w.mu.Lock()
	w.s.Pods = slices.Clone(w.s.Pods)
	p := w.s.Pods[0].DeepCopy()
	p.Status.ContainerStatuses[0].ImageID = "sha256:" + strings.Repeat("c", 64)
	w.s.Pods[0] = p
	w.mu.Unlock()
	w.sync(s)
	if slices.Contains(w.attestedPods(), snapshot.Key(p)) {
		t.Errorf("pod %s keeps its label with an image that nobody verified", snapshot.Key(p))
	}
}

func TestNextExpiry(t *testing.T) {
	w := newFake(t)
	s := w.s
	first := s.At.Add(3 * time.Minute)
	s.NodeTrusts = slices.Clone(s.NodeTrusts)
	s.NodeTrusts[1].Spec.ValidUntil = metav1.NewMicroTime(first)
	if got := new(expiries).of(s); !got.Equal(first) {
		t.Errorf("got %s, want %s", got, first)
	}
	s.At = first
	if got := new(expiries).of(s); !got.After(first) {
		t.Errorf("got %s, which is over", got)
	}
	s.Config.MaxHold = time.Minute
	if got := new(expiries).of(s); !got.Equal(first.Add(time.Minute)) {
		t.Errorf("got %s, want the end of the brake", got)
	}
}

func TestStartActsOnTriggersAndExpiry(t *testing.T) {
	w := newFake(t)
	w.now = time.Now()
	for i := range w.s.NodeTrusts {
		w.s.NodeTrusts[i].Spec.AttestedAt = metav1.NewMicroTime(w.now.Add(-time.Second))
		w.s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(w.now.Add(time.Second))
	}
	s := w.syncer()
	s.o.Now = func() time.Time { // both the world's and the loop's
		w.mu.Lock()
		defer w.mu.Unlock()
		w.now = time.Now()
		return w.now
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Start(ctx) }()
	within(t, "fra-1 is trusted", func() bool { return w.node("fra-1").Labels[v1alpha1.NodeVerdictLabel] != "" })
	within(t, "its verdict ends without a trigger", func() bool { return w.node("fra-1").Labels[v1alpha1.NodeVerdictLabel] == "" })
	w.mu.Lock()
	w.s.NodeTrusts = slices.Clone(w.s.NodeTrusts)
	w.s.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(time.Now().Add(time.Hour))
	w.mu.Unlock()
	s.Trigger()
	within(t, "a trigger leads to a pass", func() bool { return w.node("fra-1").Labels[v1alpha1.NodeVerdictLabel] != "" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 2000 {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within ten seconds", what)
}

func TestTriggerNeverBlocksAndIsNotLost(t *testing.T) {
	s := newFake(t).syncer()
	s.Trigger()
	s.Trigger()
	if len(s.trigger) != 1 {
		t.Errorf("%d triggers wait, want one", len(s.trigger))
	}
}

func TestIsStale(t *testing.T) {
	other := errors.New("denied")
	stale := fmt.Errorf("x: %w", kube.ErrStale)
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"if one object changed, yes":          {stale, true},
		"if the SPIRE server changed, yes":    {fmt.Errorf("y: %w", spireapi.ErrStale), true},
		"if several changed, yes":             {errors.Join(stale, errors.Join(stale, stale)), true},
		"if one of several failed, no":        {errors.Join(stale, other), false},
		"if one of several within failed, no": {errors.Join(stale, fmt.Errorf("z: %w", errors.Join(other, stale))), false},
		"if something failed, no":             {other, false},
		"if nothing failed, no":               {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := IsStale(tc.err); got != tc.want {
				t.Errorf("got %t, want %t", got, tc.want)
			}
		})
	}
}
