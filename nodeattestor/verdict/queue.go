package verdict

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
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
	failed  error                // why a result could not be written in the last round, nil when all could
	closed  bool
	file    saving
	wake    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
}

// StartQueue resumes what an earlier run left in the file at path and starts writing.
func StartQueue(w Writer, path string, log hclog.Logger, now func() time.Time) (*Queue, error) {
	pending, err := loadPending(path)
	if err != nil {
		return nil, err
	}
	return newQueue(w, path, log, now, pending).start(), nil
}

func newQueue(w Writer, path string, log hclog.Logger, now func() time.Time, pending map[string]Result) *Queue {
	q := &Queue{writer: w, path: path, log: log, now: now, retry: 2 * time.Second, pending: pending, tried: map[string]time.Time{},
		wake: make(chan struct{}, 1), done: make(chan struct{})}
	q.file.free.L = &q.mu
	return q
}

func (q *Queue) start() *Queue {
	ctx, cancel := context.WithCancel(context.Background())
	q.cancel = cancel
	q.trigger()
	go q.run(ctx)
	return q
}

// Succeed closes q and starts a queue in its place, with another writer or file, that goes on with what is
// pending. An error leaves q as it was, at work. The caller submits nothing meanwhile.
func (q *Queue) Succeed(w Writer, path string) (*Queue, error) {
	pending := map[string]Result{}
	if path != q.path {
		var err error
		if pending, err = loadPending(path); err != nil {
			return nil, err
		}
	}
	q.hold() // two queues never write one file at once
	next := newQueue(w, path, q.log, q.now, pending)
	err := next.adopt(q.snapshot())
	q.letGo(err == nil)
	if err != nil {
		return nil, err
	}
	q.Close() // it may have written some of them meanwhile; writing those again changes nothing
	if path != q.path {
		if err := os.Remove(q.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			q.log.Warn("pending verdicts moved, but the old file stays", "file", q.path, "error", err)
		}
	}
	return next.start(), nil
}

// adopt queues results before the queue starts.
func (q *Queue) adopt(results []Result) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range results {
		q.put(r)
	}
	return q.safe(q.file.changes)
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
	q.put(r)
	q.trigger()
	return q.safe(q.file.changes)
}

// put queues a result in memory. The caller holds the lock.
func (q *Queue) put(r Result) {
	if old, ok := q.pending[r.Node]; ok && old.EKHash == r.EKHash {
		if !r.supersedes(old.ReceivedAt, old.Trusted) {
			old, r = r, old // the one that waits already stands
		}
		r = r.notBelow(old.TagSerial)
	}
	q.pending[r.Node] = r.bounded(maxReasons, maxReasonChars)
	q.file.changes++
}

// Status is how a queue stands.
type Status struct {
	Pending int       // results that wait to be written
	Oldest  time.Time // when the evidence of the oldest of them was received; zero without any
	Failed  error     // why a result could not be written at the last try; nil when it could
	Unsaved error     // why a restart would lose what is pending; nil when it would not
}

// Status tells how the queue stands.
func (q *Queue) Status() Status {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Status{Pending: len(q.pending), Failed: q.failed, Unsaved: q.file.failed}
	for _, r := range q.pending {
		if s.Oldest.IsZero() || r.ReceivedAt.Before(s.Oldest) {
			s.Oldest = r.ReceivedAt
		}
	}
	return s
}

// Newest is the latest receipt among what waits; zero without any. Whoever orders receipts begins after it.
func (q *Queue) Newest() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	var newest time.Time
	for _, r := range q.pending {
		if r.ReceivedAt.After(newest) {
			newest = r.ReceivedAt
		}
	}
	return newest
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
	q.end()
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
func (q *Queue) round(ctx context.Context) (again bool) {
	var failures []failure
	defer func() { q.report(failures) }()
	q.saveAgain()
	saved := time.Now()
	for _, r := range q.snapshot() {
		if err := q.attempt(ctx, r); err != nil && ctx.Err() == nil {
			failures = append(failures, failure{r.Node, err})
		}
		select {
		case <-q.wake:
			return ctx.Err() == nil
		default:
		}
		if time.Since(saved) > savePace {
			q.saveWritten()
			saved = time.Now()
		}
	}
	q.saveWritten()
	return false
}

type failure struct {
	node string
	err  error
}

// report keeps why results could not be written, and says so once a round: an API that is away would else
// fill the log with a line for each node.
func (q *Queue) report(failures []failure) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.failed = nil; len(failures) == 0 {
		return
	}
	q.failed = fmt.Errorf("node %s: %w", failures[0].node, failures[0].err)
	q.log.Warn("verdicts wait to be written", "failed", len(failures), "pending", len(q.pending), "node", failures[0].node, "error", failures[0].err)
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
	q.file.changes++
}
