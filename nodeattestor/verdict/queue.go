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
	"golang.org/x/sys/unix"
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
	unsaved error                // why the file is behind what is pending, nil when it is not
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
	return newQueue(w, path, log, now, pending).start(), nil
}

func newQueue(w Writer, path string, log hclog.Logger, now func() time.Time, pending map[string]Result) *Queue {
	return &Queue{writer: w, path: path, log: log, now: now, retry: 2 * time.Second, pending: pending, tried: map[string]time.Time{},
		wake: make(chan struct{}, 1), done: make(chan struct{})}
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
	next := newQueue(w, path, q.log, q.now, pending)
	if err := next.adopt(q.snapshot()); err != nil {
		return nil, err
	}
	q.Close() // it may have written some of them meanwhile; writing those again changes nothing
	if path != q.path {
		if err := removeIfThere(q.path); err != nil {
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
	return q.save()
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
	if pending == nil {
		return nil, fmt.Errorf("verdict: pending verdicts: %s holds no object; remove the file to start without them", path)
	}
	for node, r := range pending {
		if r.Node != node || node == "" {
			return nil, fmt.Errorf("verdict: pending verdicts: %s: the result of node %q stands under %q; remove the file to start without them", path, r.Node, node)
		}
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
	q.put(r)
	q.trigger()
	return q.save()
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
	s := Status{Pending: len(q.pending), Failed: q.failed, Unsaved: q.unsaved}
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
func (q *Queue) round(ctx context.Context) (again bool) {
	var failures []failure
	defer func() { q.report(failures) }()
	q.saveAgain()
	for _, r := range q.snapshot() {
		if err := q.attempt(ctx, r); err != nil && ctx.Err() == nil {
			failures = append(failures, failure{r.Node, err})
		}
		select {
		case <-q.wake:
			return ctx.Err() == nil
		default:
		}
	}
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

// saveAgain writes the file when it is behind, for example because the disk was full.
func (q *Queue) saveAgain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.unsaved == nil || q.closed {
		return
	}
	if err := q.save(); err == nil {
		q.log.Info("pending verdicts saved", "file", q.path)
	}
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
	q.unsaved = q.write()
	return q.unsaved
}

func (q *Queue) write() error {
	data, err := q.marshal()
	if err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	temporary := q.path + ".new" // one name: what a crash leaves behind is replaced, and never adds up
	if err := writeSynced(temporary, data); err != nil {
		err = errors.Join(fmt.Errorf("verdict: pending verdicts: %w", err), removeIfThere(temporary))
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w: make room in %s", err, filepath.Dir(q.path))
		}
		return err
	}
	if err := os.Rename(temporary, q.path); err != nil {
		return fmt.Errorf("verdict: pending verdicts: %w", err)
	}
	return syncDir(filepath.Dir(q.path))
}

// marshal is the file's content. What would not be read again after a restart is not written: with very many
// nodes, each keeps only the first of its reasons.
func (q *Queue) marshal() ([]byte, error) {
	data, err := json.Marshal(q.pending)
	if err != nil || len(data) <= maxPending {
		return data, err
	}
	short := make(map[string]Result, len(q.pending))
	for node, r := range q.pending {
		short[node] = r.bounded(1, maxReasonChars/4)
	}
	if data, err = json.Marshal(short); err == nil && len(data) > maxPending {
		err = fmt.Errorf("%d results take %d bytes, more than %d", len(short), len(data), maxPending)
	}
	return data, err
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
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
