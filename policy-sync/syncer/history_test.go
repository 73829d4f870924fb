package syncer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/history"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// annals is a history that keeps what is written.
type annals struct {
	mu     sync.Mutex
	images []history.Image
	err    error
	panics bool
}

func (a *annals) Load(context.Context) ([]history.Image, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.images), a.err
}

func (a *annals) Save(_ context.Context, images []history.Image) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.panics {
		panic("annals")
	}
	a.images = slices.Clone(images)
	return nil
}

func (a *annals) of(account string) []history.Image {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.images), func(i history.Image) bool { return i.Account != account })
}

// settle runs as many passes as reading and writing beside the loop need.
func (w *fakeWorld) settle(s *Syncer) {
	w.t.Helper()
	for range 5 {
		w.sync(s)
		time.Sleep(2 * time.Millisecond)
	}
}

// retag has the API's pod on fra run another image by the same name, in a new pod.
func (w *fakeWorld) retag(of string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.s.Pods {
		if p.Name != "api-fra-1" {
			continue
		}
		p = p.DeepCopy()
		p.UID, p.CreationTimestamp = p.UID+"x", metav1.NewTime(w.now)
		c := &p.Status.ContainerStatuses[0]
		c.ImageID = "registry.example.org/api@" + snapshottest.Digest(of)
		c.Image = p.Spec.Containers[0].Image
		w.s.Pods[i] = p
		key := w.s.Config.ImagesOf(p, "")[0].Key
		w.s.Images[key] = snapshot.Image{Manifests: []string{snapshottest.Digest(of)}, Config: snapshottest.Digest("config" + of), SignedBy: []string{"release-key sha256:ab"},
			Verifiers: map[string]snapshot.Verification{"release-key": {Accepted: true, ValidUntil: w.s.At.Add(time.Hour)}}}
	}
}

func (w *fakeWorld) moves() (events, notes []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		for _, f := range r.Findings {
			if f.Reason == "ImageMoved" {
				events = append(events, f.Regarding.Name+": "+f.Note)
			}
		}
	}
	for _, p := range w.reports[len(w.reports)-1].Policies {
		for _, n := range p.Status.Notes {
			if strings.Contains(n, " means ") {
				notes = append(notes, p.Name+": "+n)
			}
		}
	}
	return events, notes
}

// TestAMovedTagIsFoundAndKept: an event for the pod, a note of its policy, and a record that outlives the replica.
func TestAMovedTagIsFoundAndKept(t *testing.T) {
	w := newFake(t)
	kept := &annals{}
	s := w.syncer()
	s.o.History = kept
	w.settle(s)
	if events, notes := w.moves(); len(events)+len(notes) > 0 {
		t.Fatalf("nothing has moved: %v, %v", events, notes)
	}
	first := kept.of("api")
	if len(first) == 0 || first[0].First.IsZero() || len(first[0].Nodes) == 0 {
		t.Fatalf("kept %+v", first)
	}
	w.mu.Lock()
	w.now = w.now.Add(time.Minute)
	w.mu.Unlock()
	w.retag("newer")
	w.settle(s)
	events, notes := w.moves()
	if len(events) != 1 || !strings.HasPrefix(events[0], "api-fra-1: app container ") || !strings.Contains(events[0], "and means "+snapshottest.Digest("newer")) {
		t.Errorf("events %v", events)
	}
	if len(notes) == 0 || !strings.Contains(notes[0], "service account api: image ") {
		t.Errorf("notes %v", notes)
	}
	now := kept.of("api")
	at := slices.IndexFunc(now, func(i history.Image) bool { return i.Manifests[0] == snapshottest.Digest("newer") })
	if at < 0 || len(now) != len(first)+1 || now[at].Config != snapshottest.Digest("confignewer") || now[at].SignedBy[0] != "release-key sha256:ab" {
		t.Errorf("kept %+v", now)
	}
	next := w.syncer()
	next.o.History = kept
	w.mu.Lock()
	w.reports = nil
	w.mu.Unlock()
	w.settle(next)
	if events, notes := w.moves(); len(events) > 0 || len(notes) == 0 {
		t.Errorf("a new leader: events %v, notes %v", events, notes)
	}
}

// TestWhatIsNotBelievedIsNotKept: a node that is not trusted, an image of which not all is known, a namespace that takes no part.
func TestWhatIsNotBelievedIsNotKept(t *testing.T) {
	for name, change := range map[string]func(w *fakeWorld){
		"the node is not trusted": func(w *fakeWorld) {
			for i := range w.s.NodeTrusts {
				w.s.NodeTrusts[i].Spec.Verdict = v1alpha1.VerdictUntrusted
			}
		},
		"the image is not known": func(w *fakeWorld) { clear(w.s.Images) },
		"a manifest is not known": func(w *fakeWorld) {
			for k, i := range w.s.Images {
				i.Partial = true
				w.s.Images[k] = i
			}
		},
		"the namespace takes no part": func(w *fakeWorld) {
			for i := range w.s.Namespaces {
				w.s.Namespaces[i].Labels = nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			kept := &annals{}
			s := w.syncer()
			s.o.History = kept
			change(w)
			w.settle(s)
			if got := kept.of("api"); len(got) > 0 {
				t.Errorf("kept %+v", got)
			}
		})
	}
}

// TestAHistoryThatFailsFailsNoPass: one that cannot be read is read again, one that is forgotten begins anew, and a panic ends no pass.
func TestAHistoryThatFailsFailsNoPass(t *testing.T) {
	w := newFake(t)
	kept := &annals{err: errors.New("the API is away")}
	s := w.syncer()
	s.o.History = kept
	w.settle(s)
	if got := kept.of("api"); len(got) > 0 {
		t.Errorf("written before it was read: %+v", got)
	}
	kept.mu.Lock()
	kept.err = kube.ErrForgotten
	kept.mu.Unlock()
	w.settle(s)
	if got := kept.of("api"); len(got) == 0 {
		t.Error("nothing is kept after it was forgotten")
	}
	kept.mu.Lock()
	kept.panics = true
	kept.mu.Unlock()
	w.mu.Lock()
	w.now = w.now.Add(time.Minute)
	w.mu.Unlock()
	w.retag("newer")
	w.settle(s)
}
