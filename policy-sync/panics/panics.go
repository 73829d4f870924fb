// Package panics keeps a panic of one goroutine from ending policy-sync, and from going unnoticed.
//
// policy-sync closes what a verdict closes only as long as it runs, and a panic is a fault of Keelson's that a tenant's object may
// bring about. So each goroutine recovers: what it was about fails (closed), the log has the stack, a metric counts, and readiness
// says so. Liveness does not: a restart would meet the same object, and forget.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// Recent is how long after a panic readiness speaks of it.
	Recent = 10 * time.Minute
	// pause is how long a loop that panicked waits before it begins again.
	pause = 5 * time.Second
)

// Recorder notes panics. A nil one recovers and logs with slog's default logger. It is safe for use by several goroutines.
type Recorder struct {
	log     *slog.Logger
	now     func() time.Time
	counter *prometheus.CounterVec

	mu    sync.Mutex
	where string // of the last one
	value string
	at    time.Time
}

// New makes a recorder and registers its metric.
func New(log *slog.Logger, now func() time.Time, registry prometheus.Registerer) (*Recorder, error) {
	r := &Recorder{log: log, now: now, counter: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keelson_policy_sync_panics_total",
		Help: "Panics that were recovered, by the part of policy-sync: faults of Keelson's, to be reported."}, []string{"part"})}
	return r, registry.Register(r.counter)
}

// Catch recovers the panic of the goroutine that defers it. If there was one, then gets it as an error, so that nobody waits for a
// result for ever; nil is fine. Part is a few fixed words: a metric's label.
func (r *Recorder) Catch(part string, then func(error)) {
	value := recover()
	if value == nil {
		return
	}
	err := r.Note(part, value, debug.Stack())
	if then != nil {
		then(err)
	}
}

// Note records a panic that the caller recovered, and returns it as an error.
func (r *Recorder) Note(part string, value any, stack []byte) error {
	log := slog.Default()
	if r != nil {
		log = r.log
		r.counter.WithLabelValues(part).Inc()
		r.mu.Lock()
		r.where, r.value, r.at = part, fmt.Sprint(value), r.now()
		r.mu.Unlock()
	}
	log.Error("a panic was recovered, which is a fault of Keelson's", "part", part, "panic", value, "stack", string(stack))
	return fmt.Errorf("%s panicked, which is a fault of Keelson's: %v", part, value)
}

// Ready returns an error while a panic is recent.
func (r *Recorder) Ready() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.where == "" || r.now().Sub(r.at) >= Recent {
		return nil
	}
	return fmt.Errorf("%s panicked at %s, which is a fault of Keelson's; the log has the stack: %s", r.where, r.at.UTC().Format(time.RFC3339), r.value)
}

// Loop runs start until it returns; after a panic it runs it again, once a pause is over. It returns start's error, or nil when ctx
// has ended.
func (r *Recorder) Loop(ctx context.Context, part string, start func(context.Context) error) error {
	for {
		panicked := false
		err := func() (err error) {
			defer r.Catch(part, func(e error) { panicked, err = true, e })
			return start(ctx)
		}()
		if !panicked {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}
