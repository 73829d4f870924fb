package syncer

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// found lists the findings that were reported, and forgets them.
func (w *fakeWorld) found() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, r := range w.reports {
		for _, f := range r.Findings {
			out = append(out, f.Reason+" "+f.Regarding.Kind+" "+f.Regarding.Namespace+"/"+f.Regarding.Name+": "+f.Note)
		}
	}
	w.reports = nil
	slices.Sort(out)
	return out
}

// TestAPodThatIsNotAttestedIsToldOncePerCause: and so is a refused policy.
func TestAPodThatIsNotAttestedIsToldOncePerCause(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	w.sync(s)
	w.found()
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", "stranger", "api", "evil-1", "10.3.0.88"))
	bad := snapshottest.API()
	bad.Name, bad.UID, bad.Spec.Ingress[0].HTTP = "bad", "bad", []v1alpha1.HTTPRule{{Methods: []string{"get"}}}
	bad.Spec.Workloads.ServiceAccount = "nobody"
	w.s.Policies = append(slices.Clone(w.s.Policies), bad)
	_ = w.passes(s, 3)
	got := strings.Join(w.found(), "\n")
	if strings.Count(got, "NotAttested Pod payments/stranger") != 1 || strings.Count(got, "Refused TrustPolicy payments/bad") != 1 {
		t.Errorf("told:\n%s", got)
	}
	w.s.Policies[len(w.s.Policies)-1].Spec.Ingress[0].HTTP = []v1alpha1.HTTPRule{{Methods: []string{"post"}}}
	_ = w.passes(s, 2)
	if got := w.found(); len(got) != 1 || !strings.Contains(got[0], `"post"`) {
		t.Errorf("for another cause, told: %v", got)
	}
}

// written puts the statuses that were reported last where the next reading finds them, and forgets the reports.
func (w *fakeWorld) written() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s.Policies = slices.Clone(w.s.Policies)
	for _, r := range w.reports {
		for _, st := range r.Policies {
			for i := range w.s.Policies {
				if string(w.s.Policies[i].UID) == st.UID {
					w.s.Policies[i].Status = st.Status
				}
			}
		}
	}
	w.reports = nil
}

// TestANewLeaderTellsNothingAgain: neither of a pod, nor of a policy, nor of a crowd of pods that no status has room for. What
// differs from what the leader before told is told.
func TestANewLeaderTellsNothingAgain(t *testing.T) {
	w := newFake(t)
	bad := snapshottest.API()
	bad.Name, bad.UID, bad.Spec.Ingress[0].HTTP = "bad", "bad", []v1alpha1.HTTPRule{{Methods: []string{"get"}}}
	bad.Spec.Workloads.ServiceAccount = "nobody"
	w.s.Policies = append(slices.Clone(w.s.Policies), bad)
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", "stranger", "api", "evil-1", "10.3.0.88"))
	first := w.syncer()
	_ = w.passes(first, 3)
	w.written()
	_ = w.passes(w.syncer(), 3)
	if got := w.found(); len(got) > 0 {
		t.Errorf("a new leader told again: %v", got)
	}
	for i := range 2 * trustgraph.MaxRefused {
		w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", fmt.Sprintf("x%d", i), "api", "evil-1", fmt.Sprintf("10.3.1.%d", i)))
	}
	_ = w.passes(first, 5)
	w.written()
	second := w.syncer()
	_ = w.passes(second, 3)
	if got := w.found(); len(got) > 0 {
		t.Errorf("of a crowd, a new leader told again: %v", got)
	}
	w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", "newcomer", "api", "evil-1", "10.3.0.89"))
	w.s.Policies[len(w.s.Policies)-1].Spec.Ingress[0].HTTP = []v1alpha1.HTTPRule{{Methods: []string{"post"}}}
	_ = w.passes(second, 3)
	if got := strings.Join(w.found(), "\n"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "newcomer") || !strings.Contains(got, `"post"`) {
		t.Errorf("of what is new, told:\n%s", got)
	}
}

func TestAFloodOfFindingsIsToldInTime(t *testing.T) {
	w := newFake(t)
	for i := range 5 * mostAtOnce {
		w.s.Pods = append(w.s.Pods, snapshottest.Pod("payments", fmt.Sprintf("x%d", i), "api", "evil-1", fmt.Sprintf("10.3.1.%d", i)))
	}
	s := w.syncer()
	if _, err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.found()); n != mostAtOnce {
		t.Errorf("%d told at once, want %d", n, mostAtOnce)
	}
}

// TestAFailureIsLoggedOnceWhileItLasts: and once that it is over.
func TestAFailureIsLoggedOnceWhileItLasts(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	var log bytes.Buffer
	s.o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "AuthorizationPolicy" && o.Target.Namespace == "payments" {
			return errors.New("denied by a webhook")
		}
		return nil
	}
	_ = w.passes(s, 4)
	lines := strings.Count(log.String(), "level=ERROR")
	objects := strings.Count(log.String(), "level=ERROR msg=\"failed; what is closed stays closed\"")
	_ = w.passes(s, 4)
	if again := strings.Count(log.String(), "level=ERROR"); again != lines || lines == 0 || objects != lines {
		t.Errorf("%d errors after four passes, %d after eight:\n%s", lines, again, log.String())
	}
	if !strings.Contains(log.String(), "TrustPolicy payments/api") {
		t.Errorf("no line says whose it is:\n%s", log.String())
	}
	w.applyErr = nil
	_ = w.passes(s, 4)
	if !strings.Contains(log.String(), "fails no longer") {
		t.Error("the end of it is not logged")
	}
}

func TestReadinessSaysThatPassesFail(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	if err := s.Ready(); err != nil {
		t.Errorf("a standby: %v", err)
	}
	w.readErr = errors.New("connection refused")
	_ = w.passes(s, mostFailures-1)
	if err := s.Ready(); err != nil {
		t.Errorf("after few failures: %v", err)
	}
	_ = w.passes(s, 1)
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("after %d failures: %v", mostFailures, err)
	}
	w.readErr = nil
	_ = w.passes(s, 1)
	if err := s.Ready(); err != nil {
		t.Errorf("after a pass that succeeded: %v", err)
	}
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Namespace == "payments" {
			return errors.New("denied")
		}
		return nil
	}
	w.s.Policies[0].Spec.Ingress = nil
	_ = w.passes(s, 2*mostFailures)
	if err := s.Ready(); err != nil {
		t.Errorf("one team's trouble: %v", err)
	}
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "Tier" {
			return errors.New("denied")
		}
		return nil
	}
	w.s.Objects = nil
	_ = w.passes(s, 2*mostFailures)
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "Tier keelson") {
		t.Errorf("without the tier: %v", err)
	}
}

func TestMetricsCountPodsPoliciesAndWhatIsWithheld(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	registry := prometheus.NewRegistry()
	var err error
	if s.o.Metrics, err = NewMetrics(registry); err != nil {
		t.Fatal(err)
	}
	w.applyErr = func(o plan.Operation) error {
		if o.Target.Kind == "AuthorizationPolicy" && o.Target.Namespace == "payments" && strings.HasSuffix(o.Target.Name, ".deny") {
			return errors.New("denied")
		}
		return nil
	}
	_ = w.passes(s, 3)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				got[strings.TrimPrefix(f.GetName(), "keelson_policy_sync_")+" "+l.GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	for _, f := range families {
		if name := f.GetName(); name == "keelson_policy_sync_revoked_addresses" {
			got["revoked"] = f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	for what, want := range map[string]float64{"revoked": 2, "pods attested": 3, "policies Programmed": 1, "policies NotApplied": 1, "withheld labels": 1, "withheld cluster": 0} {
		if got[what] != want {
			t.Errorf("%s: %v, want %v", what, got[what], want)
		}
	}
}
