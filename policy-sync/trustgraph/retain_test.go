package trustgraph_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// labelled is the demo as it is once its pods bear their labels and are remembered.
func labelled(t *testing.T) snapshot.Snapshot {
	t.Helper()
	s := snapshottest.Demo()
	s.Attested = build(t, s).Attested
	for i, policy := range map[int]string{apiFra: "api", frontFra: "frontend", frontPar: "frontend"} {
		s.Pods[i].Labels[v1alpha1.PodAttestedLabel] = v1alpha1.True
		s.Pods[i].Labels[v1alpha1.PolicyLabel(policy)] = v1alpha1.True
	}
	return s
}

func waiting(reason string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func completed() corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}
}

// fate is what became of payments/api on fra-1, which was attested.
type fate string

const (
	attested fate = "attested"
	retained fate = "retained"
	fallen   fate = "fallen"
)

func fateOf(t *testing.T, s snapshot.Snapshot) (fate, string) {
	t.Helper()
	g := build(t, s)
	p, _ := g.Pod("payments", "api-fra-1")
	revoked := false
	for _, r := range g.Revoked {
		revoked = revoked || r.Address == "10.1.0.10"
	}
	got := fallen
	switch {
	case p.Attested:
		got = attested
	case p.Retained:
		got = retained
	}
	if revoked != (got == fallen) {
		t.Errorf("%s, and its address is revoked: %t", got, revoked)
	}
	return got, strings.Join(p.Why, "; ")
}

// TestOrdinaryLifeOfAPod: what happens to pods every day takes nothing from one that was attested; what is proved otherwise does.
func TestOrdinaryLifeOfAPod(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot, p *corev1.Pod)
		want   fate
		why    string
	}{
		"it is deleted with a grace period": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			now := metav1.NewTime(s.At)
			p.DeletionTimestamp, p.Generation, p.Status.ObservedGeneration = &now, 3, 2
		}, attested, ""},
		"it is resized in place": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Generation, p.Status.ObservedGeneration = 3, 2
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": {}}
		}, attested, ""},
		"it is given a toleration, and a deadline": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Generation, p.Status.ObservedGeneration = 2, 1
			p.Spec.Tolerations, p.Spec.ActiveDeadlineSeconds = []corev1.Toleration{{Key: "foo"}}, ptr(int64(60))
		}, attested, ""},
		"its container is to run another image": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Generation, p.Status.ObservedGeneration = 2, 1
			p.Spec.Containers[0].Image = "registry.example/api:2"
		}, retained, "app container main: the pod's spec has changed to image registry.example/api:2"},
		"its container runs another image, of which nothing is known": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
		}, fallen, "it is not the one that was proved"},
		"its container runs another image, which is verified": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.ContainerStatuses[0].ImageID = "registry.example/api@" + snapshottest.Digest("other")
			snapshottest.Verify(s)
		}, attested, ""},
		"a debugging container is pulled": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			ephemeral(s, "debugger")
			p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debug", Image: "registry.example/debugger:1", State: waiting("ContainerCreating")}}
		}, attested, ""},
		"a debugging container is asked for": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			ephemeral(s, "debugger")
			p.Generation, p.Status.ObservedGeneration, p.Status.EphemeralContainerStatuses = 2, 1, nil
		}, attested, ""},
		"a debugging container of a verified image runs": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			ephemeral(s, "debugger")
			snapshottest.Verify(s)
		}, attested, ""},
		"a debugging container runs, and its image is being verified": {func(s *snapshot.Snapshot, _ *corev1.Pod) { ephemeral(s, "debugger") }, retained, "has not been examined"},
		"a debugging container of an unsigned image runs": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			ephemeral(s, "debugger")
			unsigned(s, p.Status.EphemeralContainerStatuses[0])
		}, fallen, "an ephemeral container stays in its pod: delete the pod"},
		"a debugging container is asked for by the digest of an unsigned image": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			reference := "registry.example/debugger@" + snapshottest.Digest("debugger")
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: reference, SecurityContext: snapshottest.Hardened()}}}
			unsigned(s, corev1.ContainerStatus{Image: reference, ImageID: reference})
		}, fallen, "no signature"},
		"its container crashes and waits": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State, p.Status.ContainerStatuses[0].RestartCount = waiting("CrashLoopBackOff"), 7
		}, attested, ""},
		"its machine was started again, and reports no container yet": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "main", Image: "registry.example/api:1", RestartCount: 1, State: waiting("ContainerCreating")}
		}, retained, "has not reported which image it runs"},
		"its status is gone":      {func(_ *snapshot.Snapshot, p *corev1.Pod) { p.Status.ContainerStatuses = nil }, retained, "has not reported which image it runs"},
		"the registry is away":    {func(s *snapshot.Snapshot, _ *corev1.Pod) { image(s, registryAway) }, retained, "registry is away"},
		"the verifier can't tell": {func(s *snapshot.Snapshot, _ *corev1.Pod) { image(s, signatureUnread) }, retained, "could not tell: 429"},
		"nobody may ask the registry": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			image(s, func(i *snapshot.Image) { registryAway(i); i.Final = true })
		}, fallen, "registry is away"},
		"the verifier refuses its image": {func(s *snapshot.Snapshot, p *corev1.Pod) { unsigned(s, p.Status.ContainerStatuses[0]) }, fallen, "no signature"},
		"its policy asks for a verifier that has not been asked yet": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			s.Policies[0].Spec.Require.Image.VerifiedBy = []string{"second-key"}
		}, retained, "second-key was not asked"},
		"the registry is away, and its policy asks for another place": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			image(s, registryAway)
			s.Policies[0].Spec.Require.Node.Tags = map[string][]string{"country": {"US"}}
		}, fallen, "asks for US"},
		"the registry is away, and its node's proof has ended": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			image(s, registryAway)
			s.NodeTrusts[0].Spec.ValidUntil = metav1.NewMicroTime(s.At)
		}, fallen, "its proof ended"},
		"the registry is away, and pods get no grace": {func(s *snapshot.Snapshot, _ *corev1.Pod) {
			image(s, registryAway)
			s.Config.PendingGrace = snapshot.NoPendingGrace
		}, fallen, "longer than pendingGrace (0s)"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := labelled(t)
			c.change(&s, s.Pods[apiFra])
			got, why := fateOf(t, s)
			if got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%s, want %s with %q: %s", got, c.want, c.why, why)
			}
		})
	}
}

func registryAway(i *snapshot.Image) { i.Manifests, i.Problem = nil, "registry is away" }

func signatureUnread(i *snapshot.Image) {
	i.Verifiers["release-key"] = snapshot.Verification{Unknown: true, Reason: "429 Too Many Requests"}
}

// unsigned makes the image of a status known, and refused.
func unsigned(s *snapshot.Snapshot, c corev1.ContainerStatus) {
	_, digest, _ := strings.Cut(c.ImageID, "@")
	s.Images[snapshot.KeyOf(c, "")] = snapshot.Image{Manifests: []string{digest},
		Verifiers: map[string]snapshot.Verification{"release-key": {Reason: "no signature"}}}
}

// TestAPodInItsInitPhase: an init container has peers, too; the app's containers do not exist meanwhile, and its own image counts.
func TestAPodInItsInitPhase(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot, p *corev1.Pod)
		want   bool
	}{
		"its init container runs a verified image": {func(*snapshot.Snapshot, *corev1.Pod) {}, true},
		"its init container runs an image that is not": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.InitContainerStatuses[0] = snapshottest.Status("setup", "evil")
			unsigned(s, p.Status.InitContainerStatuses[0])
		}, false},
		"its init container is not created either": {func(_ *snapshot.Snapshot, p *corev1.Pod) { p.Status.InitContainerStatuses = nil }, false},
		"its init container has ended and the app runs": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = completed()
			p.Status.ContainerStatuses[0] = snapshottest.Status("main", "api")
		}, true},
		"its init container has ended unverified and the app runs": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.InitContainerStatuses[0] = snapshottest.Status("setup", "evil")
			unsigned(s, p.Status.InitContainerStatuses[0])
			p.Status.ContainerStatuses[0] = snapshottest.Status("main", "api")
		}, false},
		"nobody reports what its init container was, and the app runs": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			p.Status.InitContainerStatuses = nil
			p.Status.ContainerStatuses[0] = snapshottest.Status("main", "api")
		}, false},
		"a sidecar runs before the app": {func(_ *snapshot.Snapshot, p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers[0].RestartPolicy = &always
		}, true},
		"the app is to run what is known to be unsigned": {func(s *snapshot.Snapshot, p *corev1.Pod) {
			reference := "registry.example/evil@" + snapshottest.Digest("evil")
			p.Spec.Containers[0].Image = reference
			unsigned(s, corev1.ContainerStatus{Image: reference, ImageID: reference})
		}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			initContainer(&s, "api")
			p := s.Pods[apiFra]
			p.Status.ContainerStatuses[0] = corev1.ContainerStatus{Name: "main", Image: "registry.example/api:1", State: waiting("PodInitializing")}
			c.change(&s, p)
			if got, _ := build(t, s).Pod("payments", "api-fra-1"); got.Attested != c.want {
				t.Errorf("attested %t, want %t: %q", got.Attested, c.want, got.Why)
			}
		})
	}
}

// TestAnInitContainerThatIsForgotten: a kubelet that is restarted after the runtime has removed an init container reports that it
// ended, without its image.
func TestAnInitContainerThatIsForgotten(t *testing.T) {
	s := snapshottest.Demo()
	initContainer(&s, "api")
	s.Attested = build(t, s).Attested
	s.Pods[apiFra].Status.InitContainerStatuses[0] = corev1.ContainerStatus{Name: "setup", Image: "registry.example/api:1", State: completed()}
	if p, _ := build(t, s).Pod("payments", "api-fra-1"); !p.Attested {
		t.Errorf("what was proved of it while it ran is forgotten: %q", p.Why)
	}
	s.Attested = nil
	if p, _ := build(t, s).Pod("payments", "api-fra-1"); p.Attested {
		t.Error("attested, though nobody knows what its init container was")
	}
}

// TestWhatIsPendingEnds: what is not known counts as a refusal in the end, and says so; and a new spell begins only after all
// was known.
func TestWhatIsPendingEnds(t *testing.T) {
	s := labelled(t)
	for i := range s.NodeTrusts {
		s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(time.Hour))
	}
	known := s.Images
	s.Images = nil
	at := s.At
	for _, step := range []struct {
		after time.Duration
		want  fate
	}{{0, retained}, {time.Minute, retained}, {2*time.Minute - time.Second, retained}, {2 * time.Minute, fallen}, {3 * time.Minute, fallen}} {
		s.At = at.Add(step.after)
		g := build(t, s)
		got, why := fateOf(t, s)
		if got != step.want {
			t.Errorf("after %s: %s, want %s: %s", step.after, got, step.want, why)
		}
		if got == fallen && !strings.Contains(why, "longer than pendingGrace (2m0s), so it counts as a refusal") {
			t.Errorf("after %s: %s", step.after, why)
		}
		if end := g.PendingEnds(); got == retained && !end.Equal(at.Add(2*time.Minute)) {
			t.Errorf("after %s: it ends at %s", step.after, end)
		}
		s.Attested = g.Attested
	}
	s.Images = known
	s.Attested = build(t, s).Attested
	s.Images = nil
	s.At = s.At.Add(time.Minute)
	if got, why := fateOf(t, s); got != retained {
		t.Errorf("a second time: %s: %s", got, why)
	}
}

// TestALabelThatNobodyRemembers: a label is believed to be another replica's for a while after the start, and only if the pod could
// have earned it.
func TestALabelThatNobodyRemembers(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   bool
	}{
		"this replica has just started": {func(s *snapshot.Snapshot) { s.InheritUntil = s.At.Add(time.Second) }, true},
		"this replica would know":       {func(s *snapshot.Snapshot) { s.InheritUntil = s.At }, false},
		"another policy's label is with it": {func(s *snapshot.Snapshot) {
			s.InheritUntil = s.At.Add(time.Second)
			s.Pods[apiFra].Labels[v1alpha1.PolicyLabel("other")] = v1alpha1.True
		}, false},
		"the pod was never labelled": {func(s *snapshot.Snapshot) {
			s.InheritUntil = s.At.Add(time.Second)
			s.Pods[apiFra].Labels = map[string]string{}
		}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := labelled(t)
			s.Attested, s.Images = nil, nil
			c.change(&s)
			if p, _ := build(t, s).Pod("payments", "api-fra-1"); p.Retained != c.want {
				t.Errorf("retained %t, want %t: %q", p.Retained, c.want, p.Why)
			}
		})
	}
}

// TestAPodThatWaitsIsRemembered: also where no address block is known, so that no address of it is.
func TestAPodThatWaitsIsRemembered(t *testing.T) {
	s := labelled(t)
	s.Nodes[0].Spec.PodCIDR, s.Nodes[0].Spec.PodCIDRs, s.Attested = "", nil, nil
	s.Attested = build(t, s).Attested
	image(&s, registryAway)
	for range 2 {
		g := build(t, s)
		if p, _ := g.Pod("payments", "api-fra-1"); !p.Retained {
			t.Fatalf("not retained: %q", p.Why)
		}
		s.Attested, s.At = g.Attested, s.At.Add(30*time.Second)
	}
	for _, a := range s.Attested.All() {
		if a.Name == "api-fra-1" && a.Pending.Equal(snapshottest.Now) {
			return
		}
	}
	t.Errorf("remembered %+v", s.Attested)
}
