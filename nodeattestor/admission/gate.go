package admission

import (
	"context"
	"errors"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Gate bounds how many attestations are under way, in two stages. Before the proof an attestation costs little and
// anybody can begin one and then wait: there is much room. After it the logs are collected, which costs memory: there
// is little room, and one place for each EK.
type Gate struct {
	Unproved *Room // whose attestations have proved nothing yet
	Proved   *Room
}

// waitingRoom is how many attestations may wait for a proof for each one that may work.
const waitingRoom = 16

// NewGate makes a gate with so many places after the proof.
func NewGate(working int) *Gate {
	return &Gate{Unproved: newRoom(waitingRoom * working), Proved: newRoom(working)}
}

// Room has a bounded number of places.
type Room struct {
	places chan struct{}

	mu   sync.Mutex
	byEK map[nodeclaim.EKHash]*turn
}

// turn is the attestation of one EK that has a place or waits for one.
type turn struct{ end context.CancelCauseFunc }

var (
	// ErrFull means that no place was free in time.
	ErrFull = errors.New("too many attestations at once; try again")
	// ErrNewer means that a newer attestation of the same EK has taken over.
	ErrNewer = errors.New("the machine began another attestation, which stands in place of this one")
)

func newRoom(places int) *Room {
	return &Room{places: make(chan struct{}, places), byEK: map[nodeclaim.EKHash]*turn{}}
}

// Enter waits for a place; the caller must call leave, once. It ends the attestation of the same EK that has a place
// or waits for one: the EK must be proved, or a stranger could end anybody's attestation. The zero EKHash is nobody's
// and ends none. The context that it returns ends with the caller's own, with leave, or by ErrNewer as its cause.
func (r *Room) Enter(ctx context.Context, ek nodeclaim.EKHash) (_ context.Context, leave func(), err error) {
	ctx, end := context.WithCancelCause(ctx)
	forget := r.take(ek, &turn{end})
	select {
	case r.places <- struct{}{}:
		return ctx, func() { <-r.places; forget() }, nil
	case <-ctx.Done():
		err := ErrFull
		if errors.Is(context.Cause(ctx), ErrNewer) {
			err = ErrNewer
		}
		forget()
		return nil, nil, err
	}
}

// take makes a turn the one of its EK, and ends the one before.
func (r *Room) take(ek nodeclaim.EKHash, mine *turn) (forget func()) {
	if ek == (nodeclaim.EKHash{}) {
		return func() { mine.end(nil) }
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byEK[ek]; old != nil {
		old.end(ErrNewer)
	}
	r.byEK[ek] = mine
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.byEK[ek] == mine {
			delete(r.byEK, ek)
		}
		mine.end(nil)
	}
}
