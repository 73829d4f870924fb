package leadership_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/keelson-project/keelson/policy-sync/leadership"
	"github.com/keelson-project/keelson/test/cluster"
)

const (
	namespace = "default"
	duration  = 2 * time.Second
)

// svid is what SPIRE would give a replica.
type svid struct {
	mu    sync.Mutex
	until time.Time
}

func (s *svid) get() (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until, !s.until.IsZero()
}

func (s *svid) set(until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = until
}

func valid() time.Time { return time.Now().Add(time.Hour) }

// replica is one candidate for the lease, with client-go's elector on the real API.
type replica struct {
	svid    *svid
	leads   chan time.Time
	yielded chan error
	stop    context.CancelFunc
}

func start(t *testing.T, api kubernetes.Interface, lease, name string, s *svid) *replica {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &replica{svid: s, leads: make(chan time.Time, 1), yielded: make(chan error, 1), stop: cancel}
	rules := leadership.New(api.CoordinationV1(), leadership.Options{Identity: name, LeaseDuration: duration, SVID: s.get, Now: time.Now})
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: lease}, Client: rules,
		LockConfig: resourcelock.ResourceLockConfig{Identity: name}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: duration, RenewDeadline: duration * 2 / 3, RetryPeriod: duration / 7, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { r.leads <- time.Now() }, OnStoppedLeading: func() {}}})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { elector.Run(ctx) })
	running.Go(func() { // what the manager does
		if err := rules.Start(ctx); err != nil {
			r.yielded <- err
			cancel()
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

// within is when something came; the test fails when it has not come in time.
func within[T any](t *testing.T, what string, c <-chan T, limit time.Duration) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(limit):
		t.Fatalf("%s: not within %s", what, limit)
		panic("unreachable")
	}
}

func never[T any](t *testing.T, what string, c <-chan T, during time.Duration) {
	t.Helper()
	select {
	case <-c:
		t.Fatal(what)
	case <-time.After(during):
	}
}

func lease(t *testing.T, api kubernetes.Interface, name string) *coordinationv1.Lease {
	t.Helper()
	l, err := api.CoordinationV1().Leases(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWhoLeads(t *testing.T) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	api, err := kubernetes.NewForConfig(cluster.ForTest(t, cluster.Options{}).RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func(*testing.T, kubernetes.Interface, string){
		"a replica without an SVID leaves a free lease to one that has": leavesToOthers,
		"where nobody has an SVID, somebody leads all the same":         somebodyLeads,
		"a leader without an SVID yields to one that has":               yields,
		"a leader stays where nobody has an SVID":                       stays,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, api, strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(name)))
		})
	}
}

func leavesToOthers(t *testing.T, api kubernetes.Interface, name string) {
	without := start(t, api, name, "without", &svid{})
	never(t, "a replica without an SVID took a free lease at once", without.leads, duration)
	with := start(t, api, name, "with", &svid{until: valid()})
	within(t, "the replica that has an SVID leads", with.leads, duration)
	never(t, "two replicas lead", without.leads, 3*duration)
	// It gets its own and takes over from one that ends, without waiting.
	without.svid.set(valid())
	with.stop()
	within(t, "a replica that got its SVID leads", without.leads, duration)
}

func somebodyLeads(t *testing.T, api kubernetes.Interface, name string) {
	begun := time.Now()
	one := start(t, api, name, "one", &svid{})
	if took := within(t, "a replica leads without SPIRE", one.leads, 10*duration).Sub(begun); took < 2*duration {
		t.Errorf("it led after %s, want it to wait for two lease durations", took)
	}
	// A leader that dies without giving the lease back is replaced, too.
	two := start(t, api, name, "two", &svid{until: time.Now().Add(-time.Minute)})
	never(t, "two replicas lead", two.leads, 4*duration)
	one.stop()
	within(t, "the other leads without SPIRE", two.leads, 10*duration)
}

func yields(t *testing.T, api kubernetes.Interface, name string) {
	one := start(t, api, name, "one", &svid{until: valid()})
	within(t, "the first leads", one.leads, 10*duration)
	two := start(t, api, name, "two", &svid{until: valid()})
	never(t, "a leader with an SVID yields", one.yielded, 2*duration)
	if l := lease(t, api, name); len(l.Annotations) > 0 {
		t.Errorf("nobody asked, and the lease has annotations %v", l.Annotations)
	}
	one.svid.set(time.Now())
	if err := within(t, "a leader whose SVID ended yields", one.yielded, 5*duration); !errors.Is(err, leadership.ErrYields) {
		t.Errorf("why it ended: %v", err)
	}
	within(t, "the other leads", two.leads, 2*duration)
	time.Sleep(duration)
	if l := lease(t, api, name); len(l.Annotations) > 0 {
		t.Errorf("a leader that has an SVID left annotations %v", l.Annotations)
	}
}

func stays(t *testing.T, api kubernetes.Interface, name string) {
	one := start(t, api, name, "one", &svid{until: valid()})
	within(t, "the first leads", one.leads, 10*duration)
	two := start(t, api, name, "two", &svid{})
	one.svid.set(time.Now())
	never(t, "it yields to one that has none either", one.yielded, 4*duration)
	if lease(t, api, name).Annotations[leadership.Asks] == "" {
		t.Error("it does not ask for a successor")
	}
	two.svid.set(valid())
	within(t, "it yields as soon as another has one", one.yielded, 5*duration)
	within(t, "the other leads", two.leads, 2*duration)
}
