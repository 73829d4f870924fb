package admission

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func TestThreat24_OneMachineHoldsOnePlace(t *testing.T) {
	r := NewGate(2).Proved
	greedy, other := nodeclaim.EKHash{1}, nodeclaim.EKHash{2}
	var contexts []context.Context
	var dones []func()
	for range 2 {
		ctx, done, err := r.Enter(t.Context(), greedy)
		if err != nil {
			t.Fatal(err)
		}
		contexts, dones = append(contexts, ctx), append(dones, done)
	}
	if !errors.Is(context.Cause(contexts[0]), ErrNewer) || contexts[1].Err() != nil {
		t.Fatalf("first: %v, second: %v; want the newer one alone", context.Cause(contexts[0]), contexts[1].Err())
	}
	waited := make(chan error, 1)
	go func() { // a third one waits, and a fourth takes its turn
		_, _, err := r.Enter(t.Context(), greedy)
		waited <- err
	}()
	for r.turnOf(greedy) == nil || contexts[1].Err() == nil {
		time.Sleep(time.Millisecond)
	}
	dones[0]() // what was replaced gives its place back
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	dones[1]()
	if _, done, err := r.Enter(t.Context(), other); err != nil {
		t.Fatalf("another machine is kept out: %v", err)
	} else {
		done()
	}
}

func (r *Room) turnOf(ek nodeclaim.EKHash) *turn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byEK[ek]
}

func TestThreat24_StrangersThatWaitLeaveRoomForProvedMachines(t *testing.T) {
	g := NewGate(1)
	for range waitingRoom {
		if _, _, err := g.Unproved.Enter(t.Context(), nodeclaim.EKHash{}); err != nil {
			t.Fatal(err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := g.Unproved.Enter(late, nodeclaim.EKHash{}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull: the room before the proof is bounded", err)
	}
	_, done, err := g.Proved.Enter(t.Context(), nodeclaim.EKHash{1})
	if err != nil {
		t.Fatal(err)
	}
	late, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := g.Proved.Enter(late, nodeclaim.EKHash{2}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull: the room after the proof is bounded", err)
	}
	if g.Proved.turnOf(nodeclaim.EKHash{2}) != nil {
		t.Error("who gave up still has a turn")
	}
	done()
	if g.Proved.turnOf(nodeclaim.EKHash{1}) != nil {
		t.Error("who is done still has a turn")
	}
}

func TestThreat24_StrangersEndNobodysAttestation(t *testing.T) {
	g := NewGate(1)
	first, leave, err := g.Unproved.Enter(t.Context(), nodeclaim.EKHash{})
	if err != nil {
		t.Fatal(err)
	}
	for range waitingRoom - 1 {
		if _, _, err := g.Unproved.Enter(t.Context(), nodeclaim.EKHash{}); err != nil {
			t.Fatal(err)
		}
	}
	if first.Err() != nil {
		t.Error("an attestation that proved nothing ended another one")
	}
	leave()
	if first.Err() == nil {
		t.Error("the context goes on after leave")
	}
	if _, _, err := g.Unproved.Enter(t.Context(), nodeclaim.EKHash{}); err != nil {
		t.Errorf("the place that was given back is taken: %v", err)
	}
}

func TestThreat24_TheCallersEndIsNoFullRoomsTurn(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	inside, leave, err := NewGate(1).Proved.Enter(ctx, nodeclaim.EKHash{1})
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	end()
	<-inside.Done()
	if !errors.Is(context.Cause(inside), context.Canceled) {
		t.Errorf("cause %v, want the caller's own", context.Cause(inside))
	}
}
