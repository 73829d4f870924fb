// Package syncer is the loop of policy-sync: read, decide, apply, report.
//
// Trust is global, so there is one loop and it is level-based: whatever happens, it reads everything and compares what is with
// what should be. Watches only call Trigger. A pass has three steps, so that nothing that a tenant writes, no SPIRE server and no
// registry that is away, slow or hung delays a revocation:
//
//	read Kubernetes --error--> change nothing, try again
//	   | graph: revoked addresses, labels and taints, at once (plan.Urgent)
//	read SPIRE -----error----> report it, open nothing, try again
//	   | graph with SPIRE: agents to evict
//	   | render the policies, within a budget each (plan.Renderer): the rest of what closes;
//	   | then what opens, in order, each operation unless it rests on one that failed (plan.Domain)
//	report status
//
// Registries are asked beside the loop (Images).
package syncer

import (
	"context"
	"log/slog"
	"time"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Kubernetes is the cluster; *kube.Store is one.
type Kubernetes interface {
	Read(ctx context.Context) (snapshot.Snapshot, error)
	Apply(ctx context.Context, o plan.Operation) error
	Report(ctx context.Context, r kube.Report) error
}

// SPIRE is the server that issues identities; *spireapi.Server is one.
type SPIRE interface {
	Read(ctx context.Context) (*snapshot.SPIRE, error)
	Apply(ctx context.Context, operations []plan.Operation) []error
}

// Options are the syncer's surroundings.
type Options struct {
	Kubernetes Kubernetes
	SPIRE      SPIRE
	// Images answers at once with what is known of the images (Images.Results).
	Images func([]snapshot.ImageQuestion) map[snapshot.ImageKey]snapshot.Image
	Log    *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
	Now     func() time.Time
	// Resync is how often everything is compared without being asked; it bounds how long a change at the SPIRE server, which
	// has no watch, goes unseen.
	Resync time.Duration
	// Debounce is how long to wait for more after the first trigger.
	Debounce time.Duration
	// Timeout bounds each batch of writes to it, and each operation on Kubernetes.
	Timeout time.Duration
	// SPIREFresh is for how long a reading of the SPIRE server serves passes, with what they write there; 0 has each pass read it
	// anew. What somebody else changes there goes unseen as long.
	SPIREFresh time.Duration
	// ReadTimeout bounds a whole reading of the SPIRE server, which goes on beside the loop; 0 means Timeout.
	ReadTimeout time.Duration
	// Patience is how long a pass waits for the SPIRE server; a reading that takes longer serves a later pass.
	Patience time.Duration
	// WarmUp is how long after the start labels are believed to be another replica's; see inheritUntil.
	WarmUp time.Duration
	// Panics notes what panicked; nil logs it.
	Panics *panics.Recorder
	// Memory keeps what a replica that takes over has to know; nil keeps nothing.
	Memory Memory
	// History keeps which images workloads ran; nil notes nothing.
	History HistoryStore
}

// Syncer runs the loop. One goroutine runs Start or Sync; Trigger is for all.
type Syncer struct {
	o       Options
	trigger chan struct{}
	reading *reading
	known   known
	// verdictAt is when a pass last closed what a verdict closes.
	verdictAt time.Time
	// readTook is how long the last reading of the SPIRE server took.
	readTook time.Duration
	history  chronicle
	said     map[string]bool // findings that were logged, so that each is said once
	// toldNodes and toldReports are the lists that said follows from.
	toldNodes   []trustgraph.Node
	toldReports []string
	expiries    expiries
	statuses    statuses
	reported    reported
	began       time.Time // the first pass
	// attested are the pods that were attested lately. A replica that takes over begins with what Options.Memory has of them.
	attested snapshot.Memory
	fight    fight
	engine   *trustgraph.Engine
	// questions are those about images of the last pass.
	questions []snapshot.ImageQuestion
	renderer  *plan.Renderer
	lanes     *lanes
	// turns and refused outlive a pass, for namespaces for which its time was not enough.
	turns   turns
	refused refusals
	stales  int             // passes in a row that found that the world moved on
	failing map[string]bool // failures that were logged, while they last
	events  events
	health  health
	keeper  keeper
}

// Budgets of rendering: one policy's, and one pass's. What does not fit goes on beside or in the next pass.
const (
	renderOne  = time.Second
	renderPass = 500 * time.Millisecond
)

// New makes a syncer.
func New(o Options) *Syncer {
	s := &Syncer{o: o, trigger: make(chan struct{}, 1), said: map[string]bool{}, failing: map[string]bool{}}
	s.renderer = &plan.Renderer{Budget: renderOne, Round: renderPass, Now: time.Now, Later: s.Trigger,
		Panicked: func(policy string, value any, stack []byte) {
			o.Log.Error("rendering a policy panicked", "policy", policy)
			_ = o.Panics.Note("rendering a policy", value, stack) // the policy's status says it
		}}
	s.engine = &trustgraph.Engine{Panicked: func(subject string, value any, stack []byte) {
		o.Log.Error("judging panicked; the subject is closed", "subject", subject)
		_ = o.Panics.Note("judging", value, stack) // the statuses and findings say of what
	}}
	s.lanes = newLanes(o.Patience, s.Trigger)
	return s
}

// Trigger asks for a pass. It never blocks; a trigger during a pass leads to one more.
func (s *Syncer) Trigger() {
	select {
	case s.trigger <- struct{}{}:
	default:
	}
}

// NeedLeaderElection is true: two replicas would race, though they would plan the same.
func (s *Syncer) NeedLeaderElection() bool { return true }

// Pauses after a pass that failed. A stale plan is made again almost at once: the cache is milliseconds behind.
const (
	pauseStale = 25 * time.Millisecond
	pauseFirst = 200 * time.Millisecond
	pauseMost  = 10 * time.Second
)

// maxStale is how many passes in a row may find that the world moved on. More means that something else is wrong, such as an
// object that cannot be seen and yet exists, and that is an error.
const maxStale = 8

// Start runs passes until ctx ends.
func (s *Syncer) Start(ctx context.Context) error {
	defer s.flush(ctx)
	defer s.flushHistory(ctx)
	return s.o.Panics.Loop(ctx, "the loop", s.loop)
}

func (s *Syncer) loop(ctx context.Context) error {
	failures, stales := 0, 0
	for ctx.Err() == nil {
		next, err := s.Sync(ctx)
		wait := s.o.Resync
		if !next.IsZero() {
			wait = min(wait, max(next.Sub(s.o.Now()), 0)+time.Millisecond)
		}
		pause := s.o.Debounce
		switch {
		case err == nil:
			failures, stales = 0, 0
			if s.fight.rounds > maxStale {
				s.o.Log.Warn("written again and again; somebody undoes it", "what", s.fight.over)
				wait, pause = max(wait, pauseFirst), max(pause, pauseFirst)
			}
		case IsStale(err) && stales < maxStale:
			s.o.Log.Debug("planned from what has changed since; again", "reason", err)
			wait = min(pauseStale<<min(stales, 10), pauseMost)
			pause = min(wait, pauseFirst)
			stales++
		case ctx.Err() != nil: // the end cut the pass short
		default:
			s.o.Log.Debug("pass failed; what is closed stays closed", "failures", failures+1, "err", err) // each failure has its own line
			wait = min(wait, pauseFirst<<min(failures, 10), pauseMost)                                    // what is not over goes on, whoever else's trouble lasts
			failures++
		}
		s.wait(ctx, wait, pause)
	}
	return nil
}

// wait returns after the given time, or pause after a trigger, or when ctx ends.
func (s *Syncer) wait(ctx context.Context, atMost, pause time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
		return
	case <-s.trigger:
	}
	// The triggers of one change come in a burst. What comes during the pass stays in the channel.
	timer.Reset(pause)
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	select {
	case <-s.trigger:
	default:
	}
}
