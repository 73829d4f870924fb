package verdict

import (
	"maps"
	"sync"
	"time"
)

// saving is how a queue's file stands to what is pending. One save serves every change made before it began: with
// the API away, each of thousands of nodes would else wait for a file with all of them to be written for itself alone.
type saving struct {
	busy    bool      // somebody writes the file, or holds it
	free    sync.Cond // busy ended; its lock is the queue's
	changes uint64    // made to what is pending so far
	tried   uint64    // changes that the last save had
	saved   uint64    // changes that the file has
	failed  error     // why the last save failed, nil when it did not
}

// savePace is how long a result that was written may stay in the file: a restart writes it again, which changes nothing.
const savePace = time.Second

// safe waits until the file has so many changes, and saves them unless somebody else does. The caller holds the lock.
func (q *Queue) safe(changes uint64) error {
	for q.file.tried < changes {
		if q.closed {
			return ErrClosed
		}
		if q.file.busy {
			q.file.free.Wait()
			continue
		}
		q.save()
	}
	if q.file.saved < changes {
		return q.file.failed
	}
	return nil
}

// save writes the file with what is pending now. The caller holds the lock, which it gives up meanwhile, and has
// seen that the file is not busy.
func (q *Queue) save() {
	changes, pending := q.file.changes, maps.Clone(q.pending)
	q.file.busy = true
	q.mu.Unlock()
	err := savePending(q.path, pending)
	q.mu.Lock()
	q.file.busy, q.file.tried, q.file.failed = false, changes, err
	if err == nil {
		q.file.saved = changes
	}
	q.file.free.Broadcast()
}

// saveAgain writes the file when the last try failed, for example because the disk was full.
func (q *Queue) saveAgain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.acquire() || q.file.failed == nil {
		return
	}
	if q.save(); q.file.failed == nil {
		q.log.Info("pending verdicts saved", "file", q.path)
	}
}

// saveWritten takes what was written out of the file.
func (q *Queue) saveWritten() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.acquire() || q.file.tried == q.file.changes {
		return
	}
	if q.save(); q.file.failed != nil {
		q.log.Warn("pending verdicts not saved", "error", q.file.failed)
	}
}

// acquire waits until nobody is busy with the file; false when the queue was closed meanwhile. The caller holds the lock.
func (q *Queue) acquire() bool {
	for q.file.busy {
		q.file.free.Wait()
	}
	return !q.closed
}

// end closes the queue with the file up to date, as far as it can be written. The caller holds the lock.
func (q *Queue) end() {
	if q.acquire() && q.file.saved != q.file.changes {
		q.save()
	}
	q.closed = true
}

// hold keeps the queue from writing its file until letGo.
func (q *Queue) hold() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acquire()
	q.file.busy = true
}

// letGo ends hold; the file is another queue's from now on when that one took over.
func (q *Queue) letGo(taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.file.busy = false
	q.closed = q.closed || taken
	q.file.free.Broadcast()
}
