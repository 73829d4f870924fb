package serverplugin

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func TestThreat24_OneMachineHoldsOnePlace(t *testing.T) {
	g := newGate(2)
	greedy, other := nodeclaim.EKHash{1}, nodeclaim.EKHash{2}
	var contexts []context.Context
	var dones []func()
	for range 2 {
		ctx, done, err := g.work(t.Context(), greedy)
		if err != nil {
			t.Fatal(err)
		}
		contexts, dones = append(contexts, ctx), append(dones, done)
	}
	if !errors.Is(context.Cause(contexts[0]), errNewer) || contexts[1].Err() != nil {
		t.Fatalf("first: %v, second: %v; want the newer one alone", context.Cause(contexts[0]), contexts[1].Err())
	}
	waited := make(chan error, 1)
	go func() { // a third one waits, and a fourth takes its turn
		_, _, err := g.work(t.Context(), greedy)
		waited <- err
	}()
	for g.turnOf(greedy) == nil || contexts[1].Err() == nil {
		time.Sleep(time.Millisecond)
	}
	dones[0]() // what was replaced gives its place back
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	dones[1]()
	if _, done, err := g.work(t.Context(), other); err != nil {
		t.Fatalf("another machine is kept out: %v", err)
	} else {
		done()
	}
}

func (g *gate) turnOf(ek nodeclaim.EKHash) *turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.byEK[ek]
}

func TestThreat24_StrangersThatWaitLeaveRoomForProvedMachines(t *testing.T) {
	g := newGate(1)
	for range waitingRoom {
		if _, err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.enter(late); !errors.Is(err, errFull) {
		t.Errorf("got %v, want errFull: the room before the proof is bounded", err)
	}
	_, done, err := g.work(t.Context(), nodeclaim.EKHash{1})
	if err != nil {
		t.Fatal(err)
	}
	late, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := g.work(late, nodeclaim.EKHash{2}); !errors.Is(err, errFull) {
		t.Errorf("got %v, want errFull: the room after the proof is bounded", err)
	}
	if g.turnOf(nodeclaim.EKHash{2}) != nil {
		t.Error("who gave up still has a turn")
	}
	done()
	if g.turnOf(nodeclaim.EKHash{1}) != nil {
		t.Error("who is done still has a turn")
	}
}

func TestTheAgentLearnsNoAddressesOfTheServer(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"an internal error":   {errors.New("dial tcp 10.0.0.1:6443: connection refused"), "the attestation could not be finished, try again; the server's audit log has the reason"},
		"its own message":     {malformed{errors.New("evidence: read response: field secret: missing")}, "evidence: read response: field secret: missing"},
		"a full server":       {errFull, errFull.Error()},
		"a newer attestation": {errors.Join(errors.New("receive"), errNewer), errNewer.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			if got := told(tc.err).Error(); got != tc.want {
				t.Errorf("told %q, want %q", got, tc.want)
			}
		})
	}
}
