package trustgraph_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// life is one pod, what happens to it, and the labels that policy-sync gives it.
type life struct {
	s   snapshot.Snapshot
	pod *corev1.Pod
	// bad is true once an image that is refused was ever part of the pod.
	bad bool
	// since is when the pod was first retained in a row, in the memory of one replica.
	since time.Time
}

func newLife() *life {
	l := &life{s: snapshottest.Demo()}
	for i := range l.s.NodeTrusts {
		l.s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(l.s.At.Add(24 * time.Hour))
	}
	l.pod = l.s.Pods[apiFra]
	l.pod.Generation, l.pod.Status.ObservedGeneration = 1, 1
	l.pod.Spec.InitContainers = []corev1.Container{{Name: "setup", Image: "registry.example/good:1", SecurityContext: snapshottest.Hardened()}}
	l.pod.Spec.Containers[0].Image = "registry.example/good:1"
	l.pod.Status.InitContainerStatuses, l.pod.Status.ContainerStatuses = nil, nil
	l.answer("good")
	l.answer("bad")
	return l
}

// answer makes an image's result known.
func (l *life) answer(image string) {
	s := snapshottest.Status("x", image)
	v := snapshot.Verification{Accepted: image == "good", ValidUntil: l.s.At.Add(24 * time.Hour)}
	if !v.Accepted {
		v.Reason = "no signature"
	}
	l.s.Images[snapshot.KeyOf(s, "")] = snapshot.Image{Manifests: []string{snapshottest.Digest(image)}, Verifiers: map[string]snapshot.Verification{"release-key": v}}
}

// steps are what may happen; each leaves a status that a kubelet could write.
func (l *life) steps() map[string]func(t *rapid.T) {
	st, started := &l.pod.Status, func() bool { return len(l.pod.Status.InitContainerStatuses) > 0 }
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	return map[string]func(t *rapid.T){
		"init runs": func(*rapid.T) {
			if !started() {
				c := snapshottest.Status("setup", "good")
				c.State, c.ContainerID = running, "c://1"
				st.InitContainerStatuses = []corev1.ContainerStatus{c}
				st.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Image: "registry.example/good:1", State: waiting("PodInitializing")}}
			}
		},
		"main runs": func(t *rapid.T) {
			if !started() {
				return
			}
			st.InitContainerStatuses[0].State = completed()
			if st.ContainerStatuses[0].ImageID == "" {
				image := rapid.SampledFrom([]string{"good", "good", "good", "bad"}).Draw(t, "image")
				l.bad = l.bad || image == "bad"
				c := snapshottest.Status("main", image)
				c.State, c.ContainerID = running, "c://2"
				st.ContainerStatuses[0] = c
			}
		},
		"main crashes": func(*rapid.T) {
			if started() && st.ContainerStatuses[0].ImageID != "" {
				st.ContainerStatuses[0].State = waiting("CrashLoopBackOff")
				st.ContainerStatuses[0].RestartCount++
			}
		},
		"init is forgotten": func(*rapid.T) {
			if started() && st.InitContainerStatuses[0].State.Terminated != nil {
				st.InitContainerStatuses[0] = corev1.ContainerStatus{Name: "setup", Image: "registry.example/good:1", State: completed()}
			}
		},
		"resize":             func(*rapid.T) { l.pod.Generation++ },
		"kubelet catches up": func(*rapid.T) { st.ObservedGeneration = l.pod.Generation },
		"delete": func(*rapid.T) {
			if l.pod.DeletionTimestamp == nil {
				now := metav1.NewTime(l.s.At)
				l.pod.DeletionTimestamp = &now
				l.pod.Generation++
			}
		},
		"debug": func(*rapid.T) {
			if len(l.pod.Spec.EphemeralContainers) == 0 {
				l.pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
					Name: "debug", Image: "registry.example/debug:1", SecurityContext: snapshottest.Hardened()}}}
				l.pod.Generation++
			}
		},
		"debug runs": func(t *rapid.T) {
			if len(l.pod.Spec.EphemeralContainers) > 0 && len(st.EphemeralContainerStatuses) == 0 {
				image := rapid.SampledFrom([]string{"good", "bad"}).Draw(t, "image")
				l.bad = l.bad || image == "bad"
				st.EphemeralContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("debug", image)}
			}
		},
		"registry away": func(*rapid.T) {
			l.s.Images[snapshot.KeyOf(snapshottest.Status("x", "good"), "")] = snapshot.Image{Problem: "registry is away"}
		},
		"registry back": func(*rapid.T) { l.answer("good") },
		"policy-sync starts again": func(*rapid.T) {
			l.s.Attested, l.s.InheritUntil, l.since = nil, l.s.At.Add(20*time.Second), time.Time{}
		},
		"time passes": func(t *rapid.T) {
			l.s.At = l.s.At.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "seconds")) * time.Second)
		},
	}
}

// pass judges the pod, checks what must hold, and gives the labels that follow.
func (l *life) pass(t *rapid.T) {
	g, err := trustgraph.Build(l.s)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := g.Pod("payments", "api-fra-1")
	why := strings.Join(p.Why, "; ")
	for _, c := range snapshot.ContainerStatuses(l.pod) {
		if strings.Contains(c.ImageID, "/bad@") && (p.Attested || p.Retained) {
			t.Fatalf("attested %t, retained %t with an image that is refused", p.Attested, p.Retained)
		}
	}
	if p.Retained {
		if l.since.IsZero() {
			l.since = l.s.At
		}
		if l.s.At.Sub(l.since) >= snapshot.DefaultPendingGrace {
			t.Fatalf("retained for %s: %s", l.s.At.Sub(l.since), why)
		}
	} else {
		l.since = time.Time{}
	}
	for _, r := range g.Revoked {
		if r.Address == "10.1.0.10" && !l.bad && !strings.Contains(why, "longer than pendingGrace") {
			t.Fatalf("revoked, though all its images are verified: %s", why)
		}
	}
	had := l.pod.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True
	if had && !p.Attested && !p.Retained && !l.bad && !strings.Contains(why, "longer than pendingGrace") {
		t.Fatalf("its label goes, though all its images are verified: %s", why)
	}
	if p.Retained && !had {
		t.Fatal("retained without a label")
	}
	l.pod.Labels = map[string]string{"app": "api"}
	if p.Attested || p.Retained {
		l.pod.Labels[v1alpha1.PodAttestedLabel], l.pod.Labels[v1alpha1.PolicyLabel("api")] = v1alpha1.True, v1alpha1.True
	}
	l.s.Attested = g.Attested
}

// TestWhateverAPodLivesThrough: a pod with an image that is refused keeps nothing, one whose images are all verified loses nothing
// in the time that it may take to report them, and nothing is retained for longer than that.
func TestWhateverAPodLivesThrough(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLife()
		steps := l.steps()
		names := make([]string, 0, len(steps))
		for name := range steps {
			names = append(names, name)
		}
		slices.Sort(names)
		for range rapid.IntRange(5, 40).Draw(rt, "steps") {
			steps[rapid.SampledFrom(names).Draw(rt, "step")](rt)
			l.pass(rt)
		}
	})
}
