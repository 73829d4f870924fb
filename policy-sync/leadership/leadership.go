// Package leadership decides which replica of policy-sync leads, where its own SVID is what opens: over the SPIRE server's TCP API
// a leader without one closes everything that has to be closed and opens nothing.
//
// It adds three rules to the lease of client-go's leaderelection, by standing between the lock and the API:
//
//   - A candidate without a valid SVID leaves a free lease to others for two lease durations. Then it takes the lease: where
//     SPIRE is dead, somebody has to close.
//   - A leader without a valid SVID asks for a successor, in an annotation of the lease that it renews. A candidate that has an
//     SVID answers with another.
//   - A leader that is answered yields: it ends, and gives the lease back.
//
// Nobody takes a lease from another, so that never two lead. Who can write the lease can take the lead away, as without these
// rules; there is nothing in the annotations that opens.
package leadership

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

const (
	// Asks is the annotation in which a leader without an SVID says that it would rather have a successor: the time of its
	// renewal (RFC 3339), by its own clock.
	Asks = v1alpha1.Group + "/asks-for-a-successor"
	// Ready is the annotation in which a candidate answers: its identity, a space, and what was asked, unchanged. So no two
	// clocks are compared.
	Ready = v1alpha1.Group + "/successor-is-ready"
)

// patience is for how many lease durations a candidate without an SVID leaves a free lease alone.
const patience = 2

// SVID tells until when policy-sync's own SVID is valid, and whether it ever had one.
type SVID func() (until time.Time, had bool)

// Options say who asks for which lease.
type Options struct {
	// Identity is the replica's name in the lease.
	Identity      string
	LeaseDuration time.Duration
	SVID          SVID
	Now           func() time.Time
}

// Rules stand between a resourcelock.LeaseLock and the API. Their methods are for the elector's goroutine, apart from Start.
type Rules struct {
	coordinationclient.LeasesGetter

	o      Options
	yield  chan error
	yields sync.Once

	// holder and renewed are what the lease said last; freed is since when it is known to be free, zero when it is not.
	holder  string
	renewed time.Time
	freed   time.Time
}

// New makes rules for one lease.
func New(api coordinationclient.LeasesGetter, o Options) *Rules {
	return &Rules{LeasesGetter: api, o: o, yield: make(chan error, 1)}
}

// Leases is what a LeaseLock uses.
func (r *Rules) Leases(namespace string) coordinationclient.LeaseInterface {
	return &leases{LeaseInterface: r.LeasesGetter.Leases(namespace), rules: r}
}

// ErrYields is why Start ends.
var ErrYields = errors.New("leadership: yields to a replica that has an SVID of its own")

// Start waits until this replica has to yield, and returns an error that wraps ErrYields then; nil when ctx ends. As a Runnable of
// a manager that releases its lease it ends the program.
func (r *Rules) Start(ctx context.Context) error {
	select {
	case err := <-r.yield:
		return err
	case <-ctx.Done():
		return nil
	}
}

// NeedLeaderElection is false: the rules hold for candidates, too.
func (r *Rules) NeedLeaderElection() bool { return false }

// fit tells whether this replica could open.
func (r *Rules) fit() bool {
	until, had := r.o.SVID()
	return had && r.o.Now().Before(until)
}

// saw notes what the lease says. A lease that another has renewed since is not free.
func (r *Rules) saw(l *coordinationv1.Lease) {
	holder, renewed := "", time.Time{}
	if l.Spec.HolderIdentity != nil {
		holder = *l.Spec.HolderIdentity
	}
	if l.Spec.RenewTime != nil {
		renewed = l.Spec.RenewTime.Time
	}
	if holder != "" && (holder != r.holder || !renewed.Equal(r.renewed)) {
		r.freed = time.Time{}
	}
	r.holder, r.renewed = holder, renewed
}

// mayTake refuses a candidate that others may yet replace. The elector asks only for a lease that it found free.
func (r *Rules) mayTake() error {
	if r.fit() {
		return nil
	}
	now := r.o.Now()
	if r.freed.IsZero() {
		r.freed = now
	}
	wait := r.freed.Add(patience * r.o.LeaseDuration).Sub(now)
	if wait <= 0 {
		return nil
	}
	return fmt.Errorf("leadership: there is no valid SVID of our own, so the lease is left to replicas that have one, for %s more", wait.Round(time.Second))
}

// leases are the leases of one namespace, under the rules.
type leases struct {
	coordinationclient.LeaseInterface

	rules *Rules
}

// Get reads the lease. A candidate answers a leader that asks; a leader that is answered yields.
func (l *leases) Get(ctx context.Context, name string, o metav1.GetOptions) (*coordinationv1.Lease, error) {
	lease, err := l.LeaseInterface.Get(ctx, name, o)
	if err != nil {
		if apierrors.IsNotFound(err) {
			l.rules.holder, l.rules.renewed = "", time.Time{}
		}
		return lease, err //nolint:wrapcheck // the lock's own
	}
	l.rules.saw(lease)
	switch l.rules.holder {
	case "":
	case l.rules.o.Identity:
		l.rules.heard(lease)
	default:
		return l.answer(ctx, lease), nil
	}
	return lease, nil
}

// answer says on the lease that this candidate has what its leader lacks. One answer is enough. What cannot be written now is
// written at the next look.
func (l *leases) answer(ctx context.Context, lease *coordinationv1.Lease) *coordinationv1.Lease {
	asked := lease.Annotations[Asks]
	_, answered, _ := strings.Cut(lease.Annotations[Ready], " ")
	if asked == "" || answered == asked || !l.rules.fit() {
		return lease
	}
	ours := lease.DeepCopy()
	ours.Annotations[Ready] = l.rules.o.Identity + " " + asked
	updated, err := l.LeaseInterface.Update(ctx, ours, metav1.UpdateOptions{})
	if err != nil {
		return lease
	}
	return updated
}

// heard yields when a candidate has answered what this leader asked within a lease duration.
func (r *Rules) heard(lease *coordinationv1.Lease) {
	who, answered, _ := strings.Cut(lease.Annotations[Ready], " ")
	at, err := time.Parse(time.RFC3339Nano, answered)
	now := r.o.Now()
	if err != nil || who == r.o.Identity || at.After(now) || now.Sub(at) > r.o.LeaseDuration || r.fit() {
		return
	}
	r.yields.Do(func() { r.yield <- fmt.Errorf("%w: %s", ErrYields, who) })
}

// Create makes the lease, for a candidate that may take it.
func (l *leases) Create(ctx context.Context, lease *coordinationv1.Lease, o metav1.CreateOptions) (*coordinationv1.Lease, error) {
	if err := l.rules.mayTake(); err != nil {
		return nil, err
	}
	created, err := l.LeaseInterface.Create(ctx, lease, o)
	if err == nil {
		l.rules.saw(created)
	}
	return created, err //nolint:wrapcheck // the lock's own
}

// Update renews, gives back or takes the lease.
func (l *leases) Update(ctx context.Context, lease *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	lease = lease.DeepCopy()
	ours := lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == l.rules.o.Identity
	if ours && l.rules.holder != l.rules.o.Identity {
		if err := l.rules.mayTake(); err != nil {
			return nil, err
		}
		delete(lease.Annotations, Ready)
	}
	if ours {
		l.rules.ask(lease)
	}
	updated, err := l.LeaseInterface.Update(ctx, lease, o)
	if err == nil {
		l.rules.saw(updated)
	}
	return updated, err //nolint:wrapcheck // the lock's own
}

// ask says on the lease whether this leader would rather have a successor.
func (r *Rules) ask(lease *coordinationv1.Lease) {
	if r.fit() {
		delete(lease.Annotations, Asks)
		delete(lease.Annotations, Ready)
		return
	}
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Annotations[Asks] = r.o.Now().UTC().Format(time.RFC3339Nano)
}
