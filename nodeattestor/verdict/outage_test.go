package verdict_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verdict"
)

// outage is an API that can be away; its results go where they can be looked at.
type outage struct {
	writer
	tries int
}

func (o *outage) Write(ctx context.Context, r verdict.Result, now time.Time) error {
	o.mu.Lock()
	o.tries++
	o.mu.Unlock()
	return o.writer.Write(ctx, r, now)
}

func (o *outage) is(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
}

// hands is a clock that a test sets.
type hands struct {
	mu  sync.Mutex
	now time.Time
}

func (h *hands) time() time.Time { h.mu.Lock(); defer h.mu.Unlock(); return h.now }

func (h *hands) advance(d time.Duration) { h.mu.Lock(); defer h.mu.Unlock(); h.now = h.now.Add(d) }

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestThreat25_TenMinutesWithoutTheAPILoseNothingAndTakeNoMoreRoom(t *testing.T) {
	const nodes, rounds = 50, 20
	clock := &hands{now: start}
	api := &outage{writer: writer{err: errors.New("connection refused")}}
	path := filepath.Join(t.TempDir(), "pending.json")
	q, err := verdict.StartQueue(api, path, hclog.NewNullLogger(), clock.time)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var first int64
	for round := range rounds { // every node attests each 30 s, for 10 minutes
		var all sync.WaitGroup
		for n := range nodes {
			all.Go(func() {
				r := result((n+round)%2 == 0, clock.time())
				r.Node = fmt.Sprintf("node-%02d", n)
				if err := q.Submit(r); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if round == 1 { // by then every node has had both verdicts
			first = size(t, path)
		}
		clock.advance(30 * time.Second)
	}
	s := q.Status()
	if s.Pending != nodes || s.Unsaved != nil || !s.Oldest.Equal(start.Add((rounds-1)*30*time.Second)) {
		t.Errorf("status %+v, want the newest result of each node", s)
	}
	if grown := size(t, path); grown > first+first/10 {
		t.Errorf("the file grew from %d to %d bytes with the length of the outage", first, grown)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files %v, %v; want the one", files, err)
	}
	api.is(nil)
	got := api.wait(t, nodes)
	if len(got) != nodes {
		t.Errorf("%d writes for %d nodes", len(got), nodes)
	}
	for _, r := range got {
		var n int
		if _, err := fmt.Sscanf(r.Node, "node-%d", &n); err != nil {
			t.Fatal(err)
		}
		if r.Trusted != ((n+rounds-1)%2 == 0) || !r.ReceivedAt.Equal(s.Oldest) {
			t.Errorf("%s: trusted %t of %s was written, which is not the newest", r.Node, r.Trusted, r.ReceivedAt)
		}
	}
}

func TestThreat25_AStateDirWithoutRoomIsAnErrorUntilItHasSome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: a small file system can only be mounted as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("skipped: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path, ballast := filepath.Join(dir, "pending.json"), filepath.Join(dir, "ballast")
	api := &outage{writer: writer{err: errors.New("connection refused")}}
	q, err := verdict.StartQueue(api, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Submit(result(true, start)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, 16<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	err = q.Submit(result(false, start.Add(time.Second)))
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room in "+dir) {
		t.Errorf("full: %v, want the cause and what to do", err)
	}
	if q.Status().Unsaved == nil {
		t.Error("the status does not say that a restart would lose a verdict")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 100 { // nobody submits anything: the queue saves by itself
		if q.Status().Unsaved == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	q.Close()
	up := &writer{}
	again, err := verdict.StartQueue(up, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := up.wait(t, 1); len(got) != 1 || got[0].Trusted {
		t.Errorf("after a restart %+v was written, want the untrusted verdict", got)
	}
}

func TestThreat25_APendingFileNeverOutgrowsWhatARestartReads(t *testing.T) {
	pending := map[string]verdict.Result{}
	long := strings.Repeat("x", 1000)
	for n := range 1020 {
		r := result(false, start)
		r.Node = fmt.Sprintf("node-%04d", n)
		r.Refusals = nil
		for range 63 {
			r.Refusals = append(r.Refusals, nodeclaim.Refusal{Check: "ima.file", Reason: long})
		}
		pending[r.Node] = r
	}
	data, err := json.Marshal(pending)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pending.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	api := &outage{writer: writer{err: errors.New("connection refused")}}
	q, err := verdict.StartQueue(api, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatalf("%d bytes: %v", len(data), err)
	}
	r := result(false, start)
	for range 200_000 { // as many reasons as a machine can be made to have
		r.Refusals = append(r.Refusals, nodeclaim.Refusal{Check: "ima.file", Reason: long})
	}
	for n := range 12 {
		r.Node = fmt.Sprintf("more-%d", n)
		if err := q.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	q.Close()
	again, err := verdict.StartQueue(api, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	defer again.Close()
	if s := again.Status(); s.Pending != 1020+12 {
		t.Errorf("%d verdicts are left of 1032", s.Pending)
	}
}

func TestThreat25_AnAPIThatDoesNotAnswerLeavesTimeForTheAttestation(t *testing.T) {
	hangs := false
	s, _ := store(t, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if !hangs {
				return c.Get(ctx, key, obj, opts...)
			}
			end, limited := ctx.Deadline()
			if left := time.Until(end); !limited || left > 10*time.Second {
				t.Errorf("the read may take %s (limited: %t)", left, limited)
			}
			return context.DeadlineExceeded
		},
	}, node())
	if err := s.Write(t.Context(), result(true, start), start); err != nil {
		t.Fatal(err)
	}
	hangs = true
	if b, err := s.Binding(t.Context(), "fra-1"); err != nil || b.EKHash != ek1 {
		t.Errorf("known binding while the API hangs: %+v, %v", b, err)
	}
}

func TestThreat25_AQueueIsSucceededWithoutLosingAVerdict(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.json"), filepath.Join(dir, "second.json")
	down := &outage{writer: writer{err: errors.New("connection refused")}}
	q, err := verdict.StartQueue(down, first, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Submit(result(false, start)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Succeed(down, second); err == nil || !strings.Contains(err.Error(), second) {
		t.Fatalf("a broken file was taken over: %v", err)
	}
	if err := q.Submit(result(false, start.Add(time.Second))); err != nil {
		t.Fatalf("a refused successor ended the queue in force: %v", err)
	}
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	up := &writer{}
	next, err := q.Succeed(up, second)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := q.Submit(result(true, start.Add(time.Minute))); !errors.Is(err, verdict.ErrClosed) {
		t.Errorf("the old queue still takes results: %v", err)
	}
	if got := up.wait(t, 1); got[0].Trusted || !got[0].ReceivedAt.Equal(start.Add(time.Second)) {
		t.Errorf("the successor wrote %+v", got)
	}
	if _, err := os.Stat(first); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old file would be played again some day: %v", err)
	}
}
