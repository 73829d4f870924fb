package verdict_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

var start = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

const ek1, ek2 = "1111111111111111111111111111111111111111111111111111111111111111", "2222222222222222222222222222222222222222222222222222222222222222"

func result(trusted bool, at time.Time) verdict.Result {
	r := verdict.Result{Node: "fra-1", EKHash: ek1, AgentID: "spiffe://example.org/spire/agent/keelson_tpm/" + ek1,
		Trusted: trusted, ReceivedAt: at, ValidUntil: at.Add(time.Hour)}
	if trusted {
		r.Reference = "prod"
	} else {
		r.Refusals = []nodeclaim.Refusal{{Check: "kernel.cmdline", Reason: "kernel command line is wrong"}}
	}
	return r
}

func store(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) (*verdict.Store, client.Client) {
	t.Helper()
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithInterceptorFuncs(funcs).Build()
	return verdict.NewStoreFor(c), c
}

func node() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fra-1", UID: "uid-1"}}
}

func stored(t *testing.T, c client.Client) v1alpha1.NodeTrustSpec {
	t.Helper()
	var nt v1alpha1.NodeTrust
	if err := c.Get(t.Context(), client.ObjectKey{Name: "fra-1"}, &nt); err != nil {
		t.Fatal(err)
	}
	return nt.Spec
}

func TestTheNewestReceiptStandsWhateverTheOrderOfWrites(t *testing.T) {
	cases := map[string]struct {
		writes []verdict.Result
		want   v1alpha1.Verdict
	}{
		"a late trusted write does not cover an untrusted one": {
			[]verdict.Result{result(false, start.Add(time.Second)), result(true, start)}, v1alpha1.VerdictUntrusted},
		"a later trusted one does": {
			[]verdict.Result{result(false, start), result(true, start.Add(time.Second))}, v1alpha1.VerdictTrusted},
		"of one instant the untrusted one stands, written first": {
			[]verdict.Result{result(false, start), result(true, start)}, v1alpha1.VerdictUntrusted},
		"of one instant the untrusted one stands, written last": {
			[]verdict.Result{result(true, start), result(false, start)}, v1alpha1.VerdictUntrusted},
		"a late untrusted one does not cover a newer trusted one": {
			[]verdict.Result{result(true, start.Add(time.Second)), result(false, start)}, v1alpha1.VerdictTrusted},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, c := store(t, interceptor.Funcs{}, node())
			for _, r := range tc.writes {
				if err := s.Write(t.Context(), r, start.Add(2*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			if got := stored(t, c).Verdict; got != tc.want {
				t.Errorf("verdict %s, want %s", got, tc.want)
			}
		})
	}
}

func TestSteadyResultsWriteOnlyWhenHalfTheValidityHasPassed(t *testing.T) {
	writes := 0
	s, _ := store(t, interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			writes++
			return c.Update(ctx, obj, opts...)
		},
	}, node())
	for i := range 12 { // every 5 minutes for an hour; each result is valid for one
		at := start.Add(time.Duration(i) * 5 * time.Minute)
		if err := s.Write(t.Context(), result(true, at), at); err != nil {
			t.Fatal(err)
		}
	}
	if writes != 1 {
		t.Errorf("%d updates in an hour of the same result, want 1", writes)
	}
}

func TestWhatChangesIsWrittenAtOnce(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	one, two := result(true, start), result(true, start.Add(time.Second))
	two.Tags = map[string]string{"country": "FR"}
	for _, r := range []verdict.Result{one, two} {
		if err := s.Write(t.Context(), r, r.ReceivedAt); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(two.Tags, stored(t, c).Tags); d != "" {
		t.Error(d)
	}
}

func TestThreat29_ALateTrustedWriteBetweenTwoEqualUntrustedOnesStaysOut(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	for _, r := range []verdict.Result{ // in the order in which they are written
		result(false, start), result(false, start.Add(5*time.Minute)), result(true, start.Add(3*time.Minute)),
	} {
		if err := s.Write(t.Context(), r, start.Add(6*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if got := stored(t, c); got.Verdict != v1alpha1.VerdictUntrusted {
		t.Errorf("verdict %s, want untrusted: the last evidence was bad", got.Verdict)
	}
}

func TestThreat29_AClockThatRunsAheadDoesNotSilenceOtherServers(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	ahead := result(true, start.Add(time.Hour)) // by the clock of a server that is an hour ahead
	for _, r := range []verdict.Result{ahead, result(false, start.Add(time.Minute))} {
		if err := s.Write(t.Context(), r, start.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	got := stored(t, c)
	if got.Verdict != v1alpha1.VerdictUntrusted || got.AttestedAt.Time.Before(ahead.ReceivedAt) || !got.ValidUntil.After(got.AttestedAt.Time) {
		t.Errorf("got %+v, want untrusted, attested not before %s", got, ahead.ReceivedAt)
	}
}

func TestThreat30_AnOlderTagThatASecondServerLetThroughIsNotTrusted(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	five, four := int64(5), int64(4)
	newer, older := result(true, start), result(true, start.Add(time.Second))
	newer.TagSerial, newer.Tags = &five, map[string]string{"country": "DE"}
	older.TagSerial, older.Tags = &four, map[string]string{"country": "FR"}
	for _, r := range []verdict.Result{newer, older} {
		if err := s.Write(t.Context(), r, start.Add(2*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	got := stored(t, c)
	if got.Verdict != v1alpha1.VerdictUntrusted || len(got.Tags) != 0 || *got.TagSerial != 5 || len(got.Reasons) != 1 || got.Reasons[0].Check != "tag.serial" {
		t.Errorf("got %+v, want untrusted by tag.serial, with serial 5", got)
	}
}

func TestThreat30_TheHighestTagSerialOutlivesAnOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pending.json")
	q, err := verdict.StartQueue(&writer{err: errors.New("connection refused")}, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	five := int64(5)
	tagged := result(true, start)
	tagged.TagSerial = &five
	late := result(true, start.Add(-time.Second))
	for _, r := range []verdict.Result{tagged, result(false, start.Add(time.Second)), late} {
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := q.TagSerial("fra-1", ek1); got != 5 {
		t.Errorf("serial %d while the store is away, want 5", got)
	}
	if got := q.TagSerial("fra-1", ek2); got != 0 {
		t.Errorf("serial %d of another EK, want 0", got)
	}
	q.Close()
	w := &writer{}
	if q, err = verdict.StartQueue(w, path, hclog.NewNullLogger(), clock); err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if got := w.wait(t, 1); got[0].Trusted || got[0].TagSerial == nil || *got[0].TagSerial != 5 {
		t.Errorf("written after the outage: %+v, want untrusted with serial 5", got[0])
	}
}

func TestThreat25_AClosedQueueTakesNothingAndLeavesTheFileAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pending.json")
	down := &writer{err: errors.New("connection refused")}
	old, err := verdict.StartQueue(down, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	old.Close()
	next, err := verdict.StartQueue(down, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Submit(result(false, start)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Submit(result(true, start.Add(time.Second))); !errors.Is(err, verdict.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(before), string(after)); d != "" {
		t.Errorf("a closed queue changed the file of the next one: %s", d)
	}
}

func TestThreat20_AnotherEKNeverTakesOverANodeTrust(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	if err := s.Write(t.Context(), result(true, start), start); err != nil {
		t.Fatal(err)
	}
	r := result(false, start.Add(time.Second))
	r.EKHash = ek2
	if err := s.Write(t.Context(), r, start); !errors.Is(err, verdict.ErrBoundElsewhere) {
		t.Fatalf("got %v, want ErrBoundElsewhere", err)
	}
	if got := stored(t, c); got.EKHash != ek1 || got.Verdict != v1alpha1.VerdictTrusted {
		t.Errorf("NodeTrust is now %+v", got)
	}
}

func TestTheTagSerialNeverGoesBack(t *testing.T) {
	s, c := store(t, interceptor.Funcs{}, node())
	serial := int64(7)
	with := result(true, start)
	with.TagSerial = &serial
	for _, r := range []verdict.Result{with, result(false, start.Add(time.Second))} {
		if err := s.Write(t.Context(), r, r.ReceivedAt); err != nil {
			t.Fatal(err)
		}
	}
	if got := stored(t, c).TagSerial; got == nil || *got != 7 {
		t.Errorf("tag serial %v after a result without a tag, want 7", got)
	}
	b, err := s.Binding(t.Context(), "fra-1")
	if err != nil || b.TagSerial != 7 || b.EKHash != ek1 {
		t.Errorf("binding %+v, %v", b, err)
	}
}

func TestANodeThatDoesNotExistYetGetsItsUIDLater(t *testing.T) {
	s, c := store(t, interceptor.Funcs{})
	if err := s.Write(t.Context(), result(true, start), start); !errors.Is(err, verdict.ErrNodeMissing) {
		t.Fatalf("got %v, want ErrNodeMissing", err)
	}
	if uid := stored(t, c).NodeUID; uid != "" {
		t.Fatalf("nodeUID %q of a node that does not exist", uid)
	}
	if err := c.Create(t.Context(), node()); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), result(true, start), start); err != nil {
		t.Fatal(err)
	}
	if uid := stored(t, c).NodeUID; uid != "uid-1" {
		t.Errorf("nodeUID %q, want uid-1", uid)
	}
}

func TestThreat25_BindingsWhileTheAPIIsAway(t *testing.T) {
	away := false
	s, _ := store(t, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if away {
				return errors.New("connection refused")
			}
			return c.Get(ctx, key, obj, opts...)
		},
	}, node())
	if err := s.Write(t.Context(), result(true, start), start); err != nil {
		t.Fatal(err)
	}
	away = true
	if b, err := s.Binding(t.Context(), "fra-1"); err != nil || b.EKHash != ek1 {
		t.Errorf("known binding while away: %+v, %v", b, err)
	}
	if b, err := s.Binding(t.Context(), "new-1"); err == nil {
		t.Errorf("a new binding was given while the store could not be read: %+v", b)
	}
}

// writer records what a queue writes.
type writer struct {
	mu      sync.Mutex
	err     error
	written []verdict.Result
}

func (w *writer) Write(_ context.Context, r verdict.Result, _ time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.written = append(w.written, r)
	}
	return w.err
}

func (w *writer) wait(t *testing.T, n int) []verdict.Result {
	t.Helper()
	for range 1000 {
		w.mu.Lock()
		got := append([]verdict.Result(nil), w.written...)
		w.mu.Unlock()
		if len(got) >= n {
			return got
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the queue did not write %d results", n)
	return nil
}

func clock() time.Time { return start.Add(time.Minute) }

func TestThreat25_PendingVerdictsSurviveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pending.json")
	down := &writer{err: errors.New("connection refused")}
	q, err := verdict.StartQueue(down, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []verdict.Result{result(true, start), result(false, start.Add(time.Second)), result(true, start)} {
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	q.Close()
	up := &writer{}
	q, err = verdict.StartQueue(up, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if got := up.wait(t, 1); len(got) != 1 || got[0].Trusted {
		t.Errorf("after the restart the queue wrote %+v, want the untrusted verdict alone", got)
	}
}

// slow is an API that takes its time for every write.
type slow struct{ writer }

func (w *slow) Write(ctx context.Context, r verdict.Result, now time.Time) error {
	time.Sleep(20 * time.Millisecond)
	return w.writer.Write(ctx, r, now)
}

func TestThreat25_AnUntrustedVerdictOvertakesWhatWaits(t *testing.T) {
	w := &slow{}
	q, err := verdict.StartQueue(w, filepath.Join(t.TempDir(), "p.json"), hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	const many = 50
	for i := range many {
		r := result(true, start)
		r.Node = fmt.Sprintf("node-%d", i)
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	w.wait(t, 1)
	if err := q.Submit(result(false, start.Add(time.Second))); err != nil {
		t.Fatal(err)
	}
	got := w.wait(t, many+1)
	at := slices.IndexFunc(got, func(r verdict.Result) bool { return !r.Trusted })
	if last := got[len(got)-1]; at < 0 || at == len(got)-1 || at > many/2 {
		t.Errorf("the untrusted verdict was written as number %d of %d, after %s", at+1, len(got), last.Node)
	}
	if len(got) != many+1 {
		t.Errorf("%d writes for %d results", len(got), many+1)
	}
}

func TestAnExpiredTrustedVerdictIsNotWrittenLate(t *testing.T) {
	w := &writer{}
	q, err := verdict.StartQueue(w, filepath.Join(t.TempDir(), "p.json"), hclog.NewNullLogger(), func() time.Time { return start.Add(2 * time.Hour) })
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	late, other := result(true, start), result(false, start)
	other.Node = "par-1"
	for _, r := range []verdict.Result{late, other} {
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.wait(t, 1); len(got) != 1 || got[0].Node != "par-1" {
		t.Errorf("wrote %+v, want the untrusted one alone", got)
	}
}

func TestABrokenQueueFileIsAnErrorAndNotAnEmptyQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pending.json")
	for name, text := range map[string]string{"cut": "{broken", "null": "null", "a list": "[]", "empty": "",
		"a result under another node's name": `{"fra-1": {"node": "par-1"}}`, "a result without a node": `{"": {}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verdict.StartQueue(&writer{}, path, hclog.NewNullLogger(), clock); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
	}
}
