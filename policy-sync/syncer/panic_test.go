package syncer

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func (w *fakeWorld) recorder() *panics.Recorder {
	w.t.Helper()
	r, err := panics.New(slog.New(slog.DiscardHandler), w.clock, prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// brokenSPIRE panics where it is told to.
type brokenSPIRE struct {
	SPIRE
	read, apply bool
}

func (b brokenSPIRE) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	if b.read {
		panic("index out of range")
	}
	return b.SPIRE.Read(ctx)
}

func (b brokenSPIRE) Apply(ctx context.Context, operations []plan.Operation) []error {
	if b.apply {
		panic("index out of range")
	}
	return b.SPIRE.Apply(ctx, operations)
}

// brokenPaper is a memory that panics.
type brokenPaper struct{}

func (brokenPaper) Load(context.Context) ([]snapshot.Attested, error) { panic("index out of range") }
func (brokenPaper) Save(context.Context, []snapshot.Attested) error   { panic("index out of range") }
func (brokenPaper) Beat(context.Context, time.Time) error             { panic("index out of range") }

// TestAPanicBesideThePassKeepsNothingFromClosing: whatever panics beside the pass, the program goes on, nobody waits for a result for
// ever, a verdict closes, and readiness names the panic for a while.
func TestAPanicBesideThePassKeepsNothingFromClosing(t *testing.T) {
	cases := map[string]struct {
		breaks func(w *fakeWorld, s *Syncer)
		names  string
		fails  bool
	}{
		"if one object's writing panics": {func(w *fakeWorld, _ *Syncer) {
			w.applyErr = func(o plan.Operation) error {
				if o.Object != nil && o.Target.Namespace == "shop" || o.Target.Kind == "Pod" && o.Target.Name == "frontend-fra-1" {
					panic("index out of range")
				}
				return nil
			}
		}, "writing an object", true},
		"if reading SPIRE panics":      {func(_ *fakeWorld, s *Syncer) { s.o.SPIRE = brokenSPIRE{SPIRE: s.o.SPIRE, read: true} }, "reading SPIRE entries", true},
		"if writing to SPIRE panics":   {func(_ *fakeWorld, s *Syncer) { s.o.SPIRE = brokenSPIRE{SPIRE: s.o.SPIRE, apply: true} }, "writing SPIRE entries", true},
		"if reading the memory panics": {func(_ *fakeWorld, s *Syncer) { s.o.Memory = brokenPaper{} }, "reading the memory", false},
		"if writing the memory panics": {func(_ *fakeWorld, s *Syncer) { s.o.Memory, s.keeper.loaded = brokenPaper{}, true }, "writing the memory", false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			w.sync(w.syncer())
			s := w.syncer()
			s.o.Panics = w.recorder()
			w.proveBad()
			tc.breaks(w, s)
			err := w.passes(s, 3)
			within(t, "readiness names the panic", func() bool {
				err := s.Ready()
				return err != nil && strings.Contains(err.Error(), tc.names+" panicked")
			})
			if (err != nil) != tc.fails {
				t.Errorf("the pass got %v", err)
			}
			if pods := w.attestedPods(); slices.Contains(pods, "payments/api-fra-1") {
				t.Errorf("a bad machine's pod keeps its label: %v", pods)
			}
			s.flush(t.Context())
			if w.now = w.now.Add(panics.Recent); s.o.Panics.Ready() != nil && !strings.Contains(s.o.Panics.Ready().Error(), "at the end") {
				t.Errorf("readiness speaks of it for ever: %v", s.o.Panics.Ready())
			}
		})
	}
}

// TestAnImageWhoseExaminationPanicsIsNotVerified: it is unknown, its place is free for others, and it is asked about again.
func TestAnImageWhoseExaminationPanicsIsNotVerified(t *testing.T) {
	bad, good := snapshot.ImageKey{ImageID: "registry.example/bad@sha256:1"}, snapshot.ImageKey{ImageID: "registry.example/good@sha256:2"}
	w := newFake(t)
	news := make(chan bool, 100)
	i := NewImages(func(_ context.Context, key snapshot.ImageKey) snapshot.Image {
		if key == bad {
			panic("index out of range")
		}
		return snapshot.Image{Manifests: []string{"sha256:2"}, Verifiers: map[string]snapshot.Verification{"release-key": {Accepted: true}}}
	}, func() { news <- true }, time.Hour, w.clock)
	i.Panics = w.recorder()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- i.Start(ctx) }()
	i.Results([]snapshot.ImageQuestion{{ImageKey: bad}, {ImageKey: good}})
	<-news
	<-news
	got := i.Results([]snapshot.ImageQuestion{{ImageKey: bad}, {ImageKey: good}})
	if len(got[bad].Verifiers) > 0 || got[bad].Final || !strings.Contains(got[bad].Problem, "index out of range") {
		t.Errorf("of the bad image is known: %+v", got[bad])
	}
	if !got[good].Verifiers["release-key"].Accepted {
		t.Errorf("of the good image is known: %+v", got[good])
	}
	if err := i.Panics.Ready(); err == nil {
		t.Error("readiness says nothing")
	}
	i.mu.Lock()
	if i.lines.taken != 0 || len(i.waiting) != 2 {
		t.Errorf("%d places are taken, %d images are due again", i.lines.taken, len(i.waiting))
	}
	i.mu.Unlock()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWhatWaitsForAPanickedCallGetsAnError: neither an opening nor writing beside waits for ever.
func TestWhatWaitsForAPanickedCallGetsAnError(t *testing.T) {
	w := newFake(t)
	s := w.syncer()
	operations := []plan.Operation{object(plan.Program, "a", "p", 0), object(plan.Program, "b", "p", 0)}
	p := s.progress(evidence{})
	s.lanes = nil // every run panics
	p.open(t.Context(), operations)
	if len(p.failed) != 2 || !strings.Contains(p.failed[0].Err.Error(), "opening panicked") {
		t.Errorf("failed: %v", p.failed)
	}
	if errs := <-p.beside(t.Context(), operations); len(errs) != 2 || errs[0] == nil || errors.Is(errs[0], errNoTime) {
		t.Errorf("got %v", errs)
	}
}
