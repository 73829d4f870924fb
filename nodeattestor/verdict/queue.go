package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Writer stores one result; Store is the one that ships.
type Writer interface {
	Write(ctx context.Context, r Result, now time.Time) error
}

// Queue hands results to a Writer, newest per node, until they are stored or expired.
// What is pending also lies in a file, so that a restart of the server loses no
// verdict. The Kubernetes API being away delays verdicts and nothing else.
type Queue struct {
	writer Writer
	path   string
	log    hclog.Logger
	now    func() time.Time
	retry  time.Duration

	mu      sync.Mutex
	pending map[string]Result
	tried   map[string]time.Time // node -> when its result was last tried
	closed  bool
	wake    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
}

// maxPending bounds the queue file in bytes; it holds one result per node.
const maxPending = 64 << 20

// StartQueue resumes what an earlier run left in the file at path and starts writing.
func StartQueue(w Writer, path string, log hclog.Logger, now func() time.Time) (*Queue, error) {
	pending, err := loadPending(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	q := &Queue{writer: w, path: path, log: log, now: now, retry: 2 * time.Second, pending: pending, tried: map[string]time.Time{},
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	q.trigger()
	go q.run(ctx)
	return q, nil
}

func loadPending(path string) (map[string]Result, error) {
	pending := map[string]Result{}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pending, nil
	}
	if err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	if info.Size() > maxPending {
		return nil, fmt.Errorf("verdict: pending verdicts: %s has %d bytes, more than %d; remove it if it is not Keelson's", path, info.Size(), maxPending)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	if err := json.Unmarshal(data, &pending); err != nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %s: %w; remove the file to start without them", path, err)
	}
	return pending, nil
}

// ErrClosed means that the queue was closed: it keeps nothing any more, for its file may
// be another queue's by now.
var ErrClosed = errors.New("verdict: the queue is closed")

// Submit queues a result unless a newer one for the node waits already; the highest tag
// serial of both is kept. An error other than ErrClosed means that the result is queued in
// memory but not safe from a restart.
func (q *Queue) Submit(r Result) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	if old, ok := q.pending[r.Node]; ok && old.EKHash == r.EKHash {
		if !r.supersedes(old.ReceivedAt, old.Trusted) {
			old, r = r, old // the one that waits already stands
		}
		r = r.notBelow(old.TagSerial)
	}
	q.pending[r.Node] = r
	q.trigger()
	return q.save()
}

// TagSerial is the highest tag serial of a machine in a verdict that waits to be written, 0 when
// there is none: the store does not know it yet.
func (q *Queue) TagSerial(node, ekHash string) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, ok := q.pending[node]
	if !ok || r.EKHash != ekHash || r.TagSerial == nil || *r.TagSerial < 0 {
		return 0
	}
	return uint64(*r.TagSerial)
}

// Close stops writing; what is pending stays in the file.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cancel()
	<-q.done
}

func (q *Queue) trigger() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) run(ctx context.Context) {
	defer close(q.done)
	timer := time.NewTimer(q.retry)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-timer.C:
		}
		for q.round(ctx) {
		}
		timer.Reset(q.retry)
	}
}

// round tries what is pending once. It is true when something was submitted meanwhile, for which the
// rest of the round must not be waited for: a slow API and many pending trusted results must not hold up
// an untrusted one.
func (q *Queue) round(ctx context.Context) bool {
	for _, r := range q.snapshot() {
		if err := q.attempt(ctx, r); err != nil && ctx.Err() == nil {
			q.log.Warn("verdict waits to be written", "node", r.Node, "trusted", r.Trusted, "error", err)
		}
		select {
		case <-q.wake:
			return ctx.Err() == nil
		default:
		}
	}
	return false
}

// snapshot is what is pending: untrusted results first, for they close doors, else the
// oldest tried or received first.
func (q *Queue) snapshot() []Result {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := slices.Collect(maps.Values(q.pending))
	slices.SortFunc(out, func(a, b Result) int {
		if a.Trusted != b.Trusted {
			return map[bool]int{true: 1, false: -1}[a.Trusted]
		}
		return q.turn(a).Compare(q.turn(b))
	})
	return out
}

// turn is when a result was last tried or else received. The caller holds the lock.
func (q *Queue) turn(r Result) time.Time {
	if at, ok := q.tried[r.Node]; ok {
		return at
	}
	return r.ReceivedAt
}

// writeTimeout bounds one try, so that one hanging request does not hold up the rest.
const writeTimeout = 10 * time.Second

func (q *Queue) attempt(ctx context.Context, r Result) error {
	if r.Trusted && !q.now().Before(r.ValidUntil) {
		q.drop(r, "it expired before it could be written")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	q.mu.Lock()
	q.tried[r.Node] = q.now()
	q.mu.Unlock()
	err := q.writer.Write(ctx, r, q.now())
	switch {
	case err == nil:
		q.drop(r, "")
		return nil
	case errors.Is(err, ErrBoundElsewhere):
		q.drop(r, err.Error())
		return nil
	case errors.Is(err, ErrNodeMissing) && !q.now().Before(r.ValidUntil):
		q.drop(r, err.Error())
		return nil
	}
	return err
}

// drop removes r if no newer result took its place meanwhile.
func (q *Queue) drop(r Result, why string) {
	if why != "" {
		q.log.Warn("verdict dropped", "node", r.Node, "trusted", r.Trusted, "reason", why)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if cur, ok := q.pending[r.Node]; !ok || !cur.ReceivedAt.Equal(r.ReceivedAt) || cur.Trusted != r.Trusted || !equalSerial(cur.TagSerial, r.TagSerial) {
		return
	}
	if q.closed {
		return // the file may be another queue's by now; writing the result again changes nothing
	}
	delete(q.pending, r.Node)
	delete(q.tried, r.Node)
	if err := q.save(); err != nil {
		q.log.Warn("pending verdicts not saved", "error", err)
	}
}

// save replaces the file atomically. The caller holds the lock.
func (q *Queue) save() error {
	data, err := json.Marshal(q.pending)
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(q.path), ".pending-*")
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	_, werr := tmp.Write(data)
	err = errors.Join(werr, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), q.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("verdict: pending verdicts: %w", err), removeIfThere(tmp.Name()))
	}
	return syncDir(filepath.Dir(q.path))
}

// syncDir makes a rename in a directory survive a loss of power.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
