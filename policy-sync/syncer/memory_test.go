package syncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// paper is a memory that keeps what is written on it.
type paper struct {
	mu    sync.Mutex
	pods  []snapshot.Attested
	saves int
	beats int
	err   error
	hang  bool
}

func (p *paper) Load(ctx context.Context) ([]snapshot.Attested, error) {
	if p.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pods), p.err
}

func (p *paper) Save(_ context.Context, pods []snapshot.Attested) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods, p.saves = slices.Clone(pods), p.saves+1
	return nil
}

func (p *paper) Beat(context.Context, time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
	return nil
}

func (p *paper) count() (pods, beats int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pods), p.beats
}

// revokedNets are the addresses of the live set.
func (w *fakeWorld) revokedNets() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.s.Objects {
		if o.GetKind() == "GlobalNetworkSet" {
			nets, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "nets")
			return strings.Join(nets, " ")
		}
	}
	return ""
}

// TestANewLeaderKnowsWhatTheOldOneAttested: a machine takes its pod out of the API, the leader changes, and the machine turns bad.
func TestANewLeaderKnowsWhatTheOldOneAttested(t *testing.T) {
	w := newFake(t)
	memory := &paper{}
	old := w.syncer()
	old.o.Memory = memory
	w.sync(old)
	within(t, "the memory is written", func() bool {
		w.mu.Lock()
		w.now = w.now.Add(saveEvery)
		w.mu.Unlock()
		w.sync(old)
		pods, beats := memory.count()
		return pods > 0 && beats > 0
	})
	old.flush(t.Context())
	address := ""
	w.mu.Lock()
	w.s.Pods = slices.DeleteFunc(slices.Clone(w.s.Pods), func(p *corev1.Pod) bool {
		if p.Name == "api-fra-1" {
			address = p.Status.PodIP
		}
		return p.Name == "api-fra-1"
	})
	w.mu.Unlock()
	next := w.syncer()
	next.o.Memory = memory
	w.proveBad()
	w.sync(next)
	if nets := w.revokedNets(); !strings.Contains(nets, address+"/32") {
		t.Errorf("revoked are %s, which lacks %s", nets, address)
	}
}

// TestAMemoryThatIsAwayDelaysNothing: what closes does not wait for it, and nothing is written over what was not read.
func TestAMemoryThatIsAwayDelaysNothing(t *testing.T) {
	for name, memory := range map[string]*paper{
		"if it hangs, go on without":          {hang: true},
		"if it cannot be read, go on without": {err: errors.New("connection refused"), pods: make([]snapshot.Attested, 1)},
		"if it is corrupt, begin with none":   {err: fmt.Errorf("x: %w", kube.ErrForgotten)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFake(t)
			s := w.syncer()
			s.o.Memory, s.o.Timeout = memory, time.Minute
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			begun := time.Now()
			for range 4 {
				if _, err := s.Sync(ctx); err != nil {
					t.Fatal(err)
				}
			}
			w.proveBad()
			w.ops = nil
			if _, err := s.Sync(ctx); err != nil || !slices.ContainsFunc(w.ops, func(o plan.Operation) bool { return o.Target.Kind == "Node" && o.Target.Name == "fra-1" }) {
				t.Errorf("fra-1 is not closed: %v", err)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			memory.mu.Lock()
			defer memory.mu.Unlock()
			if lost := memory.saves > 0; lost && !errors.Is(memory.err, kube.ErrForgotten) {
				t.Error("written over what was not read")
			}
		})
	}
}

// TestACleanStopWritesTheMemory: what was attested since the memory was last written is in it when the loop has ended.
func TestACleanStopWritesTheMemory(t *testing.T) {
	w := newFake(t)
	s, memory := w.syncer(), &paper{}
	s.o.Memory = memory
	w.realTime(s)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Start(ctx) }()
	known := func(name string) bool {
		memory.mu.Lock()
		defer memory.mu.Unlock()
		return slices.ContainsFunc(memory.pods, func(a snapshot.Attested) bool { return a.Name == name })
	}
	within(t, "the memory is written", func() bool { return known("api-fra-1") })
	w.mu.Lock()
	w.s.Pods = append(slices.Clone(w.s.Pods), snapshottest.Pod("shop", "late", "frontend", "par-1", "10.2.0.77"))
	snapshottest.Verify(&w.s)
	w.mu.Unlock()
	s.Trigger()
	within(t, "the new pod is attested", func() bool { return slices.Contains(w.attestedPods(), "shop/late") })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !known("late") {
		t.Error("what was attested last is not in the memory")
	}
}
