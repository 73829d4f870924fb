package serverplugin

import (
	"context"
	"errors"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// gate bounds how many attestations are under way, in two stages, so that nobody can keep
// others out. Before the proof an attestation costs little and anybody can begin one and then
// wait: there is much room. After it the logs are collected, which costs memory: there is
// little room, and one place for each EK. Whoever opens more connections replaces his own.
type gate struct {
	waiting chan struct{}
	working chan struct{}

	mu   sync.Mutex
	byEK map[nodeclaim.EKHash]*turn
}

// turn is the attestation of one EK that is past the proof.
type turn struct{ end context.CancelCauseFunc }

// waitingRoom is how many attestations may wait for a proof for each one that may work.
const waitingRoom = 16

var (
	errFull  = errors.New("too many attestations at once; try again")
	errNewer = errors.New("the machine began another attestation, which stands in place of this one")
)

func newGate(working int) *gate {
	return &gate{waiting: make(chan struct{}, waitingRoom*working), working: make(chan struct{}, working), byEK: map[nodeclaim.EKHash]*turn{}}
}

// enter waits for a place before the proof; the caller must call leave.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g.waiting <- struct{}{}:
		return func() { <-g.waiting }, nil
	case <-ctx.Done():
		return nil, errFull
	}
}

// work waits for a place after the proof, and ends the attestation of the same EK that has one
// or waits for it. The EK must be proved: else a stranger could end anybody's attestation.
// The context ends with the caller's own or when a newer attestation takes over.
func (g *gate) work(ctx context.Context, ek nodeclaim.EKHash) (context.Context, func(), error) {
	ctx, end := context.WithCancelCause(ctx)
	mine := &turn{end}
	g.mu.Lock()
	if old := g.byEK[ek]; old != nil {
		old.end(errNewer)
	}
	g.byEK[ek] = mine
	g.mu.Unlock()
	forget := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.byEK[ek] == mine {
			delete(g.byEK, ek)
		}
		end(nil)
	}
	select {
	case g.working <- struct{}{}:
		return ctx, func() { <-g.working; forget() }, nil
	case <-ctx.Done():
		err := errFull
		if errors.Is(context.Cause(ctx), errNewer) {
			err = errNewer
		}
		forget()
		return nil, nil, err
	}
}
